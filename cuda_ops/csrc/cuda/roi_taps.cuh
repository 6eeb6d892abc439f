// The pixels that a line of samples touches and what each counts for, found by a warp together.
//
// The mean over a grid of bilinear samples is a weighted sum over pixels whose weights are products
// of one weight for the row and one for the column (see roi.h), so a bin is two lists of taps. A
// warp makes them 32 at a time, a tap a lane: where samples lie dense, a lane is a pixel and sums
// what the samples give to it, in their order; where they lie far apart, a lane is one of the two
// pixels of a sample.
// All lanes of the warp must call the functions that say __device__ together, with the same line.
#pragma once

#include "../roi.h"
#include "launch.h"

namespace segdeform::cuda {

using RoiShapes = RoiShape<int32_t>;  // as the kernels count (roi_plan.h)

template <typename T>
struct LaneTap {
  int32_t pixel;
  T weight;  // in the sum of the samples
  T slope;   // d(weight) / d(shift)
};

struct PixelSpan {
  int32_t first, last;  // last < first: none
};

__device__ __forceinline__ int lowest_lane(unsigned lanes) {
#if defined(__CUDA_ARCH__)
  return __ffs(int(lanes)) - 1;
#else
  return __builtin_ctz(lanes);
#endif
}

// Calls f(lane) for every lane of a ballot, from the lowest.
template <typename F>
__device__ __forceinline__ void for_lanes(unsigned lanes, F f) {
  for (; lanes; lanes &= lanes - 1) f(lowest_lane(lanes));
}

// The sum over the warp, the same bits in every lane and in every run.
template <typename T>
__device__ T warp_sum(T value) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
    value += __shfl_xor_sync(kAllLanes, value, lanes);
  return value;
}

// No pixel outside is touched; by a lane alone, of positions that rounding keeps in order.
template <typename T>
SEGDEFORM_HOST_DEVICE PixelSpan span_of(const SampleLine<T>& line, int32_t pixels) {
  if (line.samples == 0) return {0, -1};
  const T a = sample_position(line, 0), b = sample_position(line, line.samples - 1);
  const T low = a < b ? a : b, high = a < b ? b : a, last = T(pixels - 1);
  // A position that is not a number means an infinite origin, and then no sample lies inside.
  if (!(high >= line.lowest && low <= line.highest)) return {0, -1};
  const int32_t from = floor_of<OneSample<T>>(low < T(0) ? T(0) : low > last ? last : low);
  const int32_t to = floor_of<OneSample<T>>(high < T(0) ? T(0) : high > last ? last : high);
  return {from, to + 1 < pixels ? to + 1 : to};
}

// What a line gives to the pixel of each lane (-1: none); no other pixel than those of the window.
template <bool kSlope, typename T>
__device__ LaneTap<T> tap_of_pixel(const SampleLine<T>& line, int32_t pixels, int32_t pixel,
                                   PixelSpan window) {
  LaneTap<T> tap{pixel, T(0), T(0)};
  for (int32_t base = 0; base < line.samples; base += kWarp) {
    LineSample<T> own{};
    const int32_t i = base + lane_of_warp();
    if (i < line.samples) own = line_sample(line, i, pixels);
    const bool touches = own.inside && own.high >= window.first && own.low <= window.last;
    for_lanes(__ballot_sync(kAllLanes, touches), [&](int lane) {
      const int32_t low = __shfl_sync(kAllLanes, own.low, lane);
      const int32_t high = __shfl_sync(kAllLanes, own.high, lane);
      const T fraction = __shfl_sync(kAllLanes, own.fraction, lane);
      const T slope = kSlope ? __shfl_sync(kAllLanes, own.slope, lane) : T(0);
      if (pixel == low) tap.weight += T(1) - fraction, tap.slope -= slope;
      if (pixel == high) tap.weight += fraction, tap.slope += slope;
    });
  }
  return tap;
}

// How many samples of a line lie inside; by a lane alone.
template <typename T>
SEGDEFORM_HOST_DEVICE int32_t samples_inside(const SampleLine<T>& line, int32_t pixels) {
  int32_t count = 0;
  for (int32_t i = 0; i < line.samples; ++i) count += line_sample(line, i, pixels).inside;
  return count;
}

