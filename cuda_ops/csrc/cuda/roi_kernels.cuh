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
  RoiGeometry g;
  const T* input;         // [N, H, W, group*group, O]: the channels of one bin lie side by side
  const Real<T>* rois;    // [R, 5]
  const Real<T>* shifts;  // [R, 2*classes, part_h, part_w], or nullptr: none
  const T* grad;          // [R, pooled_h, pooled_w, O]
  T* output;              // like grad
  T* grad_input;          // like input
  Real<T>* grad_shifts;   // like shifts
};

constexpr int kWarpsPerBlock = 4;

__device__ __forceinline__ int64_t warp_number() {
  return int64_t(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
}

SEGDEFORM_HOST_DEVICE int64_t pieces_of(int64_t total, int64_t piece) {
  return (total + piece - 1) / piece;
}

// ---- forward ----

// A warp pools one bin of a RoI, in up to 32 * V channels of one class.
template <int V, typename T>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarp)
    pool_bins(const RoiTask<T> task, int64_t units) {
  using R = Real<T>;
  const RoiGeometry& g = task.g;
  const int64_t unit = warp_number();
  if (unit >= units) return;
  const int64_t run = g.out_channels / g.classes, slices = pieces_of(run, kWarp * V);
  const int64_t slice = unit % slices, group = unit / slices % g.classes;
  const int64_t out = unit / slices / g.classes;
  const int64_t pw = out % g.pooled_w, ph = out / g.pooled_w % g.pooled_h;
  const int64_t index = out / g.pooled_w / g.pooled_h;
  const int64_t c = (slice * kWarp + lane_of_warp()) * V;

  const Roi<R> roi = roi_at(g, task.rois + index * 5);
  const WarpBin<R> bin = warp_bin(g, bin_lines(g, task.shifts, index, roi, group, ph, pw));
  R sums[V] = {};
  if (!bin.lost) {
    const T* image = task.input + roi.image * g.height * g.width * g.channels +
                     first_channel_of_bin(g, ph, pw) + group * run + c;
    for_pixels<false>(bin, [&](const LaneTap<R>& y, const LaneTap<R>& x) {
      if (c >= run) return;
      const T* from = image + (int64_t(y.pixel) * g.width + x.pixel) * g.channels;
      const Vector<T, V> pixel = load<V>(from);
      const R weight = y.weight * x.weight;
      for (int k = 0; k < V; ++k) sums[k] += R(pixel.value[k]) * weight;
    });
  }
  const R divisor = bin.lost ? std::numeric_limits<R>::quiet_NaN() : bin.samples;
  for (int k = 0; k < V; ++k) sums[k] /= divisor;
  if (c < run) store<V>(task.output + out * g.out_channels + group * run + c, sums);
}

// ---- gradient of the shifts ----

// Adds the derivatives of <grad, pooled bin> by the shifts in pixels, of this lane's channels:
// along[0] by x, along[1] by y.
template <int V, typename T>
__device__ void add_derivatives(const RoiTask<T>& task, const WarpBin<Real<T>>& bin, const T* image,
                                const T* grad, int64_t run, Real<T> (&along)[2]) {
  using R = Real<T>;
  const RoiGeometry& g = task.g;
  for (int64_t first = 0; first < run; first += kWarp * V) {
    const int64_t c = first + lane_of_warp() * V;
    R sums[2] = {};
    Vector<T, V> factors{};
    if (c < run) factors = load<V>(grad + c);
    for_pixels<true>(bin, [&](const LaneTap<R>& y, const LaneTap<R>& x) {
      if (c >= run) return;
      const T* from = image + (int64_t(y.pixel) * g.width + x.pixel) * g.channels + c;
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
__global__ void __launch_bounds__(kWarpsPerBlock* kWarp)
    gradient_of_shifts(const RoiTask<T> task, int64_t units) {
  using R = Real<T>;
  const RoiGeometry& g = task.g;
  const int64_t unit = warp_number();
  if (unit >= units) return;
  const int64_t parts = g.part_h * g.part_w, part = unit % parts;
  const int64_t group = unit / parts % g.classes, index = unit / parts / g.classes;
  const int64_t part_y = part / g.part_w, part_x = part % g.part_w;
  const int64_t run = g.out_channels / g.classes;

  const Roi<R> roi = roi_at(g, task.rois + index * 5);
  R along[2] = {};
  for (int64_t ph = first_bin_of_cell(part_y, g.pooled_h, g.part_h);
       ph < first_bin_of_cell(part_y + 1, g.pooled_h, g.part_h); ++ph)
    for (int64_t pw = first_bin_of_cell(part_x, g.pooled_w, g.part_w);
         pw < first_bin_of_cell(part_x + 1, g.pooled_w, g.part_w); ++pw) {
      const WarpBin<R> bin = warp_bin(g, bin_lines(g, task.shifts, index, roi, group, ph, pw));
      if (bin.lost) {
        along[0] = along[1] = std::numeric_limits<R>::quiet_NaN();
        continue;
      }
      const int64_t out = (index * g.pooled_h + ph) * g.pooled_w + pw;
      const T* image = task.input + roi.image * g.height * g.width * g.channels +
                       first_channel_of_bin(g, ph, pw) + group * run;
      add_derivatives<V>(task, bin, image, task.grad + out * g.out_channels + group * run, run,
                         along);
    }
  for (int axis = 0; axis < 2; ++axis) along[axis] = warp_sum(along[axis]);
  if (lane_of_warp() != 0) return;
  R* to = task.grad_shifts + (index * g.classes + group) * 2 * parts + part;
  to[0] = by_shift(g, along[0], roi.x.size);
  to[parts] = by_shift(g, along[1], roi.y.size);
}

}  // namespace segdeform::cuda
