// deform_conv2d and its backward on CPU: from tensors to units of work for the kernels.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <cstdlib>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "kernels.h"

namespace segdeform::cpu {
namespace {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Memory for the kernels: aligned to cache lines, not initialised.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t elements)
      : data_(static_cast<T*>(std::aligned_alloc(64, bytes(elements)))) {
    STD_TORCH_CHECK(data_ != nullptr, "deform_conv2d: out of memory, ", bytes(elements), " bytes");
  }
  T* get() const { return data_.get(); }

 private:
  static size_t bytes(int64_t elements) { return (size_t(elements) * sizeof(T) + 127) / 64 * 64; }
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
};

// Calls f(begin, end) over the units on torch's threads. `cost` is the work of one unit in
// elementary operations: waking a thread pays from some ten thousand on.
template <typename F>
void parallel_units(int64_t units, int64_t cost, F f) {
  torch::stable::parallel_for(0, units, std::max<int64_t>(1, 30000 / std::max<int64_t>(1, cost)),
                              f);
}

template <typename T>
std::unique_ptr<Buffer<T>> zeroed(int64_t elements) {
  auto buffer = std::make_unique<Buffer<T>>(elements);
  constexpr int64_t kBlock = 1 << 16;
  parallel_units((elements + kBlock - 1) / kBlock, kBlock, [&](int64_t begin, int64_t end) {
    std::fill(buffer->get() + begin * kBlock, buffer->get() + std::min(end * kBlock, elements),
              T(0));
  });
  return buffer;
}

