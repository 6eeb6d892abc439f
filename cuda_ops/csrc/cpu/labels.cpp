// enlarged_labels on CPU: from tensors to units of work.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include "../tensors.h"
#include "kernels.h"
#include "transpose.h"
#include "workspace.h"

namespace segdeform::cpu {
namespace {

constexpr int64_t kByteClasses = 255, kMostClasses = 65535;

// [N, K, h, w] float32 with each class in one piece, as the kernel reads it.
Tensor planes(const Tensor& maps) {
  const Tensor converted = torch::stable::to(maps, ScalarType::Float);
  if (!prefers_channels_last(converted)) return torch::stable::contiguous(converted);
  const int64_t n = maps.size(0), k = maps.size(1), pixels = maps.size(2) * maps.size(3);
  Tensor result = empty_like_format(maps, {n, k, maps.size(2), maps.size(3)}, ScalarType::Float,
                                    MemoryFormat::Contiguous);
  constexpr int64_t kStrip = 64;
  const int64_t strips = (pixels + kStrip - 1) / kStrip;
  parallel_units(n * strips, k * kStrip, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit % strips * kStrip, start = unit / strips * k * pixels;
      transpose(std::min(kStrip, pixels - first), k,
                data<const float>(converted) + start + first * k, k,
                data<float>(result) + start + first, pixels);
    }
  });
  return result;
}

Tensor enlarged_labels(const Tensor& maps, int64_t stride, int64_t height, int64_t width) {
  STD_TORCH_CHECK(maps.dim() == 4 && maps.size(1) >= 1 && maps.size(1) <= kMostClasses,
                  "enlarged_labels: maps must be [N, 1 to 65535 classes, h, w]");
  STD_TORCH_CHECK(stride >= 1 && height >= 1 && width >= 1 &&
                      maps.size(2) == (height - 1) / stride + 1 &&
                      maps.size(3) == (width - 1) / stride + 1,
                  "enlarged_labels: the maps are not those of such a picture");
  const Tensor source = planes(maps);
  const int64_t sizes[3] = {maps.size(0), height, width};
  const bool wide = maps.size(1) > kByteClasses;
  Tensor labels =
      torch::stable::new_empty(source, {sizes, 3}, wide ? ScalarType::UInt16 : ScalarType::Byte);
  LabelTask<float> task{};
  task.maps = data<const float>(source);
  if (wide)
    task.wide_labels = data<uint16_t>(labels);
  else
    task.labels = data<uint8_t>(labels);
  task.classes = maps.size(1), task.rows = maps.size(2), task.columns = maps.size(3);
  task.stride = stride, task.height = height, task.width = width;
  const auto& kernel = kernels<float>();
  const int64_t elements = kernel.label_scratch(task);
  parallel_units(maps.size(0) * task.rows, task.classes * task.phases() * width,
                 [&](int64_t begin, int64_t end) {
                   const Buffer<float> scratch(elements);
                   for (int64_t unit = begin; unit < end; ++unit)
                     kernel.label_rows(task, unit, scratch.get());
                 });
  return labels;
}

}  // namespace
}  // namespace segdeform::cpu

STABLE_TORCH_LIBRARY_IMPL(segdeform, CPU, library) {
  library.impl("enlarged_labels", TORCH_BOX(&segdeform::cpu::enlarged_labels));
}
