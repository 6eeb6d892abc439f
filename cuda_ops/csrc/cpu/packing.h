// From the layouts of tensors to those of the matrix products, and back.
#pragma once

#include <memory>
#include <vector>

#include "kernels.h"
#include "transpose.h"
#include "workspace.h"

namespace segdeform::cpu {

// A weight [O, C/groups, T] in memory: the elements of one output follow each other, ordered by
// (channel, tap) or, channels-last, by (tap, channel).
template <typename T>
struct WeightRows {
  const T* data;
  int64_t channel_stride, tap_stride;

  const T* row(const Geometry& g, int64_t output) const {
    return data + output * g.channels_per_group() * g.taps();
  }
};

// ---- the weight, for the forward pass ----

inline int64_t packed_size(const Geometry& g, const PanelLayout& layout) {
  return g.depthwise()
             ? g.taps() * g.channels
             : g.groups * layout.size(g.taps() * g.channels_per_group(), g.outputs_per_group());
}

// [O, C/groups, T] -> per group a panel matrix [T * C/groups, O/groups]; depthwise: [T, C].
template <typename T>
void pack_weight(const Geometry& g, const WeightRows<T>& weight, const PanelLayout& layout,
                 T* packed) {
  const int64_t taps = g.taps(), inputs = g.channels_per_group(), outputs = g.outputs_per_group();
  if (g.depthwise()) return transpose(g.channels, taps, weight.data, taps, packed, g.channels);
  const int64_t depth = taps * inputs, panels = (outputs + layout.panel - 1) / layout.panel;
  std::vector<int64_t> packed_row(static_cast<size_t>(depth));  // of each element of an output
  for (int64_t c = 0; c < inputs; ++c)
    for (int64_t t = 0; t < taps; ++t)
      packed_row[size_t(c * weight.channel_stride + t * weight.tap_stride)] = t * inputs + c;
  // Blocks are transposed in cache first: neighbours of an output go to rows that lie far apart,
  // and whole rows are better written at once.
  constexpr int64_t kBlock = 64;
  const int64_t blocks = (depth + kBlock - 1) / kBlock;
  parallel_units(g.groups * panels * blocks, kBlock * layout.panel,
                 [&](int64_t begin, int64_t end) {
                   const Buffer<T> block(kBlock * layout.panel);
                   for (int64_t unit = begin; unit < end; ++unit) {
                     const int64_t group = unit / (panels * blocks), n0 = unit % blocks * kBlock;
                     const int64_t first = unit / blocks % panels * layout.panel;
                     const int64_t width = layout.width(outputs, first);
                     const int64_t used = std::min(width, outputs - first),
                                   rows = std::min(kBlock, depth - n0);
                     transpose(used, rows, weight.row(g, group * outputs + first) + n0, depth,
                               block.get(), width);
                     T* panel = packed + group * layout.size(depth, outputs) + first * depth;
                     for (int64_t n = 0; n < rows; ++n) {
                       T* row = panel + packed_row[size_t(n0 + n)] * width;
                       std::copy_n(block.get() + n * width, used, row);
                       std::fill(row + used, row + width, T(0));
                     }
                   }
                 });
}

// A hash of memory, for the weight that a packing was made of: the same for any number of threads;
// a change of any one word changes it.
inline uint64_t fingerprint(const void* data, int64_t bytes, uint64_t seed) {
  constexpr uint64_t kPrime = 0x9E3779B185EBCA87, kOther = 0xC2B2AE3D27D4EB4F;  // odd
  constexpr int64_t kBlock = 1 << 17, kLanes = 4, kStep = kLanes * sizeof(uint64_t);
  const int64_t blocks = (bytes + kBlock - 1) / kBlock;
  std::vector<uint64_t> hashes(static_cast<size_t>(blocks));
  parallel_units(blocks, kBlock / 4, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const char* from = static_cast<const char*>(data) + b * kBlock;
      const int64_t size = std::min(kBlock, bytes - b * kBlock);
      uint64_t lanes[kLanes] = {kPrime, kOther, ~kPrime, ~kOther};
      const auto add = [&](const uint64_t words[kLanes]) {
        // Turned before the product, which carries a change to higher bits alone: the highest bit,
        // a sign, would meet another sign's change unchanged.
        for (int64_t k = 0; k < kLanes; ++k) {
          const uint64_t mixed = lanes[k] ^ words[k];
          lanes[k] = (mixed << 29 | mixed >> 35) * kPrime;
        }
      };
      uint64_t words[kLanes] = {};
      int64_t i = 0;
      for (; i + kStep <= size; i += kStep) {
        __builtin_memcpy(words, from + i, kStep);
        add(words);
      }
      __builtin_memset(words, 0, kStep);
      __builtin_memcpy(words, from + i, size_t(size - i));
      add(words);
      uint64_t hash = uint64_t(b);
      for (const uint64_t lane : lanes) hash = ((hash ^ (lane >> 29) ^ lane) + kOther) * kPrime;
      hashes[size_t(b)] = hash;
    }
  });
  uint64_t hash = seed;
  for (const uint64_t part : hashes) hash = ((hash ^ (hash >> 31)) + part) * kOther;
  return hash;
}