// Channels-last in memory and not also contiguous; dimensions of size 1 decide nothing.
bool prefers_channels_last(const Tensor& t) {
  if (t.is_contiguous()) return false;
  int64_t expected = 1;
  for (int d : {1, 3, 2, 0}) {
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

Tensor channels_last(const Tensor& t, ScalarType type) {
  return torch::stable::contiguous(torch::stable::to(t, type), MemoryFormat::ChannelsLast);
}

Tensor empty_like_format(const Tensor& like, std::array<int64_t, 4> sizes, ScalarType type,
                         MemoryFormat format) {
  return torch::stable::empty(IntHeaderOnlyArrayRef(sizes.data(), 4), type, std::nullopt,
                              like.device(), std::nullopt, format);
}

// To the dtype and, unless channels-last is wanted, to contiguous memory.
Tensor finished(const Tensor& t, ScalarType type, bool keep_channels_last) {
  const Tensor cast = torch::stable::to(t, type);
  return keep_channels_last ? cast : torch::stable::contiguous(cast);
}

Geometry geometry_of(const Tensor& input, const Tensor& offset, const Tensor& weight,
                     const std::optional<Tensor>& mask, const std::vector<int64_t>& stride,
                     const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                     int64_t groups, int64_t offset_groups) {
  STD_TORCH_CHECK(input.dim() == 4 && offset.dim() == 4 && weight.dim() == 4,
                  "deform_conv2d: input, offset and weight must have 4 dimensions");
  STD_TORCH_CHECK(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2,
                  "deform_conv2d: stride, padding and dilation must be pairs");
  Geometry g{};
  g.batch = input.size(0), g.channels = input.size(1);
  g.height = input.size(2), g.width = input.size(3);
  g.out_channels = weight.size(0);
  g.kernel_h = weight.size(2), g.kernel_w = weight.size(3);
  g.stride_h = stride[0], g.stride_w = stride[1];
  g.pad_h = padding[0], g.pad_w = padding[1];
  g.dilation_h = dilation[0], g.dilation_w = dilation[1];
  g.groups = groups, g.offset_groups = offset_groups;
  STD_TORCH_CHECK(groups > 0 && offset_groups > 0 && g.stride_h > 0 && g.stride_w > 0 &&
                      g.dilation_h > 0 && g.dilation_w > 0 && g.kernel_h > 0 && g.kernel_w > 0,
                  "deform_conv2d: groups, stride, dilation and kernel sizes must be positive");
  constexpr int64_t kFar = int64_t(1) << 24;  // beyond, float32 cannot tell neighbouring pixels
  STD_TORCH_CHECK(g.height < kFar && g.width < kFar && g.pad_h < kFar && g.pad_w < kFar &&
                      g.dilation_h < kFar && g.dilation_w < kFar && g.kernel_h < 64 * 1024 &&
                      g.kernel_w < 64 * 1024 && g.dilation_h * g.kernel_h < kFar &&
                      g.dilation_w * g.kernel_w < kFar,
                  "deform_conv2d: sizes, padding and dilation must be below 2^24");
  g.out_height = (g.height + 2 * g.pad_h - (g.dilation_h * (g.kernel_h - 1) + 1)) / g.stride_h + 1;
  g.out_width = (g.width + 2 * g.pad_w - (g.dilation_w * (g.kernel_w - 1) + 1)) / g.stride_w + 1;
  const auto is = [](const Tensor& t, int64_t n, int64_t c, int64_t h, int64_t w) {
    return t.size(0) == n && t.size(1) == c && t.size(2) == h && t.size(3) == w;
  };
  STD_TORCH_CHECK(g.out_height > 0 && g.out_width > 0 && g.channels > 0 && g.out_channels > 0 &&
                      g.channels % groups == 0 && g.out_channels % groups == 0 &&
                      g.channels % offset_groups == 0 && weight.size(1) == g.channels_per_group() &&
                      is(offset, g.batch, 2 * offset_groups * g.taps(), g.out_height, g.out_width),
                  "deform_conv2d: the shapes of input, offset and weight do not fit");
  if (mask)
    STD_TORCH_CHECK(
        mask->dim() == 4 && is(*mask, g.batch, offset_groups * g.taps(), g.out_height, g.out_width),
        "deform_conv2d: the shape of mask does not fit");
  STD_TORCH_CHECK(g.in_pixels() < (int64_t(1) << 31) - 2 * g.width,
                  "deform_conv2d: images of 2^31 pixels or more are not supported");
  return g;
}

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
    // One stride must lead from tap to tap.
    if (g.kernel_h > 1 && this->weight.stride(2) != g.kernel_w * this->weight.stride(3))
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

  const T* weight_data() const { return static_cast<const T*>(weight.data_ptr()); }
  int64_t tap_stride(const Geometry& g) const {
    return g.kernel_w > 1 ? weight.stride(3) : weight.stride(2);
  }
};

// ---- forward ----

// [O, C/groups, T] -> per group a panel matrix [T * C/groups, O/groups]; depthwise: [T, C].
template <typename T>
Buffer<T> packed_weight(const Geometry& g, const Operands<T>& operands, const PanelLayout& layout) {
  const T* weight = operands.weight_data();
  const int64_t stride_o = operands.weight.stride(0), stride_c = operands.weight.stride(1);
  const int64_t stride_t = operands.tap_stride(g), taps = g.taps();
  if (g.depthwise()) {
    Buffer<T> packed(taps * g.channels);
    for (int64_t t = 0; t < taps; ++t)
      for (int64_t c = 0; c < g.channels; ++c)
        packed.get()[t * g.channels + c] = weight[c * stride_o + t * stride_t];
    return packed;
  }
  const int64_t inputs = g.channels_per_group(), outputs = g.outputs_per_group();
  const int64_t depth = taps * inputs, panels = (outputs + layout.panel - 1) / layout.panel;
  Buffer<T> packed(g.groups * layout.size(depth, outputs));
  constexpr int64_t kBlock = 32;  // channels packed together: reads stay in cache over the taps
  const int64_t blocks = (inputs + kBlock - 1) / kBlock;
  parallel_units(g.groups * panels * blocks, kBlock * taps * layout.panel,
                 [&](int64_t begin, int64_t end) {
                   for (int64_t unit = begin; unit < end; ++unit) {
                     const int64_t group = unit / (panels * blocks),
                                   first = unit / blocks % panels * layout.panel;
                     const int64_t c0 = unit % blocks * kBlock, c1 = std::min(c0 + kBlock, inputs);
                     const int64_t width = layout.width(outputs, first),
                                   used = std::min(width, outputs - first);
                     const T* from = weight + (group * outputs + first) * stride_o;
                     T* to = packed.get() + group * layout.size(depth, outputs) + first * depth;
                     for (int64_t c = c0; c < c1; ++c)
                       for (int64_t t = 0; t < taps; ++t) {
                         const T* column = from + c * stride_c + t * stride_t;
                         T* row = to + (t * inputs + c) * width;
                         for (int64_t o = 0; o < used; ++o) row[o] = column[o * stride_o];
                         for (int64_t o = used; o < width; ++o) row[o] = T(0);
                       }
                   }
                 });
  return packed;
}

// Enough tiles to share among many cores; the results do not depend on the choice.
int64_t forward_tile_pixels(const Geometry& g) {
  const int64_t pixels = g.batch * g.out_pixels();
  for (int64_t tile : {kForwardPixels, kForwardPixels / 2})
    if (pixels >= 16 * tile) return tile;
  return kForwardPixels / 4;
}

template <typename T>
Tensor forward(const Geometry& g, const Tensor& input, const Tensor& offset, const Tensor& weight,
               const std::optional<Tensor>& bias, const std::optional<Tensor>& mask,
               ScalarType type) {
  const bool keep = prefers_channels_last(input);
  Tensor output = empty_like_format(input, {g.batch, g.out_channels, g.out_height, g.out_width},
                                    type, MemoryFormat::ChannelsLast);
  if (g.batch > 0) {
    const Kernels<T>& kernel = kernels<T>();
    const Operands<T> operands(g, input, offset, weight, mask, type);
    const Buffer<T> packed = packed_weight(g, operands, kernel.layout);
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

// Calls f(first channel, channels, elements before it) for every unit: the channels of a group,
// `slice_channels` at a time. Elements are counted in a packing of `outputs` rows a unit.
template <typename F>
void for_units(const Geometry& g, const PanelLayout& layout, int64_t slice_channels, F f) {
  const int64_t inputs = g.channels_per_group();
  int64_t before = 0;
  for (int64_t group = 0; group < g.groups; ++group)
    for (int64_t c = 0; c < inputs; c += slice_channels) {
      const int64_t channels = std::min(slice_channels, inputs - c);
      f(group * inputs + c, channels, before);
      before += layout.size(g.outputs_per_group(), g.taps() * channels);
    }
}

// [O, C/groups, T] -> per unit a panel matrix [O/groups, T * channels].
template <typename T>
Buffer<T> transposed_weight(const Geometry& g, const Operands<T>& operands,
                            const PanelLayout& layout, int64_t slice_channels) {
  struct Unit {
    int64_t first, channels, before;
  };
  std::vector<Unit> units;
  int64_t total = 0;
  for_units(g, layout, slice_channels, [&](int64_t first, int64_t channels, int64_t before) {
    units.push_back({first, channels, before});
    total = before + layout.size(g.outputs_per_group(), g.taps() * channels);
  });
  Buffer<T> packed(total);
  const T* weight = operands.weight_data();
  const int64_t stride_o = operands.weight.stride(0), stride_c = operands.weight.stride(1);
  const int64_t stride_t = operands.tap_stride(g), outputs = g.outputs_per_group();
  parallel_units(
      int64_t(units.size()), outputs * g.taps() * slice_channels, [&](int64_t begin, int64_t end) {
        for (int64_t u = begin; u < end; ++u) {
          const Unit& unit = units[size_t(u)];
          const int64_t group = unit.first / g.channels_per_group();
          const int64_t inside = unit.first % g.channels_per_group();
          const int64_t columns = g.taps() * unit.channels;
          for (int64_t o = 0; o < outputs; ++o) {
            const T* row = weight + (group * outputs + o) * stride_o + inside * stride_c;
            for (int64_t n0 = 0; n0 < columns; n0 += layout.panel) {
              const int64_t width = layout.width(columns, n0);
              T* to = packed.get() + unit.before + n0 * outputs + o * width;
              for (int64_t i = 0; i < width; ++i) {
                const int64_t n = n0 + i;
                to[i] = n < columns
                            ? row[n % unit.channels * stride_c + n / unit.channels * stride_t]
                            : T(0);
              }
            }
          }
        }
      });
  return packed;
}

// [N, P*Q, O] -> per image, tile and group a panel matrix [tile_pixels, O/groups].
template <typename T>
Buffer<T> packed_grad(const Geometry& g, const T* grad, const PanelLayout& layout,
                      int64_t tile_pixels) {
  const int64_t tiles = (g.out_pixels() + tile_pixels - 1) / tile_pixels;
  const int64_t outputs = g.outputs_per_group(), size = layout.size(tile_pixels, outputs);
  Buffer<T> packed(g.batch * tiles * g.groups * size);
  parallel_units(g.batch * tiles, tile_pixels * g.out_channels, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit % tiles * tile_pixels;
      const int64_t pixels = std::min(tile_pixels, g.out_pixels() - first);
      const T* from = grad + (unit / tiles * g.out_pixels() + first) * g.out_channels;
      for (int64_t group = 0; group < g.groups; ++group)
        for (int64_t o = 0; o < outputs; o += layout.panel) {
          const int64_t width = layout.width(outputs, o), used = std::min(width, outputs - o);
          T* to = packed.get() + (unit * g.groups + group) * size + o * tile_pixels;
          for (int64_t m = 0; m < pixels; ++m) {
            const T* row = from + m * g.out_channels + group * outputs + o;
            std::copy(row, row + used, to + m * width);
            std::fill(to + m * width + used, to + (m + 1) * width, T(0));
          }
        }
    }
  });
  return packed;
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

// Sums the chunks and turns the packed gradient into [O, C/groups, kh, kw].
template <typename T>
void unpack_grad_weight(const Geometry& g, const PanelLayout& layout, int64_t slice_channels,
                        int64_t chunks, int64_t chunk_size, const T* packed, T* out) {
  const int64_t taps = g.taps(), inputs = g.channels_per_group(), outputs = g.outputs_per_group();
  parallel_units(g.channels, taps * outputs * chunks, [&](int64_t begin, int64_t end) {
    for (int64_t channel = begin; channel < end; ++channel) {
      const int64_t group = channel / inputs, c = channel % inputs;
      const int64_t first = c / slice_channels * slice_channels;
      const int64_t channels = std::min(slice_channels, inputs - first), rows = taps * channels;
      for (int64_t t = 0; t < taps; ++t)
        for (int64_t o = 0; o < outputs; ++o) {
          T sum = 0;
          for (int64_t k = 0; k < chunks; ++k) {
            const T* from = packed + k * chunk_size;
            if (g.depthwise()) {
              sum += from[t * g.channels + channel];
              continue;
            }
            const int64_t panel = o / layout.panel * layout.panel;
            const int64_t unit = (group * inputs + first) * taps * layout.padded(outputs);
            sum += from[unit + panel * rows +
                        (t * channels + c - first) * layout.width(outputs, panel) + o - panel];
          }
          out[((group * outputs + o) * inputs + c) * taps + t] = sum;
        }
    }
  });
}

// [N, P*Q, O] -> [O], summed in blocks of a fixed size, so in an order that no thread count
// changes.
template <typename T>
void sum_grad(const Geometry& g, const T* grad, T* out) {
  constexpr int64_t kBlock = 1024;
  const int64_t pixels = g.batch * g.out_pixels(), blocks = (pixels + kBlock - 1) / kBlock;
  const auto sums = zeroed<T>(blocks * g.out_channels);
  parallel_units(blocks, kBlock * g.out_channels, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin * kBlock; p < std::min(end * kBlock, pixels); ++p) {
      T* sum = sums->get() + p / kBlock * g.out_channels;
      for (int64_t o = 0; o < g.out_channels; ++o) sum[o] += grad[p * g.out_channels + o];
    }
  });
  std::fill(out, out + g.out_channels, T(0));
  for (int64_t i = 0; i < blocks * g.out_channels; ++i) out[i % g.out_channels] += sums->get()[i];
}

