// The sampling rule of deformable convolution and its derivatives, written once: for host and
// device, for one sample and for a vector of samples.
//
// A sample at (y, x) is bilinear interpolation of the image surrounded by one ring of zeros:
//   value = sum_i weight[i] * image[index[i]],  corners in the order (y0,x0) (y0,x1) (y1,x0)
//   (y1,x1),
// where a corner outside the image has index -1 and is skipped, not multiplied by zero.
// Outside the open interval (-1, H) x (-1, W) all weights are 0; exactly on its border the value is
// 0 but the one-sided derivative is not, so the corners keep their indices there (`value_is_zero`).
// A NaN coordinate has no corner and NaN weights: it is seen in every result and addresses nothing.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SEGDEFORM_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SEGDEFORM_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace segdeform {

// One sample at a time. Vector code brings its own: Real and Int are then vectors whose lanes have
// the same width, comparisons give lanes of all ones or zeros, and ?: selects by lane.
template <typename T>
struct OneSample {
  using Real = T;
  using Int = int32_t;
  static SEGDEFORM_HOST_DEVICE Int to_int(Real v) { return Int(v); }
  static SEGDEFORM_HOST_DEVICE Real to_real(Int v) { return Real(v); }
};

template <typename Lanes>
struct Corners {
  typename Lanes::Int index[4];  // row-major pixel index, or -1
  typename Lanes::Real weight[4];
  typename Lanes::Real fraction_y, fraction_x;  // y - floor(y), x - floor(x); NaN for NaN
  typename Lanes::Int value_is_zero;  // not 0: neither value nor input gradient comes of it
};

// Rounds down; the values are those of a clamped coordinate, so they fit an integer.
template <typename Lanes>
SEGDEFORM_HOST_DEVICE typename Lanes::Int floor_of(typename Lanes::Real v) {
  const typename Lanes::Int whole = Lanes::to_int(v), one = typename Lanes::Int{} + 1;
  return Lanes::to_real(whole) > v ? whole - one : whole;
}

template <typename Lanes>
SEGDEFORM_HOST_DEVICE Corners<Lanes> corners_at(typename Lanes::Real y, typename Lanes::Real x,
                                                int32_t height, int32_t width) {
  using Real = typename Lanes::Real;
  using Int = typename Lanes::Int;
  const Int none = Int{} - 1, h = Int{} + height, w = Int{} + width;
  const Real zero = Real{}, one = zero + 1, real_h = Lanes::to_real(h), real_w = Lanes::to_real(w);
  const auto nan = (y != y) | (x != x);
  const auto closed = (y >= -one) & (y <= real_h) & (x >= -one) & (x <= real_w);
  const auto open = (y > -one) & (y < real_h) & (x > -one) & (x < real_w);
  // Elsewhere both rows and both columns of corners lie outside.
  const Real safe_y = closed ? y : zero - 2, safe_x = closed ? x : zero - 2;
  const Int y0 = floor_of<Lanes>(safe_y), x0 = floor_of<Lanes>(safe_x);
  const Real ly = safe_y - Lanes::to_real(y0), lx = safe_x - Lanes::to_real(x0);
  const auto row0 = (y0 >= 0) & (y0 < h), row1 = (y0 >= -1) & (y0 < h - 1);
  const auto col0 = (x0 >= 0) & (x0 < w), col1 = (x0 >= -1) & (x0 < w - 1);
  const Int base = y0 * w + x0;
  const Real missing = nan ? y + x : zero;  // NaN, or the weight of a corner that is skipped

  Corners<Lanes> c;
  c.index[0] = (row0 & col0) ? base : none;
  c.index[1] = (row0 & col1) ? base + 1 : none;
  c.index[2] = (row1 & col0) ? base + w : none;
  c.index[3] = (row1 & col1) ? base + w + 1 : none;
  c.weight[0] = (open & row0 & col0) ? (one - ly) * (one - lx) : missing;
  c.weight[1] = (open & row0 & col1) ? (one - ly) * lx : missing;
  c.weight[2] = (open & row1 & col0) ? ly * (one - lx) : missing;
  c.weight[3] = (open & row1 & col1) ? ly * lx : missing;
  c.fraction_y = nan ? missing : ly;
  c.fraction_x = nan ? missing : lx;
  c.value_is_zero = (open | nan) ? Int{} : none;
  return c;
}

// d(value)/dy and d(value)/dx, given the four corner values (or any linear functional of them).
template <typename T>
SEGDEFORM_HOST_DEVICE T derivative_y(T fraction_x, T v0, T v1, T v2, T v3) {
  return (T(1) - fraction_x) * (v2 - v0) + fraction_x * (v3 - v1);
}

template <typename T>
SEGDEFORM_HOST_DEVICE T derivative_x(T fraction_y, T v0, T v1, T v2, T v3) {
  return (T(1) - fraction_y) * (v1 - v0) + fraction_y * (v3 - v2);
}

}  // namespace segdeform
