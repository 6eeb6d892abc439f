// Gradients of offsets and mask: from the four inner products of the column's gradient with the
// corners, summed by a team of lanes in a fixed order and left in shared memory, from where the
// threads of the block write what follows from them, neighbouring pixels side by side.
#pragma once

#include "column_gradient.cuh"

namespace segdeform::cuda {

template <typename R>
struct SampleGradients {
  R* offset;  // [N, 2*G*T, P*Q] or nullptr
  R* mask;    // [N, G*T, P*Q] or nullptr
};

// `adds`: channels of the offset group came before, in another slice.
template <typename R>
__device__ void write_sample_gradient(const Shapes& g, const SampleGradients<R>& out,
                                      const Sample<R>& sample, const R (&s)[4], ImagePixel at,
                                      int32_t group, int32_t tap, bool adds) {
  const int64_t pixels = g.out_pixels(), p = at.pixel;
  const int64_t channel = (int64_t(at.image) * g.offset_groups + group) * g.taps() + tap;
  if (out.offset) {
    R* dy = out.offset + 2 * channel * pixels + p;
    R* dx = dy + pixels;
    *dy =
        (adds ? *dy : R(0)) + sample.mask * derivative_y(sample.fraction_x, s[0], s[1], s[2], s[3]);
    *dx =
        (adds ? *dx : R(0)) + sample.mask * derivative_x(sample.fraction_y, s[0], s[1], s[2], s[3]);
  }
  if (out.mask) {
    R* dm = out.mask + channel * pixels + p;
    *dm = (adds ? *dm : R(0)) + sample.weight[0] * s[0] + sample.weight[1] * s[1] +
          sample.weight[2] * s[2] + sample.weight[3] * s[3];
  }
}

// One sample, by a team: what its lanes add to the inner products with the gradient of its column.
// With kColumns it leaves the column itself behind, which may lie where its gradient was.
template <int V, bool kColumns, typename T, typename Gradient>
__device__ void corner_products(const Shapes& g, const Team& team, const T* image,
                                const Piece& piece, const Sample<Real<T>>& sample,
                                const Gradient& gradient, int64_t row, uint32_t tap,
                                Real<T> (&products)[4]) {
  using R = Real<T>;
  for (int32_t c = team.lane * V; c < piece.channels; c += team.width() * V) {
    const int32_t channel = piece.first_channel + c;
    const typename Gradient::Cursor cursor = gradient.at(channel, row);
    const auto loaded = cursor.template load<V>(gradient.place(0, tap));
    Vector<T, V> corners[4];
    load_corners<V>(image + channel, uint32_t(g.channels), sample, corners);
    R grad[V], corner[4][V];
    cursor.values(loaded, grad);
    for (int i = 0; i < 4; ++i) {
      widen(corners[i], corner[i]);
      for (int k = 0; k < V; ++k) products[i] += grad[k] * corner[i][k];
    }
    if constexpr (kColumns) {
      R value[V];
      interpolate(corner, sample, value);
      store<V>(cursor.from + gradient.place(0, tap), value);
    }
  }
}

constexpr int kTapsOfBlock = 2;  // few: chunks of few pixels must fill the GPU too

// Grid: tiles of pixels, pieces of the slice, kTapsOfBlock taps.
template <typename T, int V, bool kColumns, typename Gradient>
__global__ void __launch_bounds__(kThreads, 2)
    sample_gradients(Shapes g, Sampling<T> s, Rows rows, int32_t first_channel, int32_t channels,
                     int bits, Gradient gradient, SampleGradients<Real<T>> out) {
  using R = Real<T>;
  Sample<R>* staged = shared_memory<Sample<R>>();
  R* sums = reinterpret_cast<R*>(staged + kTapsOfBlock * kTilePixels);  // four a sample
  const Team team = team_of(bits);
  const auto [piece, first_row, pixels, first_pixel] =
      tile_of_block(g, rows, first_channel, channels);
  const bool adds = piece.first_channel > piece.offset_group * g.channels_per_offset_group();
  const int32_t tap = int32_t(blockIdx.z) * kTapsOfBlock;
  const int taps = least(kTapsOfBlock, g.taps() - tap);

  stage_samples<true>(g, s, first_pixel, pixels, piece.offset_group, tap, taps, staged);
  const int samples = taps * kTilePixels;  // [taps, kTilePixels]
  for (int base = first_team_of_warp(bits); base < samples; base += kThreads >> bits) {
    const int i = base + (team.first >> bits), t = i / kTilePixels, m = i % kTilePixels;
    const bool is_sample = i < samples && m < pixels;
    R products[4] = {};
    if (is_sample) {
      const T* image = image_of(g, s, later(g, first_pixel, m).image);
      corner_products<V, kColumns>(g, team, image, piece, staged[i], gradient, first_row + m,
                                   uint32_t(tap + t), products);
    }
    write_team_sums(team, products, is_sample, sums + i * 4);
  }
  __syncthreads();
  const int i = int(threadIdx.x), m = i % kTilePixels;
  if (i >= samples || m >= pixels) return;
  const R products[4] = {sums[i * 4], sums[i * 4 + 1], sums[i * 4 + 2], sums[i * 4 + 3]};
  write_sample_gradient(g, out, staged[i], products, later(g, first_pixel, m), piece.offset_group,
                        tap + i / kTilePixels, adds);
}
static_assert(kTapsOfBlock * kTilePixels <= kThreads);

template <typename T, int V, bool kColumns, typename Gradient>
void launch_sample_gradients(const Geometry& g, const Sampling<T>& s, Rows rows,
                             int64_t first_channel, int64_t channels, const Gradient& gradient,
                             const SampleGradients<Real<T>>& out, Stream stream) {
  using R = Real<T>;
  const dim3 grid(blocks_for(rows.count, kTilePixels),
                  planes_for(count_pieces(g, first_channel, channels)),
                  planes_for((g.taps() + kTapsOfBlock - 1) / kTapsOfBlock));
  constexpr size_t kBytes = kTapsOfBlock * kTilePixels * (sizeof(Sample<R>) + 4 * sizeof(R));
  const int bits = team_bits(least(channels, g.channels_per_offset_group()) / V);
  launch(sample_gradients<T, V, kColumns, Gradient>, grid, kThreads, kBytes, stream, *on_device(g),
         s, rows, first_channel, channels, bits, gradient, out);
}

}  // namespace segdeform::cuda
