// deform_roi_pool, ps_deform_roi_pool and their backward on CUDA: from tensors to launches.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <type_traits>
#include <vector>

#include "../roi_arguments.h"
#include "../tensors.h"
#include "device.h"
#include "roi_input_gradient.cuh"
#include "roi_plan.h"

namespace segdeform::cuda {
namespace {

using OptionalTensor = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;

// [N, O * cells, h, w] -> [N, h * w, cells, O]; not copied if it lies so.
Tensor packed(const Tensor& t, int64_t cells) {
  const int64_t sizes[4] = {t.size(0), t.size(1) / cells, cells, t.size(2) * t.size(3)};
  const Tensor flat = torch::stable::reshape(t, IntHeaderOnlyArrayRef(sizes, 4));
  return torch::stable::contiguous(torch::stable::transpose(flat, 1, 3));
}

// Memory for a result of shape [N, O * cells, h, w] as the kernels write it.
Tensor empty_packed(const Tensor& like, const int64_t (&shape)[4], int64_t cells) {
  return empty_like_format(like, {shape[0], shape[2] * shape[3], cells, shape[1] / cells},
                           like.scalar_type(), MemoryFormat::Contiguous);
}

// The way back to [N, O * cells, h, w], channels-last or contiguous.
Tensor unpacked(const Tensor& t, const int64_t (&shape)[4], bool keep_channels_last) {
  const auto format = keep_channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  const Tensor channels_first =
      torch::stable::reshape(torch::stable::transpose(t, 1, 3), IntHeaderOnlyArrayRef(shape, 4));
  return torch::stable::contiguous(channels_first, format);
}

// The operands as the kernels read them, alive for as long as the launches need them.
template <typename T>
struct Operands {
  Tensor input, rois;
  OptionalTensor shifts;

  Operands(const RoiGeometry& g, const Tensor& input, const Tensor& rois,
           const OptionalTensor& shifts)
      : input(packed(input, g.group * g.group)), rois(in_compute_type(rois)) {
    if (shifts) this->shifts = in_compute_type(*shifts);
  }

  static Tensor in_compute_type(const Tensor& t) {
    constexpr auto type = type_of<Real<T>>();
    return torch::stable::contiguous(torch::stable::to(t, type));
  }