// The weight in the layout of the forward pass: made for this call, or kept by the caller from call
// to call and made anew whenever the weight is no longer the one that it was made of. A kept one
// ends in the fingerprint of that weight, written last.
template <typename T>
class PackedWeight {
 public:
  PackedWeight(const Geometry& g, const WeightRows<T>& weight, const PanelLayout& layout)
      : own_(std::make_unique<Buffer<T>>(packed_size(g, layout))), data_(own_->get()) {
    pack_weight(g, weight, layout, data_);
  }

  PackedWeight(const Geometry& g, const WeightRows<T>& weight, const PanelLayout& layout, T* kept,
               int64_t kept_elements)
      : data_(kept) {
    const int64_t size = packed_size(g, layout), words = int64_t(sizeof(uint64_t) / sizeof(T));
    STD_TORCH_CHECK(kept_elements >= size + words, "deform_conv2d: packing has ", kept_elements,
                    " elements, and the weight needs ", size + words);
    uint64_t seed = uint64_t(sizeof(T));
    for (const int64_t fact : {g.out_channels, g.channels, g.groups, g.taps(),
                               weight.channel_stride, layout.panel, layout.lanes})
      seed = seed * 0x100000001B3 + uint64_t(fact);
    const int64_t bytes = g.out_channels * g.channels_per_group() * g.taps() * int64_t(sizeof(T));
    const uint64_t made_of = fingerprint(weight.data, bytes, seed);
    uint64_t kept_of;
    __builtin_memcpy(&kept_of, kept + size, sizeof kept_of);
    if (kept_of == made_of) return;
    pack_weight(g, weight, layout, kept);
    __builtin_memcpy(kept + size, &made_of, sizeof made_of);
  }

  const T* get() const { return data_; }

 private:
  std::unique_ptr<Buffer<T>> own_;
  T* data_;
};

// ---- the weight, for the backward pass ----

// The channels of each group, `slice_channels` at a time. Packed, a unit of the weight is a panel
// matrix [O/groups, T * channels], one of its gradient [T * channels, O/groups].
inline std::vector<WeightUnit> weight_units(const Geometry& g, const PanelLayout& layout,
                                            int64_t slice_channels) {
  const int64_t inputs = g.channels_per_group(), outputs = g.outputs_per_group();
  std::vector<WeightUnit> units;
  int64_t weight_at = 0, grad_at = 0;
  for (int64_t group = 0; group < g.groups; ++group)
    for (int64_t c = 0; c < inputs; c += slice_channels) {
      const int64_t channels = std::min(slice_channels, inputs - c);
      units.push_back({group * inputs + c, channels, group, weight_at, grad_at});
      weight_at += layout.size(outputs, g.taps() * channels);
      grad_at += layout.size(g.taps() * channels, outputs);
    }
  return units;
}

// [O, C/groups, T] -> the units.
template <typename T>
Buffer<T> transposed_weight(const Geometry& g, const WeightRows<T>& weight,
                            const PanelLayout& layout, const std::vector<WeightUnit>& units) {
  const int64_t taps = g.taps(), inputs = g.channels_per_group(), outputs = g.outputs_per_group();
  Buffer<T> packed(units.back().weight_at + layout.size(outputs, taps * units.back().channels));
  const int64_t cost = outputs * taps * units.front().channels;
  parallel_units(int64_t(units.size()), cost, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      const WeightUnit& unit = units[size_t(u)];
      const int64_t c0 = unit.first_channel % inputs, columns = taps * unit.channels;
      T* to = packed.get() + unit.weight_at;
      for (int64_t o = 0; o < outputs; ++o) {
        const T* row = weight.row(g, unit.group * outputs + o) + c0 * weight.channel_stride;
        for (int64_t t = 0; t < taps; ++t)
          for (int64_t c = 0; c < unit.channels;) {
            const int64_t n = t * unit.channels + c, n0 = n / layout.panel * layout.panel;
            const int64_t run = std::min(unit.channels - c, n0 + layout.panel - n);
            T* out = to + n0 * outputs + o * layout.width(columns, n0) + (n - n0);
            const T* from = row + c * weight.channel_stride + t * weight.tap_stride;
            for (int64_t i = 0; i < run; ++i) out[i] = from[i * weight.channel_stride];
            c += run;
          }
        const int64_t last = columns / layout.panel * layout.panel;
        if (last < columns) {
          T* out = to + last * outputs + o * layout.width(columns, last);
          std::fill(out + columns - last, out + layout.width(columns, last), T(0));
        }
      }
    }
  });
  return packed;
}

