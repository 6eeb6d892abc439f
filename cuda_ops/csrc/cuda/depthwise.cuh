// Depthwise convolution (as many groups as channels): samples are weighted and summed where they
// are gathered, without columns and without a matrix product.
#pragma once

#include "sampling.cuh"

namespace segdeform::cuda {

// weight [T, C], bias [C] or nullptr -> output [N*P*Q, C].
// Grid: tiles of pixels, pieces of the channels, kSliceVectors vectors of a piece.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads, 2)
    depthwise_forward(Shapes g, Sampling<T> s, Rows rows, const T* weight, const T* bias,
                      T* output) {
  using R = Real<T>;
  constexpr int kItems = kTilePixels * kSliceVectors / kThreads;  // of a thread, at most
  Sample<R>* staged = shared_memory<Sample<R>>();
  const auto [piece, first_row, pixels, first_pixel] = tile_of_block(g, rows, 0, g.channels);
  const int first_vector = int(blockIdx.z) * kSliceVectors;
  const int vectors = least(kSliceVectors, piece.channels / V - first_vector);
  if (vectors <= 0) return;

  R sum[kItems][V] = {};
  for (int32_t tap = 0; tap < g.taps(); tap += kStagedTaps) {
    const int taps = least(kStagedTaps, g.taps() - tap);
    stage_samples<false>(g, s, first_pixel, pixels, piece.offset_group, tap, taps, staged);
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      const int i = j * kThreads + int(threadIdx.x);
      if (i >= pixels * vectors) continue;
      const int m = i / vectors;
      const int32_t c = piece.first_channel + (first_vector + i % vectors) * V;
      const T* input = image_of(g, s, later(g, first_pixel, m).image) + c;
      for (int t = 0; t < taps; ++t) {
        const Sample<R>& sample = staged[t * kTilePixels + m];
        const Vector<T, V> factors = load<V>(weight + (tap + t) * g.channels + c);
        R value[V], factor[V];
        load_sample<V>(input, uint32_t(g.channels), sample, value);
        widen(factors, factor);
        for (int k = 0; k < V; ++k) sum[j][k] += value[k] * factor[k];
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kItems; ++j) {
    const int i = j * kThreads + int(threadIdx.x);
    if (i >= pixels * vectors) continue;
    const int32_t c = piece.first_channel + (first_vector + i % vectors) * V;
    if (bias)
      for (int k = 0; k < V; ++k) sum[j][k] += R(bias[c + k]);
    store<V>(output + (rows.first + first_row + i / vectors) * g.channels + c, sum[j]);
  }
}

template <typename T, int V>
void launch_depthwise(const Geometry& g, const Sampling<T>& s, const T* weight, const T* bias,
                      T* output, Stream stream) {
  const int64_t vectors = g.channels_per_offset_group() / V;
  for_launches(g, [&](const Rows& rows) {
    const dim3 grid(blocks_for(rows.count, kTilePixels), planes_for(g.offset_groups),
                    planes_for((vectors + kSliceVectors - 1) / kSliceVectors));
    launch(depthwise_forward<T, V>, grid, kThreads, staged_bytes<Real<T>>(g.taps()), stream,
           *on_device(g), s, rows, weight, bias, output);
  });
}

// Sums over a chunk of pixels of one tap: grad [N*P*Q, C] -> partial [chunks, T, C].
// Grid: chunks, taps, pieces times slices of a piece.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads, 3)
    depthwise_weight_gradient(Shapes g, Sampling<T> s, const T* grad, int64_t rows,
                              int64_t chunk_pixels, int slices, Real<T>* partial) {
  using R = Real<T>;
  Sample<R>* staged = shared_memory<Sample<R>>();
  const Piece piece = piece_of(g, 0, g.channels, int(blockIdx.z) / slices);
  const int first_vector = int(blockIdx.z) % slices * kSliceVectors;
  const int32_t tap = int32_t(blockIdx.y);
  const int vectors = least(kSliceVectors, piece.channels / V - first_vector);
  const int at_once = kThreads / vectors;  // pixels
  const int mine = int(threadIdx.x) / vectors, vector = int(threadIdx.x) % vectors;
  const int32_t c = piece.first_channel + (first_vector + vector) * V;
  const int64_t begin = blockIdx.x * chunk_pixels, end = least(begin + chunk_pixels, rows);
  ImagePixel first_pixel{int32_t(begin / g.out_pixels()), int32_t(begin % g.out_pixels())};

  R sum[V] = {};
  for (int64_t first = begin; first < end; first += kThreads) {
    const int pixels = int(least(int64_t(kThreads), end - first));
    __syncthreads();
    if (int(threadIdx.x) < pixels)
      staged[threadIdx.x] =
          sample_of<false>(g, s, later(g, first_pixel, int(threadIdx.x)), piece.offset_group, tap);
    __syncthreads();
    for (int m = mine < at_once ? mine : pixels; m < pixels; m += at_once) {
      const T* image = image_of(g, s, later(g, first_pixel, m).image);
      const Vector<T, V> factors = load<V>(grad + (first + m) * g.channels + c);
      R value[V], factor[V];
      load_sample<V>(image + c, uint32_t(g.channels), staged[m], value);
      widen(factors, factor);
      for (int k = 0; k < V; ++k) sum[k] += factor[k] * value[k];
    }
    first_pixel = later(g, first_pixel, kThreads);
  }
  R* sums = shared_memory<R>();  // [threads, V]
  __syncthreads();
  for (int k = 0; k < V; ++k) sums[threadIdx.x * V + k] = sum[k];
  __syncthreads();
  if (mine > 0) return;
  for (int other = 1; other < at_once; ++other)
    for (int k = 0; k < V; ++k) sum[k] += sums[(other * vectors + vector) * V + k];
  R* out = partial + (int64_t(blockIdx.x) * g.taps() + tap) * g.channels + c;
  for (int k = 0; k < V; ++k) out[k] = sum[k];
}

template <typename T, int V>
void launch_depthwise_weight_gradient(const Geometry& g, const Sampling<T>& s, const T* grad,
                                      int64_t chunks, int64_t chunk_pixels, Real<T>* partial,
                                      Stream stream) {
  using R = Real<T>;
  const int64_t vectors = g.channels_per_offset_group() / V;
  const int64_t slices = (vectors + kSliceVectors - 1) / kSliceVectors;
  constexpr size_t kBytes =
      kThreads * (sizeof(Sample<R>) > V * sizeof(R) ? sizeof(Sample<R>) : V * sizeof(R));
  static_assert(kBytes <= kMaxSharedBytes);
  const dim3 grid(blocks_for(chunks, 1), planes_for(g.taps()),
                  planes_for(g.offset_groups * slices));
  launch(depthwise_weight_gradient<T, V>, grid, kThreads, kBytes, stream, *on_device(g), s, grad,
         g.batch * g.out_pixels(), chunk_pixels, int(slices), partial);
}

}  // namespace segdeform::cuda