struct Needs {
  bool input, offset, weight, bias, mask;
  bool samples() const { return offset || mask; }
};

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

  std::optional<Buffer<T>> packed_w, packed_g;
  if (g.depthwise()) {
    packed_w.emplace(packed_weight(g, operands, layout));
    task.grad = grad_data;
  } else {
    if (need.input || need.samples())
      packed_w.emplace(transposed_weight(g, operands, layout, cut.slice_channels));
    packed_g.emplace(packed_grad(g, grad_data, layout, task.tile_pixels));
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

  const auto nothing = [](const Tensor& like) {
    const int64_t none[1] = {0};
    return torch::stable::new_empty(like, IntHeaderOnlyArrayRef(none, 1));
  };
  return {need.input ? finished(grad_input, input.scalar_type(), prefers_channels_last(input))
                     : nothing(input),
          need.offset ? finished(grad_offset, offset.scalar_type(), false) : nothing(offset),
          need.weight ? finished(grad_weight, weight.scalar_type(), false) : nothing(weight),
          need.bias ? finished(grad_bias, weight.scalar_type(), false) : nothing(weight),
          need.mask ? finished(grad_mask, mask->scalar_type(), false) : nothing(offset)};
}

// ---- what the dispatcher calls ----

Tensor deform_conv2d(const Tensor& input, const Tensor& offset, const Tensor& weight,
                     const std::optional<Tensor>& bias, const std::optional<Tensor>& mask,
                     const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                     const std::vector<int64_t>& dilation, int64_t groups, int64_t offset_groups) {
  const Geometry g =
      geometry_of(input, offset, weight, mask, stride, padding, dilation, groups, offset_groups);
  if (input.scalar_type() == ScalarType::Double)
    return forward<double>(g, input, offset, weight, bias, mask, ScalarType::Double);
  return forward<float>(g, input, offset, weight, bias, mask, ScalarType::Float);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> deform_conv2d_backward(
    const Tensor& grad, const Tensor& input, const Tensor& offset, const Tensor& weight,
    const std::optional<Tensor>& mask, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups,
    int64_t offset_groups, bool need_input, bool need_offset, bool need_weight, bool need_bias,
    bool need_mask) {
  const Geometry g =
      geometry_of(input, offset, weight, mask, stride, padding, dilation, groups, offset_groups);
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == g.batch && grad.size(1) == g.out_channels &&
                      grad.size(2) == g.out_height && grad.size(3) == g.out_width,
                  "deform_conv2d_backward: the shape of grad does not fit");
  STD_TORCH_CHECK(mask.has_value() || !need_mask, "deform_conv2d_backward: there is no mask");
  const Needs need{need_input, need_offset, need_weight, need_bias, need_mask};
  if (input.scalar_type() == ScalarType::Double)
    return backward<double>(g, grad, input, offset, weight, mask, need, ScalarType::Double);
  return backward<float>(g, grad, input, offset, weight, mask, need, ScalarType::Float);
}

}  // namespace
}  // namespace segdeform::cpu

STABLE_TORCH_LIBRARY_IMPL(segdeform, CPU, library) {
  library.impl("deform_conv2d", TORCH_BOX(&segdeform::cpu::deform_conv2d));
  library.impl("deform_conv2d_backward", TORCH_BOX(&segdeform::cpu::deform_conv2d_backward));
}