// What the sum over a bin is divided by; by a lane alone.
template <typename T>
SEGDEFORM_HOST_DEVICE T sample_count(const RoiShapes& g, const BinLines<T>& lines) {
  int64_t count = int64_t(lines.y.samples) * lines.x.samples;
  if (g.position_sensitive)
    count = int64_t(samples_inside(lines.y, g.height)) * samples_inside(lines.x, g.width);
  return T(count > 1 ? count : 1);
}

// All taps of a line, in chunks of one a lane.
template <typename T>
struct WarpLine {
  SampleLine<T> line;
  int32_t pixels;
  PixelSpan span;
  bool lane_is_pixel;
  int32_t chunks;
};

template <typename T>
__device__ WarpLine<T> warp_line(const SampleLine<T>& line, int32_t pixels) {
  WarpLine<T> result{line, pixels, span_of(line, pixels), true, 0};
  const int32_t touched = result.span.last - result.span.first + 1;
  if (touched <= 0) return result;
  result.lane_is_pixel = touched <= 2 * line.samples;
  const int32_t taps = result.lane_is_pixel ? touched : 2 * line.samples;
  result.chunks = (taps + kWarp - 1) / kWarp;
  return result;
}

// The tap of this lane; pixel -1 where nothing counts.
template <bool kSlope, typename T>
__device__ LaneTap<T> lane_tap(const WarpLine<T>& from, int32_t chunk) {
  const int32_t number = chunk * kWarp + lane_of_warp();
  LaneTap<T> tap{-1, T(0), T(0)};
  if (from.lane_is_pixel) {
    const int32_t first = from.span.first + chunk * kWarp;
    const int32_t last = first + kWarp - 1 < from.span.last ? first + kWarp - 1 : from.span.last;
    const int32_t pixel = from.span.first + number;
    tap = tap_of_pixel<kSlope>(from.line, from.pixels, pixel <= last ? pixel : -1, {first, last});
  } else if (number / 2 < from.line.samples) {
    const LineSample<T> s = line_sample(from.line, number / 2, from.pixels);
    const bool high = number % 2;
    if (s.inside)
      tap = {high ? s.high : s.low, high ? s.fraction : T(1) - s.fraction,
             kSlope ? (high ? s.slope : -s.slope) : T(0)};
  }
  if (tap.weight == T(0) && tap.slope == T(0)) tap.pixel = -1;
  return tap;
}

// A bin as the warp sees it.
template <typename T>
struct WarpBin {
  WarpLine<T> y, x;
  T samples;  // what the sum is divided by
  bool lost;
};

template <typename T>
__device__ WarpBin<T> warp_bin(const RoiShapes& g, const BinLines<T>& lines) {
  WarpBin<T> bin{};
  bin.lost = lines.lost;
  if (lines.lost) return bin;
  bin.y = warp_line(lines.y, g.height);
  bin.x = warp_line(lines.x, g.width);
  bin.samples = sample_count(g, lines);
  return bin;
}

template <bool kSlope, typename T>
__device__ LaneTap<T> tap_of_lane(const LaneTap<T>& own, int lane) {
  LaneTap<T> tap{__shfl_sync(kAllLanes, own.pixel, lane), __shfl_sync(kAllLanes, own.weight, lane),
                 T(0)};
  if (kSlope) tap.slope = __shfl_sync(kAllLanes, own.slope, lane);
  return tap;
}

// Calls f(y tap, x tap) for every pixel of a bin, the same ones in every lane.
template <bool kSlope, typename T, typename F>
__device__ void for_pixels(const WarpBin<T>& bin, F f) {
  for (int32_t i = 0; i < bin.y.chunks; ++i) {
    const LaneTap<T> own_y = lane_tap<kSlope>(bin.y, i);
    const unsigned rows = __ballot_sync(kAllLanes, own_y.pixel >= 0);
    if (!rows) continue;
    for (int32_t j = 0; j < bin.x.chunks; ++j) {
      const LaneTap<T> own_x = lane_tap<kSlope>(bin.x, j);
      const unsigned columns = __ballot_sync(kAllLanes, own_x.pixel >= 0);
      for_lanes(rows, [&](int row) {
        const LaneTap<T> y = tap_of_lane<kSlope>(own_y, row);
        for_lanes(columns, [&](int column) { f(y, tap_of_lane<kSlope>(own_x, column)); });
      });
    }
  }
}

}  // namespace segdeform::cuda
