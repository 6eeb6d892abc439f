// The sampling rule of deformable convolution and its derivatives, written once for host and
// device.
//
// A sample at (y, x) is bilinear interpolation of the image surrounded by one ring of zeros:
//   value = sum_i weight[i] * image[index[i]],  corners in the order (y0,x0) (y0,x1) (y1,x0)
//   (y1,x1),
// where a corner outside the image has index -1 and is skipped, not multiplied by zero.
// Outside the open interval (-1, H) x (-1, W) all weights are 0; exactly on its border the value is
// 0 but the one-sided derivative is not, so the corners keep their indices there (`value_is_zero`).
// A NaN coordinate has no corner and NaN weights: it is seen in every result and addresses nothing.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define SEGDEFORM_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SEGDEFORM_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace segdeform {

template <typename T>
struct Corners {
  int32_t index[4];  // row-major pixel index, or -1
  T weight[4];
  T fraction_y, fraction_x;  // y - floor(y), x - floor(x); NaN for a NaN coordinate
  bool value_is_zero;        // the sample contributes neither value nor input gradient
};

template <typename T>
SEGDEFORM_HOST_DEVICE Corners<T> corners_at(T y, T x, int32_t height, int32_t width) {
  const bool nan = (y != y) | (x != x);
  const bool closed = (y >= T(-1)) & (y <= T(height)) & (x >= T(-1)) & (x <= T(width));
  const bool open = (y > T(-1)) & (y < T(height)) & (x > T(-1)) & (x < T(width));
  const T safe_y = closed ? y : T(-2);  // both rows of corners then lie outside
  const T safe_x = closed ? x : T(-2);
  const T floor_y = std::floor(safe_y), floor_x = std::floor(safe_x);
  const T ly = safe_y - floor_y, lx = safe_x - floor_x;
  const int32_t y0 = int32_t(floor_y), x0 = int32_t(floor_x);
  const bool row0 = (y0 >= 0) & (y0 < height), row1 = (y0 >= -1) & (y0 < height - 1);
  const bool col0 = (x0 >= 0) & (x0 < width), col1 = (x0 >= -1) & (x0 < width - 1);
  const int32_t base = y0 * width + x0;
  const T missing = nan ? y + x : T(0);  // NaN, or the weight of a corner that is skipped

  Corners<T> c;
  c.index[0] = (row0 & col0) ? base : -1;
  c.index[1] = (row0 & col1) ? base + 1 : -1;
  c.index[2] = (row1 & col0) ? base + width : -1;
  c.index[3] = (row1 & col1) ? base + width + 1 : -1;
  c.weight[0] = (open & row0 & col0) ? (T(1) - ly) * (T(1) - lx) : missing;
  c.weight[1] = (open & row0 & col1) ? (T(1) - ly) * lx : missing;
  c.weight[2] = (open & row1 & col0) ? ly * (T(1) - lx) : missing;
  c.weight[3] = (open & row1 & col1) ? ly * lx : missing;
  c.fraction_y = nan ? missing : ly;
  c.fraction_x = nan ? missing : lx;
  c.value_is_zero = !open & !nan;
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
