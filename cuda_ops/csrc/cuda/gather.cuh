// The columns of the convolution: samples laid out as rows of matrices, channels last.
#pragma once

#include "sampling.cuh"

namespace segdeform::cuda {

// [groups, rows, T, channels of a group]: for each weight group one matrix with a row for each
// output pixel. A slice of channels covers whole groups, or a part of one.
template <typename T>
struct Columns {
  T* data;
  int32_t first_channel, channels, group_channels;
  int32_t rows, taps;

  constexpr int32_t row_stride() const { return taps * group_channels; }
  constexpr T* at(int32_t channel, int64_t row) const {  // of the first tap; the next is
    const int32_t k = channel - first_channel;           // group_channels further
    const int32_t group = channels == group_channels ? 0 : k / group_channels;  // spares dividing
    return data + (int64_t(group) * rows + row) * row_stride() + k - group * group_channels;
  }
};

template <typename T>
Columns<T> columns_of(T* memory, const Geometry& g, const Slice& slice, int64_t rows) {
  return {memory,
          int32_t(slice.first_channel),
          int32_t(slice.channels),
          int32_t(slice.group_channels),
          int32_t(rows),
          int32_t(g.taps())};
}

constexpr int kGatherBlocks = 4;  // on a multiprocessor

// Grid: tiles of pixels, pieces of the slice, kSliceVectors vectors of a piece.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads, kGatherBlocks)
    gather_columns(Shapes g, Sampling<T> s, Rows rows, Columns<T> columns) {
  using R = Real<T>;
  Sample<R>* staged = shared_memory<Sample<R>>();
  const auto [piece, first_row, pixels, first_pixel] =
      tile_of_block(g, rows, columns.first_channel, columns.channels);
  const int first_vector = int(blockIdx.z) * kSliceVectors;
  const int vectors = least(kSliceVectors, piece.channels / V - first_vector);
  if (vectors <= 0) return;  // another piece is wider

  for (int32_t tap = 0; tap < columns.taps; tap += kStagedTaps) {
    const int taps = least(kStagedTaps, columns.taps - tap);
    stage_samples<false>(g, s, first_pixel, pixels, piece.offset_group, tap, taps, staged);
    for (int i = int(threadIdx.x); i < pixels * vectors; i += kThreads) {
      const int m = i / vectors;
      const int32_t c = piece.first_channel + (first_vector + i % vectors) * V;
      const T* input = image_of(g, s, later(g, first_pixel, m).image) + c;
      T* out = columns.at(c, first_row + m) + tap * columns.group_channels;
      for (int t = 0; t < taps; ++t) {
        const Sample<R>& sample = staged[t * kTilePixels + m];
        R value[V];
        load_sample<V>(input, uint32_t(g.channels), sample, value);
        store<V>(out + t * columns.group_channels, value);
      }
    }
  }
}

// Blocks that share a tile of pixels and gather all channels.
template <int V>
int64_t gather_blocks(const Geometry& g) {
  const int64_t vectors = g.channels_per_offset_group() / V;
  return g.offset_groups * ((vectors + kSliceVectors - 1) / kSliceVectors);
}

template <typename T, int V>
void launch_gather(const Geometry& g, const Sampling<T>& s, Rows rows, const Columns<T>& columns,
                   Stream stream) {
  const int64_t pieces = count_pieces(g, columns.first_channel, columns.channels);
  const int64_t widest = least<int64_t>(columns.channels, g.channels_per_offset_group());
  const dim3 grid(blocks_for(rows.count, kTilePixels), planes_for(pieces),
                  planes_for((widest / V + kSliceVectors - 1) / kSliceVectors));
  launch(gather_columns<T, V>, grid, kThreads, staged_bytes<Real<T>>(columns.taps), stream,
         *on_device(g), s, rows, columns);
}

// Adds the bias to products [groups, rows, O/groups] and rounds them once, to output [rows, O].
// Grid: rows, of each 2^bits threads of a block; groups.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    add_bias(const Real<T>* products, const T* bias, int32_t rows, int32_t outputs, int bits,
             T* output) {
  const int32_t row = int32_t(blockIdx.x * (kThreads >> bits) + (threadIdx.x >> bits));
  if (row >= rows) return;
  const int64_t group = blockIdx.y, lanes = int64_t(1) << bits;
  const Real<T>* from = products + (group * rows + row) * outputs;
  T* to = output + (int64_t(row) * gridDim.y + group) * outputs;
  for (int64_t o = threadIdx.x & (lanes - 1); o < outputs; o += lanes)
    to[o] = T(from[o] + Real<T>(bias[group * outputs + o]));
}

template <typename T>
void launch_add_bias(const Geometry& g, const Real<T>* products, const T* bias, int64_t rows,
                     T* output, Stream stream) {
  int bits = 0;
  while ((1 << bits) < kThreads && (1 << bits) < g.outputs_per_group()) ++bits;
  launch(add_bias<T>, dim3(blocks_for(rows, kThreads >> bits), planes_for(g.groups)), kThreads, 0,
         stream, products, bias, int32_t(rows), int32_t(g.outputs_per_group()), bits, output);
}

// Adds a slice's product [rows, T, channels] to the weight gradient at [rows, T, all_channels].
template <typename R>
__global__ void __launch_bounds__(kThreads)
    add_weight_gradient(const R* product, int64_t elements, int64_t channels, int64_t all_channels,
                        R* sum) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= elements) return;
  const int64_t to = channels == all_channels ? i : i / channels * all_channels + i % channels;
  sum[to] += product[i];
}

}  // namespace segdeform::cuda
