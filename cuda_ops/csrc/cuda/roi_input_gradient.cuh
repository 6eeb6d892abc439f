// The gradient of RoI pooling's input.
//
// Each pixel collects what the bins that touch it give, in the order of the RoIs. A warp holds a
// tile of pixels in 32 channels, and finds its bins by boxes: of RoIs, then of their bins. Boxes
// and what locates a bin are made once beforehand.
#pragma once

#include "roi_kernels.cuh"

namespace segdeform::cuda {

struct Box {
  int32_t top, bottom, left, right;  // pixels, all inclusive; bottom < top: empty
};

struct RoiBox {
  int32_t image;  // -1: none
  Box box;        // around all bins
};

template <typename R>
struct PlacedBin {
  SampleLine<R> y, x;
  R samples;  // what the sum is divided by
};

// Of all bins, [R, classes, pooled_h, pooled_w], and of all RoIs.
template <typename R>
struct Places {
  Box* boxes;
  PlacedBin<R>* bins;  // where the box is not empty
  RoiBox* rois;
};

SEGDEFORM_HOST_DEVICE bool meet(const Box& a, const Box& b) {
  return a.top <= b.bottom && b.top <= a.bottom && a.left <= b.right && b.left <= a.right;
}

constexpr Box kEmptyBox{0, -1, 0, -1};
constexpr int32_t kNowhere = 1 << 30;  // beyond every pixel

SEGDEFORM_HOST_DEVICE Box around(const Box& a, const Box& b) {
  return {a.top < b.top ? a.top : b.top, a.bottom > b.bottom ? a.bottom : b.bottom,
          a.left < b.left ? a.left : b.left, a.right > b.right ? a.right : b.right};
}

// A warp places one RoI and its bins.
template <typename R>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarp, 5)
    place_bins(const RoiShapes g, const R* rois, const R* shifts, const Places<R> places) {
  const int32_t index = warp_number();
  if (index >= g.rois) return;
  const int32_t count = g.classes * g.pooled_h * g.pooled_w;
  const int64_t first = int64_t(index) * count;
  const Roi<R> roi = roi_at(g, rois + int64_t(index) * 5);
  Box all{kNowhere, -1, kNowhere, -1};
  for (int32_t i = lane_of_warp(); i < count; i += kWarp) {
    const int32_t pw = i % g.pooled_w, ph = i / g.pooled_w % g.pooled_h;
    const int32_t group = i / g.pooled_w / g.pooled_h;
    const BinLines<R> lines = bin_lines(g, shifts, index, roi, group, ph, pw);
    Box& box = places.boxes[first + i];
    box = kEmptyBox;
    if (lines.lost) continue;
    const PixelSpan y = span_of(lines.y, g.height), x = span_of(lines.x, g.width);
    if (y.last < y.first || x.last < x.first) continue;
    box = {y.first, y.last, x.first, x.last};
    places.bins[first + i] = {lines.y, lines.x, sample_count(g, lines)};
    all = around(all, box);
  }
  __syncwarp();
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    const Box other{
        __shfl_xor_sync(kAllLanes, all.top, lanes), __shfl_xor_sync(kAllLanes, all.bottom, lanes),
        __shfl_xor_sync(kAllLanes, all.left, lanes), __shfl_xor_sync(kAllLanes, all.right, lanes)};
    all = around(all, other);
  }
  if (lane_of_warp() == 0) places.rois[index] = {roi.image, all};
}

constexpr int kTileHeight = 4, kTileWidth = 8;  // at most a warp's lanes each

// What a warp of `gradient_of_input` works on.
struct TileOfGradient {
  int32_t image, cell, group;
  int32_t channel;  // of this lane, within those of the class
  Box box;          // of pixels
};

SEGDEFORM_HOST_DEVICE TileOfGradient tile_of_gradient(const RoiShapes& g, int32_t unit, int lane) {
  const int32_t rows = pieces_of(g.height, kTileHeight), columns = pieces_of(g.width, kTileWidth);
  const int32_t slices = pieces_of(g.out_channels / g.classes, kWarp);
  TileOfGradient tile;
  tile.channel = unit % slices * kWarp + lane, unit /= slices;
  tile.group = unit % g.classes, unit /= g.classes;
  tile.cell = unit % (g.group * g.group), unit /= g.group * g.group;
  const int32_t left = unit % columns * kTileWidth, top = unit / columns % rows * kTileHeight;
  tile.image = unit / columns / rows;
  const int32_t bottom = top + kTileHeight - 1, right = left + kTileWidth - 1;
  tile.box = {top, bottom < g.height ? bottom : g.height - 1, left,
              right < g.width ? right : g.width - 1};
  return tile;
}

inline int64_t tiles_of_gradient(const RoiGeometry& g) {
  return g.batch * pieces_of<int64_t>(g.height, kTileHeight) *
         pieces_of<int64_t>(g.width, kTileWidth) * g.group * g.group * g.classes *
         pieces_of<int64_t>(g.out_channels / g.classes, kWarp);
}

