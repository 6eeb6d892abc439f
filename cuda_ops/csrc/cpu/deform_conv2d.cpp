// deform_conv2d and its backward on CPU: from tensors to units of work for the kernels.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "../deform_conv2d.h"
#include "kernels.h"
#include "packing.h"
#include "workspace.h"

namespace segdeform::cpu {
namespace {

// The operands in the compute type, alive for as long as the kernels point into them.
template <typename T>
struct Operands {
  Tensor input, offset, weight;
  std::optional<Tensor> mask;
  std::vector<T> zeros;

  Operands(const Geometry& g, const Tensor& input, const Tensor& offset, const Tensor& weight,
           const std::optional<Tensor>& mask, ScalarType type)
      : input(channels_last(input, type)),
        offset(torch::stable::to(offset, type)),
        weight(torch::stable::to(weight, type)),
        zeros(size_t(g.channels), T(0)) {
    if (mask) this->mask = torch::stable::to(*mask, type);
    if (!prefers_channels_last(this->weight))
      this->weight = torch::stable::contiguous(this->weight);
  }

  Sampling<T> sampling() const {
    Sampling<T> s{};
    s.input = static_cast<const T*>(input.data_ptr());
    s.offset = static_cast<const T*>(offset.data_ptr());
    s.mask = mask ? static_cast<const T*>(mask->data_ptr()) : nullptr;
    for (int d = 0; d < 4; ++d) s.offset_stride[d] = offset.stride(d);
    for (int d = 0; d < 4; ++d) s.mask_stride[d] = mask ? mask->stride(d) : 0;
    s.zeros = zeros.data();
    return s;
  }

  WeightRows<T> weight_rows(const Geometry& g) const {
    const bool last = prefers_channels_last(weight);
    return {static_cast<const T*>(weight.data_ptr()), last ? 1 : g.taps(),
            last ? g.channels_per_group() : 1};
  }
};

// ---- forward ----

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
        packing ? PackedWeight<T>(g, rows, kernel.layout, static_cast<T*>(packing->data_ptr()),
                                  packing->numel())
                : PackedWeight<T>(g, rows, kernel.layout);
    std::optional<Tensor> flat_bias;
    if (bias) flat_bias = torch::stable::contiguous(torch::stable::to(*bias, type));
    const ForwardTask<T> task{g,
                              operands.sampling(),
                              forward_tile_pixels(g),
                              packed.get(),
                              bias ? static_cast<const T*>(flat_bias->data_ptr()) : nullptr,
                              static_cast<T*>(output.data_ptr())};
    const int64_t tiles = (g.batch * g.out_pixels() + task.tile_pixels - 1) / task.tile_pixels;
    const int64_t macs = g.out_channels * g.channels_per_group() * g.taps();
    parallel_units(tiles, task.tile_pixels * macs / 8, [&](int64_t begin, int64_t end) {
      const Buffer<T> scratch(kernel.forward_scratch(task));
      for (int64_t tile = begin; tile < end; ++tile) kernel.forward_tile(task, tile, scratch.get());
    });
  }
  return finished(output, input.scalar_type(), keep);
}

// ---- backward ----

// How the backward is cut: slices of channels, times chunks of images where slices are few.
// It depends on the shape alone, so that the order of every sum does.
struct Cut {
  std::vector<Slice> slices;
  int64_t slice_channels, chunks;
};

Cut cut_backward(const Geometry& g) {
  constexpr int64_t kEnoughSlices = 8, kEnoughUnits = 16;
  Cut cut{};
  const int64_t widest = g.depthwise() ? 128 : 64;
  cut.slice_channels = g.channels >= kEnoughSlices * widest ? widest : 32;
  const int64_t inputs = g.depthwise() ? 1 : g.channels_per_group();
  const int64_t step =
      inputs < cut.slice_channels ? cut.slice_channels / inputs * inputs : cut.slice_channels;
  for (int64_t c = 0; c < g.channels;) {
    const int64_t group_end = inputs > cut.slice_channels ? (c / inputs + 1) * inputs : g.channels;
    const int64_t channels = std::min(step, group_end - c);
    cut.slices.push_back({c, channels});
    c += channels;
  }
  const int64_t slices = int64_t(cut.slices.size());
  cut.chunks = slices >= kEnoughSlices ? 1
                                       : std::clamp<int64_t>((kEnoughUnits + slices - 1) / slices,
                                                             1, std::max<int64_t>(g.batch, 1));
  return cut;
}

