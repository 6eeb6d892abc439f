// The columns of the convolution: samples laid out as rows of matrices, channels last.
#pragma once

#include "sampling.cuh"

namespace segdeform::cuda {

// [groups, rows, T, channels of a group]: for each weight group one matrix with a row for each
// output pixel. A slice of channels covers whole groups, or a part of one.
template <typename T>
struct Columns {
  T* data;
  int64_t first_channel, channels, group_channels;
  int64_t rows, taps;

  constexpr int64_t row_stride() const { return taps * group_channels; }
  constexpr T* at(int64_t channel, int64_t row) const {  // of the first tap; the next is
    const int64_t k = channel - first_channel;           // group_channels further
    const int64_t group = channels == group_channels ? 0 : k / group_channels;  // spares dividing
    return data + (group * rows + row) * row_stride() + k - group * group_channels;
  }
};

// Grid: tiles of pixels, pieces of the slice, kSliceVectors vectors of a piece.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads, 4)
    gather_columns(Geometry g, Sampling<T> s, Rows rows, Columns<T> columns) {
  using R = Real<T>;
  Sample<R>* staged = shared_memory<Sample<R>>();
  const auto [piece, first_row, pixels, first_pixel] =
      tile_of_block(g, rows, columns.first_channel, columns.channels);
  const int64_t first_vector = int64_t(blockIdx.z) * kSliceVectors;
  const int vectors = int(least(kSliceVectors, piece.channels / V - first_vector));
  if (vectors <= 0) return;  // another piece is wider

  for (int64_t tap = 0; tap < columns.taps; tap += kStagedTaps) {
    const int taps = int(least(kStagedTaps, columns.taps - tap));
    stage_samples<false>(g, s, first_pixel, pixels, piece.offset_group, tap, taps, staged);
    for (int i = int(threadIdx.x); i < pixels * vectors; i += kThreads) {
      const int m = i / vectors;
      const int64_t c = piece.first_channel + (first_vector + i % vectors) * V;
      const int64_t image = later(g, first_pixel, m).image;
      const T* input = s.input + image * g.in_pixels() * g.channels + c;
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

template <typename T, int V>
void launch_gather(const Geometry& g, const Sampling<T>& s, Rows rows, const Columns<T>& columns,
                   Stream stream) {
  const int64_t pieces = count_pieces(g, columns.first_channel, columns.channels);
  const int64_t widest = least(columns.channels, g.channels_per_offset_group());
  const dim3 grid(blocks_for(rows.count, kTilePixels), planes_for(pieces),
                  planes_for((widest / V + kSliceVectors - 1) / kSliceVectors));
  launch(gather_columns<T, V>, grid, kThreads, staged_bytes<Real<T>>(columns.taps), stream, g, s,
         rows, columns);
}

// Adds the bias to products [groups, rows, O/groups] and rounds them once, to output [rows, O].
// Grid: elements of a group, groups.
template <typename T>
__global__ void add_bias(const Real<T>* products, const T* bias, int64_t rows, int64_t outputs,
                         T* output) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x, group = blockIdx.y;
  if (i >= rows * outputs) return;
  const int64_t row = i / outputs, o = group * outputs + (i - row * outputs);
  output[row * gridDim.y * outputs + o] =
      T(products[group * rows * outputs + i] + Real<T>(bias[o]));
}

// Adds a slice's product [rows, T, channels] to the weight gradient at [rows, T, all_channels].
template <typename R>
__global__ void add_weight_gradient(const R* product, int64_t elements, int64_t channels,
                                    int64_t all_channels, R* sum) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= elements) return;
  const int64_t to = channels == all_channels ? i : i / channels * all_channels + i % channels;
  sum[to] += product[i];
}

}  // namespace segdeform::cuda
