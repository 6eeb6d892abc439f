// The kernels of RoI pooling, forward and for the gradient of the shifts; that of the input is in
// roi_input_gradient.cuh. A warp is one unit of work; its lanes are channels. Nothing is summed
// by two warps, so results are the same bits in every run, and no memory is zeroed beforehand.
#pragma once

#include <limits>

#include "roi_taps.cuh"
#include "vectors.cuh"

namespace segdeform::cuda {

template <typename T>
struct RoiTask {
  RoiShapes g;
  const T* input;         // [N, H, W, group*group, O]: the channels of one bin lie side by side
  const Real<T>* rois;    // [R, 5]
  const Real<T>* shifts;  // [R, 2*classes, part_h, part_w], or nullptr: none
  const T* grad;          // [R, pooled_h, pooled_w, O]
  T* output;              // like grad
  T* grad_input;          // like input
  Real<T>* grad_shifts;   // like shifts

  // The same from a later RoI on.
  RoiTask from_roi(int64_t index) const {
    RoiTask task = *this;
    const int64_t pooled = index * g.pooled_h * g.pooled_w * g.out_channels;
    const int64_t parts = index * 2 * g.classes * g.part_h * g.part_w;
    task.rois += index * 5;
    if (shifts) task.shifts += parts;
    if (grad) task.grad += pooled;
    if (output) task.output += pooled;
    if (grad_shifts) task.grad_shifts += parts;
    return task;
  }
};

// The kernels say how many blocks a multiprocessor shall hold, at least: left to itself the
// compiler wants more of them and moves registers to memory.
constexpr int kWarpsPerBlock = 4;

// Of less than 2^31 units and a block (roi_plan.h).
__device__ __forceinline__ int32_t warp_number() {
  return int32_t(blockIdx.x * kWarpsPerBlock + threadIdx.x / kWarp);
}

template <typename Int>
SEGDEFORM_HOST_DEVICE Int pieces_of(Int total, Int piece) {
  return (total + piece - 1) / piece;
}

template <typename T>
SEGDEFORM_HOST_DEVICE const T* image_of(const RoiTask<T>& task, int32_t image) {
  return task.input + int64_t(image) * (task.g.height * task.g.width) * task.g.channels;
}

// ---- forward ----

// A warp pools one bin of a RoI, in up to 32 * V channels of one class.
template <int V, typename T>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarp, 5)
    pool_bins(const RoiTask<T> task, int32_t units) {
  using R = Real<T>;
  const RoiShapes& g = task.g;
  const int32_t unit = warp_number();
  if (unit >= units) return;
  const int32_t run = g.out_channels / g.classes, slices = pieces_of(run, kWarp * V);
  const int32_t slice = unit % slices, group = unit / slices % g.classes;
  const int32_t out = unit / slices / g.classes;
  const int32_t pw = out % g.pooled_w, ph = out / g.pooled_w % g.pooled_h;
  const int32_t index = out / g.pooled_w / g.pooled_h;
  const int32_t c = (slice * kWarp + lane_of_warp()) * V;

  const Roi<R> roi = roi_at(g, task.rois + int64_t(index) * 5);
  const WarpBin<R> bin = warp_bin(g, bin_lines(g, task.shifts, index, roi, group, ph, pw));
  R sums[V] = {};
  if (!bin.lost) {
    const T* image = image_of(task, roi.image) + first_channel_of_bin(g, ph, pw) + group * run + c;
    for_pixels<false>(bin, [&](const LaneTap<R>& y, const LaneTap<R>& x) {
      if (c >= run) return;
      const T* from = image + int64_t(y.pixel * g.width + x.pixel) * g.channels;
      const Vector<T, V> pixel = load<V>(from);
      const R weight = y.weight * x.weight;
      for (int k = 0; k < V; ++k) sums[k] += R(pixel.value[k]) * weight;
    });
  }
  const R divisor = bin.lost ? std::numeric_limits<R>::quiet_NaN() : bin.samples;
  for (int k = 0; k < V; ++k) sums[k] /= divisor;
  if (c < run) store<V>(task.output + int64_t(out) * g.out_channels + group * run + c, sums);
}

// ---- gradient of the shifts ----

// Adds the derivatives of <grad, pooled bin> by the shifts in pixels, of this lane's channels:
// along[0] by x, along[1] by y.
template <int V, typename T>
__device__ void add_derivatives(const RoiTask<T>& task, const WarpBin<Real<T>>& bin, const T* image,
                                const T* grad, int32_t run, Real<T> (&along)[2]) {
  using R = Real<T>;
  const RoiShapes& g = task.g;
  for (int32_t first = 0; first < run; first += kWarp * V) {
    const int32_t c = first + lane_of_warp() * V;
    R sums[2] = {};
    Vector<T, V> factors{};
    if (c < run) factors = load<V>(grad + c);
    for_pixels<true>(bin, [&](const LaneTap<R>& y, const LaneTap<R>& x) {
      if (c >= run) return;
      const T* from = image + int64_t(y.pixel * g.width + x.pixel) * g.channels + c;
      const Vector<T, V> pixel = load<V>(from);
      R product = R(0);
      for (int k = 0; k < V; ++k) product += R(pixel.value[k]) * R(factors.value[k]);
      sums[0] += product * (y.weight * x.slope);
      sums[1] += product * (y.slope * x.weight);
    });
    for (int axis = 0; axis < 2; ++axis) along[axis] += sums[axis] / bin.samples;
  }
}

// A warp makes both gradients of one part of a RoI and one class, over all bins of the part.
template <int V, typename T>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarp, 4)
    gradient_of_shifts(const RoiTask<T> task, int32_t units) {
  using R = Real<T>;
  const RoiShapes& g = task.g;
  const int32_t unit = warp_number();
  if (unit >= units) return;
  const int32_t parts = g.part_h * g.part_w, part = unit % parts;
  const int32_t group = unit / parts % g.classes, index = unit / parts / g.classes;
  const int32_t part_y = part / g.part_w, part_x = part % g.part_w;
  const int32_t run = g.out_channels / g.classes;

  const Roi<R> roi = roi_at(g, task.rois + int64_t(index) * 5);
  R along[2] = {};
  for (int32_t ph = first_bin_of_cell(part_y, g.pooled_h, g.part_h);
       ph < first_bin_of_cell(part_y + 1, g.pooled_h, g.part_h); ++ph)
    for (int32_t pw = first_bin_of_cell(part_x, g.pooled_w, g.part_w);
         pw < first_bin_of_cell(part_x + 1, g.pooled_w, g.part_w); ++pw) {
      const WarpBin<R> bin = warp_bin(g, bin_lines(g, task.shifts, index, roi, group, ph, pw));
      if (bin.lost) {
        along[0] = along[1] = std::numeric_limits<R>::quiet_NaN();
        continue;
      }
      const int64_t out = (int64_t(index) * g.pooled_h + ph) * g.pooled_w + pw;
      const T* image = image_of(task, roi.image) + first_channel_of_bin(g, ph, pw) + group * run;
      add_derivatives<V>(task, bin, image, task.grad + out * g.out_channels + group * run, run,
                         along);
    }
  for (int axis = 0; axis < 2; ++axis) along[axis] = warp_sum(along[axis]);
  if (lane_of_warp() != 0) return;
  R* to = task.grad_shifts + (int64_t(index) * g.classes + group) * 2 * parts + part;
  to[0] = by_shift(g, along[0], roi.x.size);
  to[parts] = by_shift(g, along[1], roi.y.size);
}

}  // namespace segdeform::cuda