// Where the per-slice sums of sample gradients lie: one block [N, groups it overlaps, T, 3, P*Q]
// a slice.
struct SampleBlocks {
  std::vector<int64_t> start, first_group, groups;
  int64_t total = 0;

  SampleBlocks(const Geometry& g, const std::vector<Slice>& slices) {
    const int64_t size = g.channels_per_offset_group();
    for (const Slice& s : slices) {
      start.push_back(total);
      first_group.push_back(s.first_channel / size);
      groups.push_back((s.first_channel + s.channels - 1) / size - first_group.back() + 1);
      total += g.batch * groups.back() * g.taps() * 3 * g.out_pixels();
    }
  }
};

// Sums the blocks of all slices, in the order of the slices, into [N, 2*G*T, P, Q], [N, G*T, P, Q].
template <typename T>
void reduce_samples(const Geometry& g, const SampleBlocks& blocks, const T* sums, T* grad_offset,
                    T* grad_mask) {
  const int64_t pixels = g.out_pixels(), taps = g.taps();
  parallel_units(g.batch * g.offset_groups * taps, 3 * pixels, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / (g.offset_groups * taps);
      const int64_t group = unit / taps % g.offset_groups, t = unit % taps;
      T* parts[3] = {grad_offset ? grad_offset + 2 * unit * pixels : nullptr,
                     grad_offset ? grad_offset + (2 * unit + 1) * pixels : nullptr,
                     grad_mask ? grad_mask + unit * pixels : nullptr};
      for (int k = 0; k < 3; ++k) {
        if (!parts[k]) continue;
        std::fill(parts[k], parts[k] + pixels, T(0));
        for (size_t s = 0; s < blocks.start.size(); ++s) {
          const int64_t inside = group - blocks.first_group[s];
          if (inside < 0 || inside >= blocks.groups[s]) continue;
          const T* from = sums + blocks.start[s] +
                          (((n * blocks.groups[s] + inside) * taps + t) * 3 + k) * pixels;
          for (int64_t p = 0; p < pixels; ++p) parts[k][p] += from[p];
        }
      }
    }
  });
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Geometry& g, const Tensor& grad, const Tensor& input, const Tensor& offset,
    const Tensor& weight, const std::optional<Tensor>& mask, const Needs& need, ScalarType type) {
  const Kernels<T>& kernel = kernels<T>();
  const PanelLayout layout = kernel.layout;
  const Operands<T> operands(g, input, offset, weight, mask, type);
  const Tensor flat_grad = channels_last(grad, type);
  const T* grad_data = static_cast<const T*>(flat_grad.data_ptr());
  const Cut cut = cut_backward(g);
  const SampleBlocks blocks(g, cut.slices);

  BackwardTask<T> task{};
  task.g = g;
  task.sampling = operands.sampling();
  task.tile_pixels = kBackwardPixels;
  task.slice_channels = cut.slice_channels;

  const WeightRows<T> rows = operands.weight_rows(g);
  std::optional<Buffer<T>> packed_w, packed_g;
  if (g.depthwise()) {
    packed_w.emplace(packed_size(g, layout));
    pack_weight(g, rows, layout, packed_w->get());
    task.grad = grad_data;
  } else {
    if (need.input || need.samples())
      packed_w.emplace(transposed_weight(g, rows, layout, cut.slice_channels));
    packed_g.emplace(padded_grad(g, grad_data, layout, task.tile_pixels));
    task.grad = packed_g->get();
  }
  task.weight = packed_w ? packed_w->get() : nullptr;

  Tensor grad_input, grad_offset, grad_weight, grad_bias, grad_mask;
  const MemoryFormat plain = MemoryFormat::Contiguous;
  if (need.input) {
    grad_input = empty_like_format(input, {g.batch, g.channels, g.height, g.width}, type,
                                   MemoryFormat::ChannelsLast);
    torch::stable::zero_(grad_input);
    task.grad_input = static_cast<T*>(grad_input.data_ptr());
  }
  std::unique_ptr<Buffer<T>> samples, weight_sums;
  if (need.samples()) samples = zeroed<T>(blocks.total);
  const int64_t chunk_size = g.depthwise()
                                 ? g.taps() * g.channels
                                 : g.taps() * g.channels * layout.padded(g.outputs_per_group());
  if (need.weight) weight_sums = zeroed<T>(cut.chunks * chunk_size);

  const int64_t slices = int64_t(cut.slices.size());
  const int64_t macs = g.out_pixels() * cut.slice_channels * g.taps() * g.outputs_per_group();
  parallel_units(slices * cut.chunks, g.batch * macs / (4 * cut.chunks),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t unit = begin; unit < end; ++unit) {
                     const size_t s = size_t(unit % slices);
                     const int64_t chunk = unit / slices;
                     BackwardTask<T> mine = task;
                     mine.first_image = g.batch * chunk / cut.chunks;
                     mine.images = g.batch * (chunk + 1) / cut.chunks - mine.first_image;
                     if (samples) mine.grad_samples = samples->get() + blocks.start[s];
                     if (weight_sums) mine.grad_weight = weight_sums->get() + chunk * chunk_size;
                     const Buffer<T> scratch(kernel.backward_scratch(mine, cut.slices[s]));
                     kernel.backward_slice(mine, cut.slices[s], scratch.get());
                   }
                 });

  const auto empty = [&](const Tensor& like, std::array<int64_t, 4> sizes) {
    return empty_like_format(like, sizes, type, plain);
  };
  const std::array<int64_t, 4> mask_sizes = {g.batch, g.offset_groups * g.taps(), g.out_height,
                                             g.out_width};
  if (need.offset)
    grad_offset = empty(offset, {g.batch, 2 * mask_sizes[1], g.out_height, g.out_width});
  if (need.mask) grad_mask = empty(offset, mask_sizes);
  if (need.samples())
    reduce_samples(g, blocks, samples->get(),
                   need.offset ? static_cast<T*>(grad_offset.data_ptr()) : nullptr,
                   need.mask ? static_cast<T*>(grad_mask.data_ptr()) : nullptr);
  if (need.weight) {
    grad_weight = empty(weight, {g.out_channels, g.channels_per_group(), g.kernel_h, g.kernel_w});
    unpack_grad_weight(g, layout, cut.slice_channels, cut.chunks, chunk_size, weight_sums->get(),
                       static_cast<T*>(grad_weight.data_ptr()));
  }

  if (need.bias) {
    const int64_t sizes[1] = {g.out_channels};
    grad_bias = torch::stable::new_empty(weight, IntHeaderOnlyArrayRef(sizes, 1), type);
    sum_grad(g, grad_data, static_cast<T*>(grad_bias.data_ptr()));
  }

  return {need.input ? finished(grad_input, input.scalar_type(), prefers_channels_last(input))
                     : nothing(input),
          need.offset ? finished(grad_offset, offset.scalar_type(), false) : nothing(offset),
          need.weight ? finished(grad_weight, weight.scalar_type(), false) : nothing(weight),
          need.bias ? finished(grad_bias, weight.scalar_type(), false) : nothing(weight),
          need.mask ? finished(grad_mask, mask->scalar_type(), false) : nothing(offset)};
}

