// Where output pixels sample, and the interpolated values, for the kernels of the convolution.
//
// A block looks at a tile of consecutive output pixels. Its threads first locate the samples of all
// (tap, pixel) of one offset group, pixels fastest so that the offsets are read in line, and leave
// them in shared memory; then they share out (pixel, channels) among each other.
#pragma once

#include "../geometry.h"
#include "launch.h"
#include "plan.h"
#include "vectors.cuh"

namespace segdeform::cuda {

// Of every block. Kernels that wait for memory say how many blocks a multiprocessor shall hold:
// left to itself the compiler spares registers and asks for a value only when the last one has
// come.
constexpr int kThreads = 256;
constexpr int kTilePixels = 32;    // output pixels of a tile
constexpr int kStagedTaps = 16;    // taps whose samples lie in shared memory at a time
constexpr int kSliceVectors = 32;  // vectors of channels that a block gathers: a warp's worth

template <typename T>
struct Sampling {
  const T* input;         // [N, H, W, C]
  const Real<T>* offset;  // [N, 2*G*T, P, Q], strides below
  const Real<T>* mask;    // [N, G*T, P, Q], or nullptr for v1
  int64_t offset_stride[4], mask_stride[4];
};

// The shapes as the kernels count: on_device (plan.h) makes them where all fit 32 bits.
using Shapes = ConvGeometry<int32_t>;

// An output pixel: row `image * P*Q + pixel`.
struct ImagePixel {
  int32_t image, pixel;
};

// Consecutive output pixels, counted through all images: rows of the matrices.
struct Rows {
  int64_t first;
  int32_t count;
  ImagePixel first_pixel;
};

inline Rows rows_from(const Geometry& g, int64_t first, int64_t count) {
  STD_TORCH_CHECK(count <= kMostRows, "segdeform: too much work for one launch");
  return {
      first, int32_t(count), {int32_t(first / g.out_pixels()), int32_t(first % g.out_pixels())}};
}

// Calls f(rows) for all rows, as whole images of which so many go into one launch.
template <typename F>
void for_launches(const Geometry& g, F f) {
  const int64_t images = std::max<int64_t>(1, kMostRows / g.out_pixels());
  for (int64_t first = 0; first < g.batch; first += images)
    f(rows_from(g, first * g.out_pixels(), std::min(images, g.batch - first) * g.out_pixels()));
}

// The pixel so many rows later; it takes no division as long as the image is the same.
SEGDEFORM_HOST_DEVICE ImagePixel later(const Shapes& g, ImagePixel from, int32_t rows) {
  const uint32_t pixels = uint32_t(g.out_pixels());
  const uint32_t pixel = uint32_t(from.pixel) + uint32_t(rows);  // of two numbers below 2^31
  if (pixel < pixels) return {from.image, int32_t(pixel)};
  return {from.image + int32_t(pixel / pixels), int32_t(pixel % pixels)};
}

// Consecutive channels that share offsets.
struct Piece {
  int32_t first_channel, channels, offset_group;
};

template <typename Int>
SEGDEFORM_HOST_DEVICE Int least(Int a, Int b) {
  return a < b ? a : b;
}

// How many pieces a run of channels falls into.
inline int64_t count_pieces(const Geometry& g, int64_t first, int64_t channels) {
  const int64_t size = g.channels_per_offset_group();
  return (first + channels - 1) / size - first / size + 1;
}

// One of the pieces.
SEGDEFORM_HOST_DEVICE Piece piece_of(const Shapes& g, int32_t first, int32_t channels,
                                     int32_t number) {
  const int32_t size = g.channels_per_offset_group(), group = first / size + number;
  const int32_t begin = group * size > first ? group * size : first;
  return {begin, least(first + channels, (group + 1) * size) - begin, group};
}

// What a block of the grid (tiles of pixels, pieces of channels, ...) works on.
struct BlockTile {
  Piece piece;
  int32_t first_row;  // from the first of the rows
  int pixels;
  ImagePixel first_pixel;
};

__device__ __forceinline__ BlockTile tile_of_block(const Shapes& g, const Rows& rows,
                                                   int32_t first_channel, int32_t channels) {
  const int32_t first_row = int32_t(blockIdx.x) * kTilePixels;
  return {piece_of(g, first_channel, channels, int32_t(blockIdx.y)), first_row,
          least(kTilePixels, rows.count - first_row), later(g, rows.first_pixel, first_row)};
}

template <typename R>
struct Sample {
  int32_t index[4];  // as in Corners
  R weight[4];       // bilinear
  R fraction_y, fraction_x, mask;
  int32_t value_is_zero;
};

template <typename R>
struct Position {
  R y, x, mask;
};

// Where a tap samples for one output pixel of an image.
template <typename T>
SEGDEFORM_HOST_DEVICE Position<Real<T>> position_of(const Shapes& g, const Sampling<T>& s,
                                                    ImagePixel at_pixel, int32_t group,
                                                    int32_t tap) {
  using R = Real<T>;
  const int64_t image = at_pixel.image, channel = group * g.taps() + tap;
  const int32_t p = at_pixel.pixel / g.out_width, q = at_pixel.pixel % g.out_width;
  const R* dy = s.offset + image * s.offset_stride[0] + 2 * channel * s.offset_stride[1] +
                p * s.offset_stride[2] + q * s.offset_stride[3];
  Position<R> at;
  at.y = dy[0] + R(p * g.stride_h - g.pad_h + tap / g.kernel_w * g.dilation_h);
  at.x = dy[s.offset_stride[1]] + R(q * g.stride_w - g.pad_w + tap % g.kernel_w * g.dilation_w);
  at.mask = R(1);
  if (s.mask)
    at.mask = s.mask[image * s.mask_stride[0] + channel * s.mask_stride[1] + p * s.mask_stride[2] +
                     q * s.mask_stride[3]];
  return at;
}

// One that is not asked for derivatives has no corners where its value is 0 by rule.
template <bool kDerivatives, typename T>
SEGDEFORM_HOST_DEVICE Sample<Real<T>> sample_of(const Shapes& g, const Sampling<T>& s,
                                                ImagePixel pixel, int32_t group, int32_t tap) {
  using R = Real<T>;
  const Position<R> at = position_of(g, s, pixel, group, tap);
  const Corners<OneSample<R>> c = corners_at<OneSample<R>>(at.y, at.x, g.height, g.width);
  Sample<R> sample;
  const bool has_corners = kDerivatives || !c.value_is_zero;
  for (int i = 0; i < 4; ++i) {
    sample.index[i] = has_corners ? c.index[i] : -1;
    sample.weight[i] = c.weight[i];
  }
  sample.fraction_y = c.fraction_y, sample.fraction_x = c.fraction_x;
  sample.mask = at.mask, sample.value_is_zero = c.value_is_zero;
  return sample;
}

// The samples of the next taps for a tile of pixels, [taps, kTilePixels] in shared memory.
// All threads of the block call it together, and again only after they have read what they need.
template <bool kDerivatives, typename T>
__device__ void stage_samples(const Shapes& g, const Sampling<T>& s, ImagePixel first_pixel,
                              int pixels, int32_t group, int32_t first_tap, int taps,
                              Sample<Real<T>>* staged) {
  __syncthreads();
  for (int i = int(threadIdx.x); i < taps * kTilePixels; i += kThreads) {
    const int t = i / kTilePixels, m = i % kTilePixels;
    if (m < pixels)
      staged[i] = sample_of<kDerivatives>(g, s, later(g, first_pixel, m), group, first_tap + t);
  }
  __syncthreads();
}

template <typename R>
constexpr size_t staged_bytes(int64_t taps) {
  return size_t(taps < kStagedTaps ? taps : kStagedTaps) * kTilePixels * sizeof(Sample<R>);
}
static_assert(staged_bytes<double>(kStagedTaps) <= kMaxSharedBytes);

// Where an image begins.
template <typename T>
SEGDEFORM_HOST_DEVICE const T* image_of(const Shapes& g, const Sampling<T>& s, int32_t image) {
  return s.input + int64_t(image) * g.in_pixels() * g.channels;
}

// The four corner values. One outside the image is skipped: it counts as 0, whatever its weight.
template <int V, typename T, typename R>
SEGDEFORM_HOST_DEVICE void load_corners(const T* image, uint32_t channels, const Sample<R>& sample,
                                        Vector<T, V> (&corners)[4]) {
  for (int i = 0; i < 4; ++i)
    corners[i] =
        load_if<V>(sample.index[i] >= 0, image, uint64_t(uint32_t(sample.index[i])) * channels);
}

// The modulated sample. Where it is 0 by rule, no value of the image reaches it.
template <typename R, int V>
SEGDEFORM_HOST_DEVICE void interpolate(const R (&corners)[4][V], const Sample<R>& sample,
                                       R (&value)[V]) {
  R weight[4], zero = R(0);
  for (int i = 0; i < 4; ++i) weight[i] = sample.weight[i] * sample.mask, zero += weight[i] * R(0);
  for (int k = 0; k < V; ++k) {
    value[k] = R(0);
    for (int i = 0; i < 4; ++i) value[k] += weight[i] * corners[i][k];
    if (sample.value_is_zero) value[k] = zero;  // or NaN, if the mask is no number
  }
}

// The same for a sample that has its corners for its value alone.
template <int V, typename T, typename R>
SEGDEFORM_HOST_DEVICE void load_sample(const T* image, uint32_t channels, const Sample<R>& sample,
                                       R (&value)[V]) {
  Vector<T, V> corners[4];
  load_corners<V>(image, channels, sample, corners);
  for (int k = 0; k < V; ++k) value[k] = R(0);
  for (int i = 0; i < 4; ++i) {
    R corner[V];
    widen(corners[i], corner);
    const R weight = sample.weight[i] * sample.mask;
    for (int k = 0; k < V; ++k) value[k] += weight * corner[k];
  }
}

// ---- teams: neighbouring lanes of a warp that work on one thing ----
//
// Shuffles and votes name all lanes of the warp, by a literal: of a mask that is only known at run
// time the compiler makes sure, by several instructions before each group of shuffles. So the teams
// of a warp go through their loops in step, and one that has nothing to do takes part idly.

struct Team {
  int bits;   // it has 2^bits lanes, at most a warp
  int lane;   // in the team
  int first;  // its first lane in the warp

