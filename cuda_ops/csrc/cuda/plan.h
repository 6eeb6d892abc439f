// How the convolution on CUDA is cut into chunks: arithmetic on shapes alone, without CUDA.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "../geometry.h"

namespace segdeform::cuda {

constexpr int64_t kMostRows = std::numeric_limits<int32_t>::max();  // of one launch

// The shapes in 32 bits, in which the kernels count channels, taps, the pixels of one image and the
// rows of one launch; nothing where one of these numbers does not fit. Addresses have 64 bits.
inline std::optional<ConvGeometry<int32_t>> on_device(const Geometry& g) {
  for (const int64_t number : {g.batch, g.out_channels, g.taps() * g.channels, g.in_pixels(),
                               g.out_pixels(), g.pad_h, g.pad_w})
    if (number > kMostRows) return std::nullopt;
  const auto stride = [](int64_t stride, int64_t steps) {  // where there is no step, it may be huge
    return int32_t(steps > 1 ? stride : 1);
  };
  return ConvGeometry<int32_t>{int32_t(g.batch),
                               int32_t(g.channels),
                               int32_t(g.height),
                               int32_t(g.width),
                               int32_t(g.out_channels),
                               int32_t(g.out_height),
                               int32_t(g.out_width),
                               int32_t(g.kernel_h),
                               int32_t(g.kernel_w),
                               stride(g.stride_h, g.out_height),
                               stride(g.stride_w, g.out_width),
                               int32_t(g.pad_h),
                               int32_t(g.pad_w),
                               int32_t(g.dilation_h),
                               int32_t(g.dilation_w),
                               int32_t(g.groups),
                               int32_t(g.offset_groups)};
}

// How many rounds over the GPU's multiprocessors the blocks of a chunk take: those that go over its
// rows, 32 at a time, and those of its product, taken to be tiles of 128 x 128. What is left of a
// last round leaves multiprocessors idle.
struct Waves {
  int64_t multiprocessors;
  int64_t row_blocks;   // that share 32 rows
  int64_t at_once;      // of these, on a multiprocessor
  int64_t tile_blocks;  // that share 128 rows of the product

  constexpr int64_t of(int64_t rows) const {
    return over((over(rows, 32) * row_blocks), at_once * multiprocessors) +
           over(over(rows, 128) * tile_blocks, multiprocessors);
  }
  static constexpr int64_t over(int64_t a, int64_t b) { return (a + b - 1) / b; }
};

// Rows of a chunk, where `most` fit the workspace: all, or whole `units` of more than half of most,
// in as few waves as can be, then in few chunks of like size.
inline int64_t rows_of_chunk(int64_t rows, int64_t most, int64_t unit, const Waves& waves) {
  constexpr int64_t kCandidates = 64;  // more are not worth the time of each call
  if (rows <= most || most < 2 * unit) return std::min(rows, most);
  const int64_t units = most / unit, step = Waves::over(units, 2 * kCandidates);
  const auto cost = [&](int64_t candidate) {
    const int64_t whole = rows / candidate, rest = rows % candidate;
    const int64_t all = whole * waves.of(candidate) + (rest > 0 ? waves.of(rest) : 0);
    return std::make_tuple(all, whole + (rest > 0), candidate);
  };
  auto best = cost(units * unit);
  for (int64_t u = units - step; 2 * u > units; u -= step) best = std::min(best, cost(u * unit));
  return std::get<2>(best);
}

// The same for the forward pass.
inline int64_t forward_rows(int64_t rows, int64_t workspace, int64_t row_bytes,
                            const Waves& waves) {
  constexpr int64_t kProductTile = 128;
  const int64_t most = std::clamp<int64_t>(workspace / row_bytes, 1, kMostRows);
  return rows_of_chunk(rows, most, most < 2 * kProductTile ? 1 : kProductTile, waves);
}

// A run of channels: whole groups of the weight, or a part of one.
struct Slice {
  int64_t first_channel, channels, group_channels;
  constexpr int64_t groups() const { return channels / group_channels; }
};

// The slices of an image's channels of which so many fit. A part of a group is whole vectors.
inline std::vector<Slice> cut_channels(const Geometry& g, int64_t fit, int64_t vector) {
  const int64_t inputs = g.channels_per_group();
  std::vector<Slice> slices;
  if (fit >= inputs) {
    const int64_t whole = fit / inputs * inputs;
    for (int64_t c = 0; c < g.channels; c += whole)
      slices.push_back({c, std::min(whole, g.channels - c), inputs});
    return slices;
  }
  const int64_t part = std::max(vector, fit / vector * vector);
  for (int64_t group = 0; group < g.groups; ++group)
    for (int64_t c = 0; c < inputs; c += part) {
      const int64_t channels = std::min(part, inputs - c);
      slices.push_back({group * inputs + c, channels, channels});
    }
  return slices;
}

// Images whose samples are sorted at a time: 16 bytes a sample, 4 for where each list starts.
inline int64_t images_to_sort(const Geometry& g, int64_t cells, int64_t workspace) {
  const int64_t image_bytes = g.offset_groups * (16 * g.taps() * g.out_pixels() + 4 * cells);
  return std::clamp<int64_t>(workspace / image_bytes, 1, g.batch);
}

// Sorted rows are gone through slice by slice, a slice chunk by chunk. With the gradient of the
// input, whose lists of samples are those of whole images, everything counts in whole images.
struct BackwardPlan {
  std::vector<Slice> slices;
  int64_t rows;         // N*P*Q
  int64_t sorted_rows;  // rows between two sortings, or all
  int64_t chunk_rows;   // rows of a chunk, at most

  // element_bytes: of a column. sorted_images: 0 without the gradient of the input.
  BackwardPlan(const Geometry& g, int64_t workspace, int64_t element_bytes, int64_t vector,
               int64_t sorted_images, int64_t multiprocessors)
      : rows(g.batch * g.out_pixels()) {
    const bool whole_images = sorted_images > 0;
    const int64_t unit = whole_images ? g.out_pixels() : 1;
    const int64_t limit = whole_images ? workspace / 4 * 3 : workspace;  // the rest holds the lists
    const int64_t fit = limit / (g.taps() * element_bytes * unit);       // channels of a unit
    slices = cut_channels(g, std::clamp<int64_t>(fit, 1, g.channels), vector);
    sorted_rows = whole_images ? sorted_images * unit : rows;
    const int64_t most =
        unit * std::clamp<int64_t>(fit / g.channels, 1, std::min(rows, kMostRows) / unit);
    // Two taps a block (samples.cuh), and the product that makes the gradients of the columns.
    const Waves waves{multiprocessors, g.offset_groups * Waves::over(g.taps(), 2), 2,
                      g.groups * Waves::over(g.taps() * g.channels_per_group(), 128)};
    chunk_rows = rows_of_chunk(std::min(sorted_rows, rows), most, unit, waves);
  }

  int64_t widest() const {
    int64_t most = 0;
    for (const Slice& s : slices) most = std::max(most, s.channels);
    return most;
  }

  // Calls f(first, end) for the rows that are sorted together.
  template <typename F>
  void for_sortings(F f) const {
    for (int64_t first = 0; first < rows; first += sorted_rows)
      f(first, std::min(first + sorted_rows, rows));
  }

  // Calls f(first, count) for the chunks of rows that are sorted together.
  template <typename F>
  void for_chunks(int64_t first, int64_t end, F f) const {
    for (int64_t row = first; row < end; row += chunk_rows) f(row, std::min(chunk_rows, end - row));
  }
};

}  // namespace segdeform::cuda
