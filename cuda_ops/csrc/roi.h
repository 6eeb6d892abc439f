// Where the bins of a region of interest sample the image: the arithmetic of both poolings, written
// once, for host and device.
//
// The samples of a bin are a grid, so a line of samples along each axis describes them. A sample
// between two pixels takes 1 - fraction of the lower and fraction of the upper one; beyond the
// centre of the border pixels it is clamped, and its derivative is 0.
// A region that is not finite or names no image is lost: image -1. A bin whose shift is NaN is
// lost too. What is lost gives NaN and addresses nothing.
#pragma once

#include <cstdint>

#include "bilinear.h"
#include "geometry.h"

namespace segdeform {

template <typename T>
struct RoiAxis {
  T start, size;  // feature pixels; pixel i has its centre at i
};

template <typename T>
struct Roi {
  int32_t image;  // -1: lost
  RoiAxis<T> y, x;
};

// Samples at origin + (i + phase) * length / samples, for i < samples.
template <typename T>
struct SampleLine {
  T origin, length, phase;
  int32_t samples;
  T lowest, highest;  // samples beyond add nothing
};

template <typename T>
struct LineSample {
  bool inside;
  int32_t low, high;  // pixels
  T fraction;
  T slope;  // d(clamped position) / d(position): 1 or 0
};

template <typename T>
SEGDEFORM_HOST_DEVICE bool is_finite(T v) {
  return v - v == T(0);
}

// floor(v + 1/2) up to the rounding of that sum; what is too large for a fraction is whole already.
template <typename T>
SEGDEFORM_HOST_DEVICE T round_half_up(T v) {
  constexpr T kWhole = T(int64_t(1) << 52);
  const T raised = v + T(0.5);
  if (!(raised > -kWhole && raised < kWhole)) return v;
  const T whole = T(int64_t(raised));
  return whole > raised ? whole - 1 : whole;
}

template <typename T, typename Int>
SEGDEFORM_HOST_DEVICE RoiAxis<T> roi_axis(const RoiShape<Int>& g, T from, T to) {
  const T scale = T(g.spatial_scale);
  if (g.position_sensitive) {
    const T start = round_half_up(from) * scale - T(0.5);
    const T size = (round_half_up(to) + T(1)) * scale - T(0.5) - start;
    return {start, size < T(0.1) && is_finite(size) ? T(0.1) : size};
  }
  const T start = from * scale - T(0.5);
  return {start, to * scale - T(0.5) - start};
}

template <typename T, typename Int>
SEGDEFORM_HOST_DEVICE Roi<T> roi_at(const RoiShape<Int>& g, const T* five) {
  const T image = five[0];
  Roi<T> roi{-1, roi_axis(g, five[2], five[4]), roi_axis(g, five[1], five[3])};
  const bool finite = is_finite(roi.y.start) && is_finite(roi.y.size) && is_finite(roi.x.start) &&
                      is_finite(roi.x.size);
  if (finite && image >= T(0) && image < T(g.batch) && T(int32_t(image)) == image)
    roi.image = int32_t(image);
  return roi;
}

// The line of bin number `bin` out of `bins` along a finite axis of an image of `pixels` pixels;
// all three are below 2^24 (roi_arguments.h).
template <typename T, typename Int>
SEGDEFORM_HOST_DEVICE SampleLine<T> sample_line(const RoiShape<Int>& g, RoiAxis<T> axis, T shift,
                                                int32_t bin, int32_t bins, int32_t pixels) {
  SampleLine<T> line;
  line.length = axis.size / T(bins);
  line.origin = axis.start + shift + T(bin) * line.length;
  line.samples = int32_t(g.samples);
  if (g.samples == 0) {
    const T wanted = line.length < T(kMaxRoiSamples) ? line.length : T(kMaxRoiSamples);
    const int32_t whole = wanted > T(0) ? int32_t(wanted) : 0;
    line.samples = T(whole) < wanted ? whole + 1 : whole;
  }
  line.phase = g.position_sensitive ? T(0) : T(0.5);
  line.lowest = g.position_sensitive ? T(-0.5) : T(-1);
  line.highest = g.position_sensitive ? T(pixels) - T(0.5) : T(pixels);
  return line;
}

template <typename T>
SEGDEFORM_HOST_DEVICE bool is_lost(const SampleLine<T>& line) {
  return line.origin != line.origin;
}

// Rises with i, or falls where the length is negative.
template <typename T>
SEGDEFORM_HOST_DEVICE T sample_position(const SampleLine<T>& line, int32_t i) {
  return line.origin + (T(i) + line.phase) * line.length / T(line.samples);
}

template <typename T>
SEGDEFORM_HOST_DEVICE LineSample<T> line_sample(const SampleLine<T>& line, int32_t i,
                                                int32_t pixels) {
  const T v = sample_position(line, i);
  const T last = T(pixels - 1);
  LineSample<T> sample;
  sample.inside = v >= line.lowest && v <= line.highest;
  const T clamped = !sample.inside || v < T(0) ? T(0) : v > last ? last : v;
  sample.low = floor_of<OneSample<T>>(clamped);
  sample.high = sample.low + 1 < pixels ? sample.low + 1 : sample.low;
  sample.fraction = clamped - T(sample.low);
  sample.slope = v >= T(0) && v < last ? T(1) : T(0);
  return sample;
}

// Which of `cells` cells along a side bin number `bin` lies in.
template <typename Int>
SEGDEFORM_HOST_DEVICE Int cell_of_bin(Int bin, Int bins, Int cells) {
  return bin * cells / bins;
}

// The first bin of a cell; those of one cell are consecutive, and there may be none.
template <typename Int>
SEGDEFORM_HOST_DEVICE Int first_bin_of_cell(Int cell, Int bins, Int cells) {
  return (cell * bins + cells - 1) / cells;
}

// The first of the O channels that bin (ph, pw) pools, where those of a cell lie side by side.
template <typename Int>
SEGDEFORM_HOST_DEVICE Int first_channel_of_bin(const RoiShape<Int>& g, Int ph, Int pw) {
  const Int cell =
      cell_of_bin(ph, g.pooled_h, g.group) * g.group + cell_of_bin(pw, g.pooled_w, g.group);
  return cell * g.out_channels;
}

template <typename T>
struct BinLines {
  SampleLine<T> y, x;
  bool lost;  // gives NaN; the lines mean nothing
};

// Where bin (ph, pw) of RoI number `index` samples the channels of class `group`. `shifts` are
// [R, 2 * classes, part_h, part_w], axis 0 is x and 1 is y; nullptr: none.
template <typename T, typename Int>
SEGDEFORM_HOST_DEVICE BinLines<T> bin_lines(const RoiShape<Int>& g, const T* shifts, int64_t index,
                                            const Roi<T>& roi, Int group, Int ph, Int pw) {
  BinLines<T> bin{};
  bin.lost = true;
  if (roi.image < 0) return bin;
  T shift_y = T(0), shift_x = T(0);
  if (shifts) {
    const Int parts = g.part_h * g.part_w;
    const Int part =
        cell_of_bin(ph, g.pooled_h, g.part_h) * g.part_w + cell_of_bin(pw, g.pooled_w, g.part_w);
    const T* of_part = shifts + (index * g.classes + group) * 2 * parts + part;
    shift_x = T(g.shift_scale) * of_part[0];
    shift_y = T(g.shift_scale) * of_part[parts];
  }
  bin.y = sample_line(g, roi.y, shift_y * roi.y.size, ph, g.pooled_h, g.height);
  bin.x = sample_line(g, roi.x, shift_x * roi.x.size, pw, g.pooled_w, g.width);
  bin.lost = is_lost(bin.y) || is_lost(bin.x);
  return bin;
}

// From the derivative by a bin's shift in pixels to that by the shift itself; `size` is the RoI's.
// A part of the shifts in which no bin lies gets 0, whatever the RoI is.
template <typename T, typename Int>
SEGDEFORM_HOST_DEVICE T by_shift(const RoiShape<Int>& g, T by_pixels, T size) {
  return by_pixels == T(0) ? T(0) : by_pixels * T(g.shift_scale) * size;
}

}  // namespace segdeform