  SEGDEFORM_HOST_DEVICE int width() const { return 1 << bits; }
};

// Of the narrowest team that does so many units at one a lane, or of a warp.
SEGDEFORM_HOST_DEVICE int team_bits(int64_t units) {
  int bits = 0;
  while ((1 << bits) < kWarp && (1 << bits) < units) ++bits;
  return bits;
}

SEGDEFORM_HOST_DEVICE Team team_of(int bits) {
  const int lane = lane_of_warp(), inside = lane & ((1 << bits) - 1);
  return {bits, inside, lane - inside};
}

// The number of the first team of this warp among those of the block.
SEGDEFORM_HOST_DEVICE int first_team_of_warp(int bits) {
  return (int(threadIdx.x) - lane_of_warp()) >> bits;
}

// Writes the sums over the lanes of a team, by one lane each where it has four lanes or more. Two
// halves of a team exchange what they do not sum further: 6 shuffles in a warp, not 4 * 5. Every
// sum adds up as a tree from the widest step to the narrowest. All lanes of the warp call it.
template <typename R>
__device__ void write_team_sums(const Team& team, R (&values)[4], bool wanted, R* sums) {
  int held = 4, number = 0, step = team.width() / 2;
  if (step > 0) {
    const bool upper = (team.lane & step) != 0;
    for (int i = 0; i < 2; ++i) {
      const R other = __shfl_xor_sync(kAllLanes, upper ? values[i] : values[2 + i], step);
      values[i] = (upper ? values[2 + i] : values[i]) + other;
    }
    held = 2, number = upper ? 2 : 0, step /= 2;
  }
  if (step > 0) {
    const bool upper = (team.lane & step) != 0;
    const R other = __shfl_xor_sync(kAllLanes, upper ? values[0] : values[1], step);
    values[0] = (upper ? values[1] : values[0]) + other;
    held = 1, number += upper ? 1 : 0, step /= 2;
  }
  const int same = 2 * step;  // lanes that sum the same from here on, 0 for one alone
  for (; step > 0; step /= 2) values[0] += __shfl_xor_sync(kAllLanes, values[0], step);
  if (!wanted || (same > 0 && (team.lane & (same - 1)) != 0)) return;
  for (int i = 0; i < 4; ++i)
    if (i < held) sums[number + i] = values[i];
}

}  // namespace segdeform::cuda