// Sums the chunks of units and turns them into [O, C/groups, T].
template <typename T>
void unpack_grad_weight(const Geometry& g, const PanelLayout& layout,
                        const std::vector<WeightUnit>& units, int64_t chunks, int64_t chunk_size,
                        T* packed, T* out) {
  const int64_t taps = g.taps(), inputs = g.channels_per_group(), outputs = g.outputs_per_group();
  constexpr int64_t kBlock = 4096;
  if (chunks > 1)
    parallel_units((chunk_size + kBlock - 1) / kBlock, kBlock * chunks,
                   [&](int64_t begin, int64_t end) {
                     const int64_t last = std::min(end * kBlock, chunk_size);
                     for (int64_t k = 1; k < chunks; ++k)
                       for (int64_t i = begin * kBlock; i < last; ++i)
                         packed[i] += packed[k * chunk_size + i];
                   });
  if (g.depthwise()) {
    transpose(taps, g.channels, packed, g.channels, out, taps);
    return;
  }
  const int64_t panels = (outputs + layout.panel - 1) / layout.panel;
  parallel_units(
      int64_t(units.size()) * panels, taps * units.front().channels * layout.panel,
      [&](int64_t begin, int64_t end) {
        constexpr int64_t kRows = 64;  // the mirror image of packed_weight
        const Buffer<T> block(kRows * layout.panel);
        for (int64_t index = begin; index < end; ++index) {
          const WeightUnit& unit = units[size_t(index / panels)];
          const int64_t o0 = index % panels * layout.panel, c0 = unit.first_channel % inputs;
          const int64_t channels = unit.channels, depth = taps * channels;
          const int64_t width = layout.width(outputs, o0);
          const T* panel = packed + unit.grad_at + o0 * depth;
          T* to = out + ((unit.group * outputs + o0) * inputs + c0) * taps;
          for (int64_t n0 = 0; n0 < depth; n0 += kRows) {
            const int64_t rows = std::min(kRows, depth - n0);
            for (int64_t i = 0; i < rows; ++i) {
              const int64_t c = (n0 + i) / taps, t = (n0 + i) % taps;
              std::copy_n(panel + (t * channels + c) * width, width, block.get() + i * width);
            }
            transpose(rows, std::min(width, outputs - o0), block.get(), width, to + n0,
                      inputs * taps);
          }
        }
      });
}

// ---- the gradient of the output ----

// [N, P*Q, O] -> the layout, rows zero-filled to whole vectors.
template <typename T>
Buffer<T> padded_grad(const Geometry& g, const T* grad, const PanelLayout& layout,
                      int64_t tile_pixels) {
  const GradLayout to_layout(g, layout, tile_pixels);
  const int64_t tiles = to_layout.tiles, outputs = g.outputs_per_group();
  Buffer<T> padded(to_layout.at(g.batch, 0, 0));
  parallel_units(g.batch * tiles, tile_pixels * g.out_channels, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit % tiles * tile_pixels;
      const int64_t pixels = std::min(tile_pixels, g.out_pixels() - first);
      const T* from = grad + (unit / tiles * g.out_pixels() + first) * g.out_channels;
      for (int64_t group = 0; group < g.groups; ++group)
        for (int64_t m = 0; m < pixels; ++m) {
          T* to =
              padded.get() + to_layout.at(unit / tiles, unit % tiles, group) + m * to_layout.stride;
          const T* row = from + m * g.out_channels + group * outputs;
          std::copy(row, row + outputs, to);
          std::fill(to + outputs, to + layout.padded(outputs), T(0));
        }
    }
  });
  return padded;
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

}  // namespace segdeform::cpu