// Adds what one bin gives to the tile; `grad` is that of the bin in the first channel of the class,
// `sums` are [kTileHeight, kTileWidth, 32], the last one lanes.
template <typename T>
__device__ void add_bin(const RoiShapes& g, const TileOfGradient& tile,
                        const PlacedBin<Real<T>>& bin, const T* grad, Real<T>* sums) {
  using R = Real<T>;
  R factor = R(0);
  if (tile.channel < g.out_channels / g.classes) factor = R(grad[tile.channel]) / bin.samples;
  const int32_t row = tile.box.top + lane_of_warp(), column = tile.box.left + lane_of_warp();
  const LaneTap<R> own_y = tap_of_pixel<false>(bin.y, g.height, row <= tile.box.bottom ? row : -1,
                                               {tile.box.top, tile.box.bottom});
  const LaneTap<R> own_x = tap_of_pixel<false>(
      bin.x, g.width, column <= tile.box.right ? column : -1, {tile.box.left, tile.box.right});
  const unsigned columns = __ballot_sync(kAllLanes, own_x.weight != R(0));
  for_lanes(__ballot_sync(kAllLanes, own_y.weight != R(0)), [&](int y) {
    const R weight_y = __shfl_sync(kAllLanes, own_y.weight, y);
    for_lanes(columns, [&](int x) {
      const R weight = weight_y * __shfl_sync(kAllLanes, own_x.weight, x);
      sums[(y * kTileWidth + x) * kWarp] += factor * weight;
    });
  });
}

// Adds what the bins of one RoI give to the tile.
template <typename T>
__device__ void add_roi(const RoiTask<T>& task, const Places<Real<T>>& places,
                        const TileOfGradient& tile, int32_t index, Real<T>* sums) {
  const RoiShapes& g = task.g;
  const int32_t top = first_bin_of_cell(tile.cell / g.group, g.pooled_h, g.group);
  const int32_t bottom = first_bin_of_cell(tile.cell / g.group + 1, g.pooled_h, g.group);
  const int32_t left = first_bin_of_cell(tile.cell % g.group, g.pooled_w, g.group);
  const int32_t width = first_bin_of_cell(tile.cell % g.group + 1, g.pooled_w, g.group) - left;
  const int32_t count = (bottom - top) * width, pooled = g.pooled_h * g.pooled_w;
  const int64_t first = (int64_t(index) * g.classes + tile.group) * pooled;
  const T* grad = task.grad + int64_t(index) * pooled * g.out_channels +
                  tile.group * (g.out_channels / g.classes);
  for (int32_t base = 0; base < count; base += kWarp) {
    const int32_t i = base + lane_of_warp();
    const int32_t own = i < count ? (top + i / width) * g.pooled_w + left + i % width : 0;
    const bool hit = i < count && meet(places.boxes[first + own], tile.box);
    for_lanes(__ballot_sync(kAllLanes, hit), [&](int lane) {
      const int32_t b = __shfl_sync(kAllLanes, own, lane);
      add_bin(g, tile, places.bins[first + b], grad + int64_t(b) * g.out_channels, sums);
    });
  }
}

template <typename T>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarp, 7)
    gradient_of_input(const RoiTask<T> task, const Places<Real<T>> places, int32_t units) {
  using R = Real<T>;
  const RoiShapes& g = task.g;
  const int32_t unit = warp_number();
  if (unit >= units) return;
  constexpr int kPixels = kTileHeight * kTileWidth;
  R* sums = shared_memory<R>() + (threadIdx.x / kWarp * kPixels) * kWarp + lane_of_warp();
  for (int i = 0; i < kPixels; ++i) sums[i * kWarp] = R(0);  // read by this lane alone
  const TileOfGradient tile = tile_of_gradient(g, unit, lane_of_warp());
  for (int32_t base = 0; base < g.rois; base += kWarp) {
    const int32_t i = base + lane_of_warp();
    const bool hit =
        i < g.rois && places.rois[i].image == tile.image && meet(places.rois[i].box, tile.box);
    for_lanes(__ballot_sync(kAllLanes, hit),
              [&](int lane) { add_roi(task, places, tile, base + lane, sums); });
  }
  const int32_t run = g.out_channels / g.classes;
  if (tile.channel >= run) return;
  T* to = task.grad_input + tile.cell * g.out_channels + tile.group * run + tile.channel;
  for (int32_t y = tile.box.top; y <= tile.box.bottom; ++y)
    for (int32_t x = tile.box.left; x <= tile.box.right; ++x)
      to[((int64_t(tile.image) * g.height + y) * g.width + x) * g.channels] =
          T(sums[((y - tile.box.top) * kTileWidth + x - tile.box.left) * kWarp]);
}

template <typename R>
constexpr size_t kGradientSharedBytes =
    sizeof(R) * kWarpsPerBlock * kTileHeight * kTileWidth * kWarp;

}  // namespace segdeform::cuda
