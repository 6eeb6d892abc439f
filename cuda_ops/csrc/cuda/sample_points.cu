// Samples an image at given points on the GPU, by the rule that all kernels share. `segdeform
// doctor` runs it to prove that this library loads, launches and agrees with the CPU.
#include <torch/csrc/stable/library.h>

#include "device.h"

namespace segdeform::cuda {
namespace {

using torch::stable::Tensor;

__global__ void sample_points_kernel(const float* image, int32_t height, int32_t width,
                                     const float* points, int64_t count, float* values) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const Corners<OneSample<float>> c =
      corners_at<OneSample<float>>(points[2 * i], points[2 * i + 1], height, width);
  float value = 0;
  for (int k = 0; k < 4; ++k)
    value += c.index[k] < 0 ? c.weight[k] * 0.0f : c.weight[k] * image[c.index[k]];
  values[i] = value;
}

// image [H, W] and points [M, 2] as (y, x), both float32 and contiguous -> values [M]
Tensor sample_points(const Tensor& image, const Tensor& points) {
  STD_TORCH_CHECK(image.dim() == 2 && points.dim() == 2 && points.size(1) == 2 &&
                      image.is_contiguous() && points.is_contiguous(),
                  "sample_points: image [H, W] and points [M, 2] must be contiguous");
  const CurrentDevice device(image);
  const int64_t count = points.size(0), sizes[1] = {count};
  Tensor values =
      torch::stable::new_empty(image, torch::headeronly::IntHeaderOnlyArrayRef(sizes, 1));
  constexpr int kThreads = 128;
  launch(sample_points_kernel, blocks_for(count, kThreads), kThreads, 0, device.stream(),
         static_cast<const float*>(image.data_ptr()), int32_t(image.size(0)),
         int32_t(image.size(1)), static_cast<const float*>(points.data_ptr()), count,
         static_cast<float*>(values.data_ptr()));
  return values;
}

}  // namespace
}  // namespace segdeform::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(SEGDEFORM_LIBRARY, library) {
  library.def("sample_points(Tensor image, Tensor points) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(SEGDEFORM_LIBRARY, SEGDEFORM_DEVICE, library) {
  library.impl("sample_points", TORCH_BOX(&segdeform::cuda::sample_points));
}
