// Depthwise convolution (as many groups as channels): samples are weighted and summed where they
// are gathered, without columns and without a matrix product.
#pragma once

#include "sampling.cuh"

namespace segdeform::cuda {

// weight [T, C], bias [C] or nullptr -> output [N*P*Q, C].
// Grid: tiles of pixels, pieces of the channels, kSliceVectors vectors of a piece.
template <typename T, int V>
__global__ void depthwise_forward(Geometry g, Sampling<T> s, Rows rows, const T* weight,
                                  const T* bias, T* output) {
  using R = Real<T>;
  constexpr int kItems = kTilePixels * kSliceVectors / kThreads;  // of a thread, at most
  Sample<R>* staged = shared_memory<Sample<R>>();
  const Piece piece = piece_of(g, 0, g.channels, blockIdx.y);
  const int64_t first_vector = int64_t(blockIdx.z) * kSliceVectors;
  const int vectors = int(least(kSliceVectors, piece.channels / V - first_vector));
  if (vectors <= 0) return;
  const int64_t first_row = int64_t(blockIdx.x) * kTilePixels;
  const int pixels = int(least(kTilePixels, rows.count - first_row));

  R sum[kItems][V] = {};
  for (int64_t tap = 0; tap < g.taps(); tap += kStagedTaps) {
    const int taps = int(least(kStagedTaps, g.taps() - tap));
    stage_samples(g, s, rows.first + first_row, pixels, piece.offset_group, tap, taps, staged);
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      const int i = j * kThreads + int(threadIdx.x);
      if (i >= pixels * vectors) continue;
      const int m = i / vectors;
      const int64_t c = piece.first_channel + (first_vector + i % vectors) * V;
      const int64_t image = (rows.first + first_row + m) / g.out_pixels();
      const T* input = s.input + image * g.in_pixels() * g.channels + c;
      for (int t = 0; t < taps; ++t) {
        const Sample<R>& sample = staged[t * kTilePixels + m];
        Vector<T, V> corners[4];
        load_corners<V>(input, g.channels, sample, corners);
        R value[V];
        interpolate<V>(corners, sample, value);
        const Vector<T, V> w = load<V>(weight + (tap + t) * g.channels + c);
        for (int k = 0; k < V; ++k) sum[j][k] += value[k] * R(w.value[k]);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kItems; ++j) {
    const int i = j * kThreads + int(threadIdx.x);
    if (i >= pixels * vectors) continue;
    const int64_t c = piece.first_channel + (first_vector + i % vectors) * V;
    if (bias)
      for (int k = 0; k < V; ++k) sum[j][k] += R(bias[c + k]);
    store<V>(output + (rows.first + first_row + i / vectors) * g.channels + c, sum[j]);
  }
}

template <typename T, int V>
void launch_depthwise(const Geometry& g, const Sampling<T>& s, const T* weight, const T* bias,
                      T* output, Stream stream) {
  const Rows rows{0, g.batch * g.out_pixels()};
  const int64_t vectors = g.channels_per_offset_group() / V;
  const dim3 grid(blocks_for(rows.count, kTilePixels), planes_for(g.offset_groups),
                  planes_for((vectors + kSliceVectors - 1) / kSliceVectors));
  launch(depthwise_forward<T, V>, grid, kThreads, staged_bytes<Real<T>>(g.taps()), stream, g, s,
         rows, weight, bias, output);
}

}  // namespace segdeform::cuda
