// The gradient of the input without atomics: samples are sorted by where they fall, and each input
// pixel gathers what comes to it, in the order of the sorting, which is that of taps and pixels.
//
// A sample falls into a cell: the four corners around it, among them those outside the image. The
// cells of an image are (H + 1) x (W + 1); cell (i, j) has pixel (i - 1, j - 1) as its first
// corner. A pixel is a corner of four cells.
#pragma once

#include "column_gradient.cuh"

namespace segdeform::cuda {

constexpr int kTeamVectors = 2;  // vectors of channels that a lane sums up at a time

inline int64_t count_cells(const Geometry& g) { return (g.height + 1) * (g.width + 1); }

SEGDEFORM_HOST_DEVICE uint32_t count_cells(const Shapes& g) {
  return uint32_t(g.height + 1) * uint32_t(g.width + 1);
}

// Samples of some images by cell. A list for each (image, offset group, cell).
struct SampleLists {
  const uint32_t* samples;  // tap * P*Q + pixel, list after list
  const uint32_t* starts;   // of each list, and the end of the last
};

// A thread a sample: the number of its list, or `none` where its value is 0 or NaN by rule.
// There are less than 2^32 - 1 samples and lists (sorted_samples.h).
template <typename T>
__global__ void __launch_bounds__(kThreads)
    find_lists(Shapes g, Sampling<T> s, int32_t first_image, uint32_t count, uint32_t none,
               uint32_t* lists, uint32_t* samples) {
  using R = Real<T>;
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= count) return;
  const uint32_t pixels = uint32_t(g.out_pixels()), of_group = uint32_t(g.taps()) * pixels;
  const uint32_t segment = i / of_group, id = i % of_group, groups = uint32_t(g.offset_groups);
  const ImagePixel pixel{first_image + int32_t(segment / groups), int32_t(id % pixels)};
  const Position<R> at = position_of(g, s, pixel, int32_t(segment % groups), int32_t(id / pixels));
  samples[i] = id;
  lists[i] = none;
  if (at.y > R(-1) && at.x > R(-1) && at.y < R(g.height) && at.x < R(g.width)) {  // so no NaN
    const int32_t row = floor_of<OneSample<R>>(at.y) + 1, column = floor_of<OneSample<R>>(at.x) + 1;
    lists[i] = segment * count_cells(g) + uint32_t(row) * uint32_t(g.width + 1) + uint32_t(column);
  }
}

// A thread a list, and one for the end: where it starts among the sorted samples.
SEGDEFORM_HOST_DEVICE uint32_t first_not_below(const uint32_t* sorted, uint32_t count,
                                               uint32_t value) {
  uint32_t low = 0, high = count;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (sorted[middle] < value)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

static __global__ void __launch_bounds__(kThreads)
    find_starts(const uint32_t* sorted, uint32_t count, uint32_t lists, uint32_t* starts) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i <= lists) starts[i] = first_not_below(sorted, count, i);
}

// The four lists of one pixel as one.
struct PixelLists {
  uint32_t begin[4], size[4];
  uint32_t total;

  // Corner and place of the entry of that number.
  SEGDEFORM_HOST_DEVICE uint32_t find(uint32_t number, int& corner) const {
    uint32_t place = begin[0] + number;
    corner = 0;
    for (int i = 0; i < 3; ++i) {
      if (number < size[i]) break;
      number -= size[i];
      corner = i + 1;
      place = begin[i + 1] + number;
    }
    return place;
  }
};

SEGDEFORM_HOST_DEVICE PixelLists lists_of(const Shapes& g, const SampleLists& lists,
                                          uint32_t segment, uint32_t pixel) {
  const uint32_t width = uint32_t(g.width), y = pixel / width, x = pixel % width;
  PixelLists found{};
  for (int i = 0; i < 4; ++i) {  // as corner i it belongs to the cell i/2 above and i%2 to the left
    const uint32_t cell = (y + 1 - i / 2) * (width + 1) + x + 1 - i % 2;
    const uint32_t* start = lists.starts + (segment * count_cells(g) + cell);
    found.begin[i] = start[0];
    found.size[i] = start[1] - start[0];
    found.total += found.size[i];
  }
  return found;
}

// What a lane knows of one entry.
template <typename R>
struct Entry {
  uint64_t place;  // of its row and tap in the gradient
  R weight;        // bilinear times the mask
};

template <typename T, typename Gradient>
__device__ Entry<Real<T>> entry_of(const Shapes& g, const Sampling<T>& s, const SampleLists& lists,
                                   const PixelLists& mine, const Gradient& gradient,
                                   uint32_t number, int32_t image, int32_t group) {
  int corner = 0;
  const uint32_t id = lists.samples[mine.find(number, corner)];
  const uint32_t pixels = uint32_t(g.out_pixels()), pixel = id % pixels, tap = id / pixels;
  // The corner lies in the image and the sample in the open interval: find_lists saw to it. So
  // this is Corners::weight, spelled without an index into an array, which would be memory.
  const Sample<Real<T>> sample =
      sample_of<true>(g, s, {image, int32_t(pixel)}, group, int32_t(tap));
  const Real<T> of_row = corner < 2 ? Real<T>(1) - sample.fraction_y : sample.fraction_y;
  const Real<T> of_column = corner % 2 == 0 ? Real<T>(1) - sample.fraction_x : sample.fraction_x;
  return {gradient.place(pixel, tap), of_row * of_column * sample.mask};
}

