// deform_conv2d on CPU: from tensors to tiles of output pixels for the kernels.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <limits>
#include <optional>
#include <vector>

#include "../deform_conv2d.h"
#include "operands.h"
#include "workspace.h"

namespace segdeform::cpu {
namespace {

// The tile that lets the threads end together; large ones read the weight less often. The results
// do not depend on the choice.
int64_t forward_tile_pixels(const Geometry& g) {
  constexpr int64_t kStep = 12, kOverhead = 2;  // a multiple of all micro-kernels; in pixels
  const int64_t pixels = g.batch * g.out_pixels(), threads = torch::stable::get_num_threads();
  int64_t best = kForwardPixels, least_cost = std::numeric_limits<int64_t>::max();
  for (int64_t tile = kForwardPixels; tile >= 2 * kStep; tile -= kStep) {
    const int64_t tiles = (pixels + tile - 1) / tile, rounds = (tiles + threads - 1) / threads;
    if (rounds * (tile + kOverhead) < least_cost)
      best = tile, least_cost = rounds * (tile + kOverhead);
  }
  return best;
}

template <typename T>
Tensor forward(const Geometry& g, const Tensor& input, const Tensor& offset, const Tensor& weight,
               const std::optional<Tensor>& bias, const std::optional<Tensor>& mask,
               const std::optional<Tensor>& packing, ScalarType type) {
  const bool keep = prefers_channels_last(input);
  Tensor output = empty_like_format(input, {g.batch, g.out_channels, g.out_height, g.out_width},
                                    type, MemoryFormat::ChannelsLast);
  if (g.batch > 0) {
    const Kernels<T>& kernel = kernels<T>();
    const Operands<T> operands(g, input, offset, weight, mask, type);
    const WeightRows<T> rows = operands.weight_rows(g);
    const PackedWeight<T> packed =
        packing ? PackedWeight<T>(g, rows, kernel.layout, data<T>(*packing), packing->numel())
                : PackedWeight<T>(g, rows, kernel.layout);
    std::optional<Tensor> flat_bias;
    if (bias) flat_bias = torch::stable::contiguous(torch::stable::to(*bias, type));
    const ForwardTask<T> task{g,
                              operands.sampling(),
                              forward_tile_pixels(g),
                              packed.get(),
                              bias ? data<const T>(*flat_bias) : nullptr,
                              data<T>(output)};
    const int64_t tiles = (g.batch * g.out_pixels() + task.tile_pixels - 1) / task.tile_pixels;
    const int64_t macs = g.out_channels * g.channels_per_group() * g.taps();
    parallel_units(tiles, task.tile_pixels * macs / 8, [&](int64_t begin, int64_t end) {
      const Buffer<T> scratch(kernel.forward_scratch(task));
      for (int64_t tile = begin; tile < end; ++tile) kernel.forward_tile(task, tile, scratch.get());
    });
  }
  return finished(output, input.scalar_type(), keep);
}

Tensor any_forward(const Tensor& input, const Tensor& offset, const Tensor& weight,
                   const std::optional<Tensor>& bias, const std::optional<Tensor>& mask,
                   const std::optional<Tensor>& packing, const std::vector<int64_t>& stride,
                   const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                   int64_t groups, int64_t offset_groups) {
  const Geometry g =
      geometry_of(input, offset, weight, mask, stride, padding, dilation, groups, offset_groups);
  const bool wide = input.scalar_type() == ScalarType::Double;
  const ScalarType type = wide ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(!packing || (packing->scalar_type() == type && packing->is_contiguous()),
                  "deform_conv2d: packing must be contiguous and of the type computed in");
  return wide ? forward<double>(g, input, offset, weight, bias, mask, packing, type)
              : forward<float>(g, input, offset, weight, bias, mask, packing, type);
}

Tensor deform_conv2d(const Tensor& input, const Tensor& offset, const Tensor& weight,
                     const std::optional<Tensor>& bias, const std::optional<Tensor>& mask,
                     const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                     const std::vector<int64_t>& dilation, int64_t groups, int64_t offset_groups) {
  return any_forward(input, offset, weight, bias, mask, std::nullopt, stride, padding, dilation,
                     groups, offset_groups);
}

Tensor deform_conv2d_packed(const Tensor& input, const Tensor& offset, const Tensor& weight,
                            const std::optional<Tensor>& bias, const std::optional<Tensor>& mask,
                            const Tensor& packing, const std::vector<int64_t>& stride,
                            const std::vector<int64_t>& padding,
                            const std::vector<int64_t>& dilation, int64_t groups,
                            int64_t offset_groups) {
  return any_forward(input, offset, weight, bias, mask, packing, stride, padding, dilation, groups,
                     offset_groups);
}

}  // namespace
}  // namespace segdeform::cpu

STABLE_TORCH_LIBRARY_IMPL(segdeform, CPU, library) {
  library.impl("deform_conv2d", TORCH_BOX(&segdeform::cpu::deform_conv2d));
  library.impl("deform_conv2d_packed", TORCH_BOX(&segdeform::cpu::deform_conv2d_packed));
}