  RoiTask<T> task(const RoiGeometry& g) const {
    const std::optional<RoiShapes> shapes = on_device(g);
    STD_TORCH_CHECK(
        shapes.has_value(),
        "roi pooling: 2^31 and more RoIs, channels, pixels of an image, bins or parts of "
        "a RoI are not supported on CUDA");
    RoiTask<T> task{};
    task.g = *shapes;
    task.input = data<const T>(input);
    task.rois = data<const Real<T>>(rois);
    task.shifts = shifts ? data<const Real<T>>(*shifts) : nullptr;
    return task;
  }
};

// Whether all runs of channels begin at a multiple of 16 bytes.
template <typename T>
bool vectors_fit(const RoiTask<T>& task) {
  constexpr int64_t kVector = 16 / sizeof(T);
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  return task.g.out_channels / task.g.classes % kVector == 0 && aligned(task.input) &&
         aligned(task.grad) && aligned(task.output);
}

// Calls f with the number of channels that a lane handles at once.
template <typename T, typename F>
void with_vectors(const RoiTask<T>& task, F f) {
  if (vectors_fit(task))
    f(std::integral_constant<int, int(16 / sizeof(T))>());
  else
    f(std::integral_constant<int, 1>());
}

constexpr int kRoiThreads = kWarpsPerBlock * kWarp;

// Launches a kernel that gives each of so many units of each RoI a warp; several times where the
// kernel cannot count all of them.
template <typename T, typename Kernel>
void launch_for_rois(Kernel kernel, const RoiTask<T>& task, int64_t units_of_roi, Stream stream) {
  const int64_t most = rois_of_launch(units_of_roi);
  STD_TORCH_CHECK(most > 0, "segdeform: too much work for one launch");
  for (int64_t first = 0; first < task.g.rois; first += most) {
    const int64_t units = std::min<int64_t>(most, task.g.rois - first) * units_of_roi;
    launch(kernel, blocks_for(units, kWarpsPerBlock), kRoiThreads, 0, stream, task.from_roi(first),
           int32_t(units));
  }
}

template <typename T>
Tensor forward(const RoiGeometry& g, const Tensor& input, const Tensor& rois,
               const OptionalTensor& shifts) {
  const CurrentDevice device(input);
  const Operands<T> operands(g, input, rois, shifts);
  const int64_t shape[4] = {g.rois, g.out_channels, g.pooled_h, g.pooled_w};
  const Tensor output = empty_packed(input, shape, 1);
  RoiTask<T> task = operands.task(g);
  task.output = data<T>(output);
  with_vectors(task, [&](auto vec) {
    const int64_t slices = pieces_of<int64_t>(g.out_channels / g.classes, kWarp * vec());
    launch_for_rois(pool_bins<vec(), T>, task, g.pooled_h * g.pooled_w * g.classes * slices,
                    device.stream());
  });
  return unpacked(output, shape, prefers_channels_last(input));
}

template <typename T>
Tensor input_gradient(const RoiGeometry& g, RoiTask<T> task, const Tensor& input,
                      const CurrentDevice& device) {
  using R = Real<T>;
  const int64_t shape[4] = {g.batch, g.channels, g.height, g.width};
  const Tensor gradient = empty_packed(input, shape, g.group * g.group);
  task.grad_input = data<T>(gradient);
  const int64_t count = g.rois * g.classes * g.pooled_h * g.pooled_w;
  const Workspace<Box> boxes(input, count);
  const Workspace<PlacedBin<R>> bins(input, count);
  const Workspace<RoiBox> rois(input, g.rois);
  const Places<R> places{boxes.get(), bins.get(), rois.get()};
  launch(place_bins<R>, blocks_for(g.rois, kWarpsPerBlock), kRoiThreads, 0, device.stream(), task.g,
         task.rois, task.shifts, places);
  const int64_t units = tiles_of_gradient(g);
  STD_TORCH_CHECK(units <= kMostUnits, "segdeform: too much work for one launch");
  launch(gradient_of_input<T>, blocks_for(units, kWarpsPerBlock), kRoiThreads,
         kGradientSharedBytes<R>, device.stream(), task, places, int32_t(units));
  return unpacked(gradient, shape, prefers_channels_last(input));
}

template <typename T>
Tensor shift_gradient(RoiTask<T> task, const Tensor& shifts, ScalarType type,
                      const CurrentDevice& device) {
  const Tensor gradient = torch::stable::empty_like(shifts);
  task.grad_shifts = data<Real<T>>(gradient);
  const int64_t units = int64_t(task.g.classes) * task.g.part_h * task.g.part_w;
  with_vectors(task, [&](auto vec) {
    launch_for_rois(gradient_of_shifts<vec(), T>, task, units, device.stream());
  });
  return torch::stable::to(gradient, type);
}

template <typename T>
std::tuple<Tensor, Tensor> backward(const RoiGeometry& g, const Tensor& grad, const Tensor& input,
                                    const Tensor& rois, const OptionalTensor& shifts,
                                    bool need_input, bool need_shifts) {
  const CurrentDevice device(input);
  const Operands<T> operands(g, input, rois, shifts);
  const Tensor flat_grad = packed(torch::stable::to(grad, input.scalar_type()), 1);
  RoiTask<T> task = operands.task(g);
  task.grad = data<const T>(flat_grad);
  Tensor grad_input = nothing(input), grad_shifts = nothing(shifts ? *shifts : rois);
  if (need_input) grad_input = input_gradient(g, task, input, device);
  if (need_shifts)
    grad_shifts = shift_gradient(task, *operands.shifts, shifts->scalar_type(), device);
  return {grad_input, grad_shifts};
}

Tensor pool(const RoiGeometry& g, const Tensor& input, const Tensor& rois,
            const OptionalTensor& shifts) {
  check_one_device("roi pooling", input, {&rois, shifts ? &*shifts : &rois});
  return with_type(input.scalar_type(),
                   [&](auto t) { return forward<decltype(t)>(g, input, rois, shifts); });
}

std::tuple<Tensor, Tensor> pool_backward(const RoiGeometry& g, const Tensor& grad,
                                         const Tensor& input, const Tensor& rois,
                                         const OptionalTensor& shifts, bool need_input,
                                         bool need_shifts) {
  check_gradient(g, grad, shifts, need_shifts);
  check_one_device("roi pooling", input, {&grad, &rois, shifts ? &*shifts : &rois});
  return with_type(input.scalar_type(), [&](auto t) {
    return backward<decltype(t)>(g, grad, input, rois, shifts, need_input, need_shifts);
  });
}

// ---- what the dispatcher calls ----

Tensor deform_roi_pool(const Tensor& input, const Tensor& rois, const OptionalTensor& offset,
                       const Sizes& output_size, double spatial_scale, int64_t sampling_ratio,
                       double gamma) {
  return pool(aligned(input, rois, offset, output_size, spatial_scale, sampling_ratio, gamma),
              input, rois, offset);
}

std::tuple<Tensor, Tensor> deform_roi_pool_backward(const Tensor& grad, const Tensor& input,
                                                    const Tensor& rois,
                                                    const OptionalTensor& offset,
                                                    const Sizes& output_size, double spatial_scale,
                                                    int64_t sampling_ratio, double gamma,
                                                    bool need_input, bool need_offset) {
  return pool_backward(
      aligned(input, rois, offset, output_size, spatial_scale, sampling_ratio, gamma), grad, input,
      rois, offset, need_input, need_offset);
}

Tensor ps_deform_roi_pool(const Tensor& input, const Tensor& rois, const OptionalTensor& trans,
                          double spatial_scale, int64_t output_channels, int64_t group_size,
                          int64_t pooled_size, int64_t part_size, int64_t sample_per_part,
                          double trans_std) {
  return pool(position_sensitive(input, rois, trans, spatial_scale, output_channels, group_size,
                                 pooled_size, part_size, sample_per_part, trans_std),
              input, rois, trans);
}

std::tuple<Tensor, Tensor> ps_deform_roi_pool_backward(
    const Tensor& grad, const Tensor& input, const Tensor& rois, const OptionalTensor& trans,
    double spatial_scale, int64_t output_channels, int64_t group_size, int64_t pooled_size,
    int64_t part_size, int64_t sample_per_part, double trans_std, bool need_input,
    bool need_trans) {
  return pool_backward(
      position_sensitive(input, rois, trans, spatial_scale, output_channels, group_size,
                         pooled_size, part_size, sample_per_part, trans_std),
      grad, input, rois, trans, need_input, need_trans);
}

}  // namespace
}  // namespace segdeform::cuda

STABLE_TORCH_LIBRARY_IMPL(SEGDEFORM_LIBRARY, SEGDEFORM_DEVICE, library) {
  using namespace segdeform::cuda;
  library.impl("deform_roi_pool", TORCH_BOX(&deform_roi_pool));
  library.impl("deform_roi_pool_backward", TORCH_BOX(&deform_roi_pool_backward));
  library.impl("ps_deform_roi_pool", TORCH_BOX(&ps_deform_roi_pool));
  library.impl("ps_deform_roi_pool_backward", TORCH_BOX(&ps_deform_roi_pool_backward));
}