// Adds E entries of each team, those from number `first` on of the ones that its lanes hold, where
// they are `wanted`. All that memory is asked for is under way before the first of it is used. All
// lanes of the warp call it.
template <int E, int V, typename R, typename Cursor>
__device__ void add_entries(const Team& team, const Entry<R>& own, int first, bool wanted,
                            const Cursor (&cursor)[kTeamVectors], R (&sum)[kTeamVectors][V]) {
  uint64_t place[E];
  R weight[E];
#pragma unroll
  for (int e = 0; e < E; ++e) {
    const int lane = team.first + first + e;
    place[e] = __shfl_sync(kAllLanes, own.place, lane);
    weight[e] = __shfl_sync(kAllLanes, own.weight, lane);
  }
  if (!wanted) return;
  decltype(cursor[0].template load<V>(0)) loaded[E][kTeamVectors];
#pragma unroll
  for (int e = 0; e < E; ++e)
#pragma unroll
    for (int j = 0; j < kTeamVectors; ++j) loaded[e][j] = cursor[j].template load<V>(place[e]);
#pragma unroll
  for (int e = 0; e < E; ++e)
#pragma unroll
    for (int j = 0; j < kTeamVectors; ++j) {
      R grad[V];
      cursor[j].values(loaded[e][j], grad);
      for (int k = 0; k < V; ++k) sum[j][k] += weight[e] * grad[k];
    }
}

// Grid: teams, one for each input pixel of the images; pieces of the slice; parts of a piece.
// The lists begin at `first_listed`, the rows of the gradient at image `first_image`.
template <typename T, int V, typename Gradient>
__global__ void __launch_bounds__(kThreads, 2)
    gather_input_gradient(Shapes g, Sampling<T> s, SampleLists lists, int32_t first_listed,
                          int32_t first_image, int32_t images, int32_t first_channel,
                          int32_t channels, int bits, Gradient gradient, T* grad_input) {
  using R = Real<T>;
  constexpr int kAtOnce = Gradient::kAtOnce;
  const Team team = team_of(bits);
  const Piece piece = piece_of(g, first_channel, channels, int32_t(blockIdx.y));
  const int32_t vectors = piece.channels / V;
  const int32_t first_vector = int32_t(blockIdx.z) * kTeamVectors << bits;
  const uint32_t in_pixels = uint32_t(g.in_pixels());
  const uint32_t pixels = uint32_t(images) * in_pixels;  // less than there are lists
  const uint32_t first_number = blockIdx.x * (kThreads >> bits) + first_team_of_warp(bits);
  if (first_number >= pixels || first_vector >= vectors) return;  // the whole warp

  const uint32_t number = first_number + (team.first >> bits);
  const bool has_pixel = number < pixels;
  const int32_t of_images = has_pixel ? int32_t(number / in_pixels) : 0;
  const int32_t image = first_image + of_images;
  const uint32_t pixel = number - uint32_t(of_images) * in_pixels;
  const uint32_t segment =
      uint32_t(image - first_listed) * uint32_t(g.offset_groups) + uint32_t(piece.offset_group);
  PixelLists mine{};
  if (has_pixel) mine = lists_of(g, lists, segment, pixel);
  typename Gradient::Cursor cursor[kTeamVectors];
  bool in_use[kTeamVectors];
  R sum[kTeamVectors][V] = {};
#pragma unroll
  for (int j = 0; j < kTeamVectors; ++j) {
    const int32_t vector = first_vector + (j << bits) + team.lane;
    in_use[j] = vector < vectors;
    cursor[j] = gradient.at(piece.first_channel + (in_use[j] ? vector : 0) * V,
                            int64_t(of_images) * g.out_pixels());
  }
  for (uint32_t first = 0; __any_sync(kAllLanes, first < mine.total); first += 1u << bits) {
    const uint32_t own = first + uint32_t(team.lane);
    Entry<R> entry{};
    if (own < mine.total)
      entry = entry_of(g, s, lists, mine, gradient, own, image, piece.offset_group);
    const uint32_t left = first < mine.total ? mine.total - first : 0;
    const int count = int(least(uint32_t(team.width()), left));
    int i = 0;
    for (; __all_sync(kAllLanes, i + kAtOnce <= count); i += kAtOnce)
      add_entries<kAtOnce>(team, entry, i, true, cursor, sum);
    for (; __any_sync(kAllLanes, i < count); ++i)
      add_entries<1>(team, entry, i, i < count, cursor, sum);
  }
  if (!has_pixel) return;
  T* out = grad_input + (int64_t(image) * in_pixels + pixel) * g.channels + piece.first_channel;
#pragma unroll
  for (int j = 0; j < kTeamVectors; ++j)
    if (in_use[j]) store<V>(out + (first_vector + (j << bits) + team.lane) * V, sum[j]);
}

template <typename T, int V, typename Gradient>
void launch_input_gradient(const Geometry& g, const Sampling<T>& s, const SampleLists& lists,
                           int64_t first_listed, int64_t first_image, int64_t images,
                           int64_t first_channel, int64_t channels, const Gradient& gradient,
                           T* grad_input, Stream stream) {
  const int64_t widest = least(channels, g.channels_per_offset_group()) / V;
  const int bits = team_bits((widest + kTeamVectors - 1) / kTeamVectors);
  const int64_t part = int64_t(kTeamVectors) << bits;
  const dim3 grid(blocks_for(images * g.in_pixels(), kThreads >> bits),
                  planes_for(count_pieces(g, first_channel, channels)),
                  planes_for((widest + part - 1) / part));
  launch(gather_input_gradient<T, V, Gradient>, grid, kThreads, 0, stream, *on_device(g), s, lists,
         first_listed, first_image, images, first_channel, channels, bits, gradient, grad_input);
}

}  // namespace segdeform::cuda