// ---- what the dispatcher calls ----

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

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> deform_conv2d_backward(
    const Tensor& grad, const Tensor& input, const Tensor& offset, const Tensor& weight,
    const std::optional<Tensor>& mask, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups,
    int64_t offset_groups, bool need_input, bool need_offset, bool need_weight, bool need_bias,
    bool need_mask) {
  const Geometry g =
      geometry_of(input, offset, weight, mask, stride, padding, dilation, groups, offset_groups);
  const Needs need{need_input, need_offset, need_weight, need_bias, need_mask};
  check_backward(g, grad, mask, need);
  if (input.scalar_type() == ScalarType::Double)
    return backward<double>(g, grad, input, offset, weight, mask, need, ScalarType::Double);
  return backward<float>(g, grad, input, offset, weight, mask, need, ScalarType::Float);
}

}  // namespace
}  // namespace segdeform::cpu

STABLE_TORCH_LIBRARY_IMPL(segdeform, CPU, library) {
  library.impl("deform_conv2d", TORCH_BOX(&segdeform::cpu::deform_conv2d));
  library.impl("deform_conv2d_packed", TORCH_BOX(&segdeform::cpu::deform_conv2d_packed));
  library.impl("deform_conv2d_backward", TORCH_BOX(&segdeform::cpu::deform_conv2d_backward));
}
