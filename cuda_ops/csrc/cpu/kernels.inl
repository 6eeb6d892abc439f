// The CPU kernels, written with the compiler's vector extensions and compiled once for each
// instruction set. The including file sets SEGDEFORM_ISA (a namespace), SEGDEFORM_VECTOR_BYTES and
// SEGDEFORM_PANEL_VECTORS, and switches the instruction set on beforehand.
//
// Nothing here may instantiate a template of the standard library that is not force-inlined: the
// linker could pick its copy, built for these instructions, for a processor that lacks them.
#include <cstring>

#include "../bilinear.h"
#include "kernels.h"

namespace segdeform::cpu::SEGDEFORM_ISA {
namespace {

#define SEGDEFORM_INLINE inline __attribute__((always_inline))

template <typename T>
struct Simd;
template <>
struct Simd<float> {
  typedef float Vector __attribute__((vector_size(SEGDEFORM_VECTOR_BYTES)));
  typedef int32_t IntVector __attribute__((vector_size(SEGDEFORM_VECTOR_BYTES)));
  typedef float Four __attribute__((vector_size(16)));
};
template <>
struct Simd<double> {
  typedef double Vector __attribute__((vector_size(SEGDEFORM_VECTOR_BYTES)));
  typedef int64_t IntVector __attribute__((vector_size(SEGDEFORM_VECTOR_BYTES)));
  typedef double Four __attribute__((vector_size(32)));
};
template <typename T>
using Vec = typename Simd<T>::Vector;
template <typename T>
constexpr int64_t kLanes = SEGDEFORM_VECTOR_BYTES / int64_t(sizeof(T));
constexpr int kPanelVectors = SEGDEFORM_PANEL_VECTORS;
constexpr int kMicroRows = 6;

template <typename T>
SEGDEFORM_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <typename T>
SEGDEFORM_INLINE void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}
// The sums of the lanes of four vectors.
template <typename T>
SEGDEFORM_INLINE void sums_of_lanes(const Vec<T> v[4], T out[4]) {
  using Four = typename Simd<T>::Four;
  T lanes[4][kLanes<T>];
  for (int i = 0; i < 4; ++i) store(lanes[i], v[i]);
  if constexpr (kLanes<T> < 4) {
    for (int i = 0; i < 4; ++i) out[i] = lanes[i][0] + lanes[i][1];
  } else {
    Four four[4];
    for (int i = 0; i < 4; ++i) {
      __builtin_memcpy(&four[i], lanes[i], sizeof(Four));
      for (int64_t k = 4; k < kLanes<T>; k += 4) {
        Four more;
        __builtin_memcpy(&more, lanes[i] + k, sizeof(Four));
        four[i] += more;
      }
    }
    const Four ab = __builtin_shufflevector(four[0], four[1], 0, 4, 1, 5) +
                    __builtin_shufflevector(four[0], four[1], 2, 6, 3, 7);
    const Four cd = __builtin_shufflevector(four[2], four[3], 0, 4, 1, 5) +
                    __builtin_shufflevector(four[2], four[3], 2, 6, 3, 7);
    const Four all =
        __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
    __builtin_memcpy(out, &all, sizeof(Four));
  }
}
SEGDEFORM_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
SEGDEFORM_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
template <typename T>
SEGDEFORM_INLINE PanelLayout panel_layout() {
  return {kPanelVectors * kLanes<T>, kLanes<T>};
}

// ---- matrix product: C[rows, width] += A[rows, depth] * B[depth, width] for one panel B ----

// A(i, k) stands at a[i * a_stride + k], or, transposed, at a[i + k * a_stride].
template <typename T, int Rows, int Vectors, bool Transposed>
SEGDEFORM_INLINE void micro_kernel(const T* a, int64_t a_stride, const T* b, int64_t depth, T* c,
                                   int64_t c_stride) {
  constexpr int64_t kWidth = Vectors * kLanes<T>;
  Vec<T> sums[Rows][Vectors];
  for (int i = 0; i < Rows; ++i)
    for (int j = 0; j < Vectors; ++j) sums[i][j] = load(c + i * c_stride + j * kLanes<T>);
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> row[Vectors];
    for (int j = 0; j < Vectors; ++j) row[j] = load(b + k * kWidth + j * kLanes<T>);
    for (int i = 0; i < Rows; ++i) {
      const T factor = Transposed ? a[i + k * a_stride] : a[i * a_stride + k];
      for (int j = 0; j < Vectors; ++j) sums[i][j] += row[j] * factor;
    }
  }
  for (int i = 0; i < Rows; ++i)
    for (int j = 0; j < Vectors; ++j) store(c + i * c_stride + j * kLanes<T>, sums[i][j]);
}

template <typename T, int Vectors, bool Transposed>
void row_blocks(int64_t rows, const T* a, int64_t a_stride, const T* b, int64_t depth, T* c,
                int64_t c_stride) {
  const int64_t step = Transposed ? 1 : a_stride;
  for (; rows >= kMicroRows; rows -= kMicroRows) {
    micro_kernel<T, kMicroRows, Vectors, Transposed>(a, a_stride, b, depth, c, c_stride);
    a += kMicroRows * step;
    c += kMicroRows * c_stride;
  }
  switch (rows) {
    case 1:
      return micro_kernel<T, 1, Vectors, Transposed>(a, a_stride, b, depth, c, c_stride);
    case 2:
      return micro_kernel<T, 2, Vectors, Transposed>(a, a_stride, b, depth, c, c_stride);
    case 3:
      return micro_kernel<T, 3, Vectors, Transposed>(a, a_stride, b, depth, c, c_stride);
    case 4:
      return micro_kernel<T, 4, Vectors, Transposed>(a, a_stride, b, depth, c, c_stride);
    case 5:
      return micro_kernel<T, 5, Vectors, Transposed>(a, a_stride, b, depth, c, c_stride);
    default:
      return;
  }
}

template <typename T, bool Transposed>
void panel_product(int64_t width, int64_t rows, const T* a, int64_t a_stride, const T* b,
                   int64_t depth, T* c, int64_t c_stride) {
  switch (width / kLanes<T>) {
    case 1:
      return row_blocks<T, 1, Transposed>(rows, a, a_stride, b, depth, c, c_stride);
    case 2:
      return row_blocks<T, 2, Transposed>(rows, a, a_stride, b, depth, c, c_stride);
#if SEGDEFORM_PANEL_VECTORS == 4
    case 3:
      return row_blocks<T, 3, Transposed>(rows, a, a_stride, b, depth, c, c_stride);
    case 4:
      return row_blocks<T, 4, Transposed>(rows, a, a_stride, b, depth, c, c_stride);
#endif
    default:
      return;
  }
}

// ---- sampling ----

// As many samples as a vector has lanes, for corners_at.
template <typename T>
struct VectorOfSamples {
  using Real = Vec<T>;
  using Int = typename Simd<T>::IntVector;
  static SEGDEFORM_INLINE Int to_int(Real v) { return __builtin_convertvector(v, Int); }
  static SEGDEFORM_INLINE Real to_real(Int v) { return __builtin_convertvector(v, Real); }
};
template <typename T>
using Index = decltype(typename Simd<T>::IntVector{}[0] + 0);

constexpr int64_t kTilePixels = kForwardPixels > kBackwardPixels ? kForwardPixels : kBackwardPixels;
static_assert(kTilePixels % 16 == 0, "samples are located a vector at a time");

// Where the pixels of one tile sample one (tap, offset group): arrays over the tile's pixels.
template <typename T>
struct SamplePoints {
  Index<T> index[4][kTilePixels];
  T weight[4][kTilePixels];  // bilinear
  T scaled[4][kTilePixels];  // bilinear times the mask
  T fraction_y[kTilePixels], fraction_x[kTilePixels];
  T mask[kTilePixels];
  Index<T> value_is_zero[kTilePixels];
};

// The pixels of one tile: consecutive in [N, P, Q].
template <typename T>
struct Tile {
  int64_t pixels;
  int64_t image[kTilePixels];
  int32_t y[kTilePixels], x[kTilePixels];  // top-left of the kernel window in the input
  int64_t offset_at[kTilePixels], mask_at[kTilePixels];
};

template <typename T>
void locate_tile(const Geometry& g, const Sampling<T>& s, int64_t first, int64_t pixels,
                 Tile<T>& tile) {
  tile.pixels = pixels;
  int64_t n = first / g.out_pixels();
  int64_t p = first % g.out_pixels() / g.out_width, q = first % g.out_width;
  for (int64_t m = 0; m < pixels; ++m) {
    tile.image[m] = n;
    tile.y[m] = int32_t(p * g.stride_h - g.pad_h);
    tile.x[m] = int32_t(q * g.stride_w - g.pad_w);
    tile.offset_at[m] = n * s.offset_stride[0] + p * s.offset_stride[2] + q * s.offset_stride[3];
    tile.mask_at[m] = n * s.mask_stride[0] + p * s.mask_stride[2] + q * s.mask_stride[3];
    if (++q == g.out_width) {
      q = 0;
      if (++p == g.out_height) p = 0, ++n;
    }
  }
}

template <typename T>
void locate_samples(const Geometry& g, const Sampling<T>& s, const Tile<T>& tile, int64_t tap,
                    int64_t offset_group, SamplePoints<T>& points) {
  const int64_t channel = (offset_group * g.taps() + tap);
  const T* dy = s.offset + 2 * channel * s.offset_stride[1];
  const T* dx = dy + s.offset_stride[1];
  const T* mask = s.mask ? s.mask + channel * s.mask_stride[1] : nullptr;
  const int32_t tap_y = int32_t(tap / g.kernel_w * g.dilation_h);
  const int32_t tap_x = int32_t(tap % g.kernel_w * g.dilation_w);
  T y[kTilePixels], x[kTilePixels];
  for (int64_t m = 0; m < tile.pixels; ++m) {
    y[m] = T(tile.y[m] + tap_y) + dy[tile.offset_at[m]];
    x[m] = T(tile.x[m] + tap_x) + dx[tile.offset_at[m]];
    points.mask[m] = mask ? mask[tile.mask_at[m]] : T(1);
  }
  for (int64_t m = tile.pixels; m % kLanes<T> != 0; ++m) y[m] = x[m] = points.mask[m] = T(0);
  for (int64_t m = 0; m < tile.pixels; m += kLanes<T>) {
    const auto c = corners_at<VectorOfSamples<T>>(load(y + m), load(x + m), int32_t(g.height),
                                                  int32_t(g.width));
    const Vec<T> scale = load(points.mask + m);
    for (int i = 0; i < 4; ++i) {
      __builtin_memcpy(&points.index[i][m], &c.index[i], sizeof c.index[i]);
      store(&points.weight[i][m], c.weight[i]);
      store(&points.scaled[i][m], c.weight[i] * scale);
    }
    store(&points.fraction_y[m], c.fraction_y);
    store(&points.fraction_x[m], c.fraction_x);
    __builtin_memcpy(&points.value_is_zero[m], &c.value_is_zero, sizeof c.value_is_zero);
  }
}

template <typename T>
struct CornerRows {
  const T* row[4];
  T weight[4];  // times the mask
};

template <typename T>
SEGDEFORM_INLINE CornerRows<T> corner_rows(const Geometry& g, const Sampling<T>& s,
                                           const Tile<T>& tile, const SamplePoints<T>& points,
                                           int64_t m, int64_t first_channel) {
  const T* image = s.input + tile.image[m] * g.in_pixels() * g.channels + first_channel;
  CornerRows<T> rows;
  for (int i = 0; i < 4; ++i) {
    const int64_t index = points.index[i][m];
    rows.row[i] = index < 0 ? s.zeros : image + index * g.channels;
    rows.weight[i] = points.scaled[i][m];
  }
  return rows;
}

// out[0..channels) = sum_i weight[i] * row[i][0..channels)
template <typename T>
SEGDEFORM_INLINE void interpolate(const CornerRows<T>& r, int64_t channels, T* out) {
  int64_t c = 0;
  for (; c + kLanes<T> <= channels; c += kLanes<T>)
    store(out + c, load(r.row[0] + c) * r.weight[0] + load(r.row[1] + c) * r.weight[1] +
                       load(r.row[2] + c) * r.weight[2] + load(r.row[3] + c) * r.weight[3]);
  for (; c < channels; ++c)
    out[c] = r.row[0][c] * r.weight[0] + r.row[1][c] * r.weight[1] + r.row[2][c] * r.weight[2] +
             r.row[3][c] * r.weight[3];
}

// Calls f(offset group, first channel, channels) for the runs of [first, first + channels) that
// share an offset group.
template <typename F>
SEGDEFORM_INLINE void for_offset_groups(const Geometry& g, int64_t first, int64_t channels, F f) {
  const int64_t size = g.channels_per_offset_group();
  for (int64_t c = first; c < first + channels;) {
    const int64_t group = c / size;
    const int64_t end = least((group + 1) * size, first + channels);
    f(group, c, end - c);
    c = end;
  }
}

// ---- forward ----

// Hands out the parts of one thread's scratch memory, each on a cache line of its own.
template <typename T>
struct Scratch {
  T* next;

  static int64_t rounded(int64_t elements) { return (elements + 15) / 16 * 16; }
  template <typename S>
  static int64_t structs_size(int64_t count) {
    return rounded((count * int64_t(sizeof(S)) + int64_t(sizeof(T)) - 1) / int64_t(sizeof(T)));
  }
  T* take(int64_t elements) {
    T* taken = next;
    next += rounded(elements);
    return taken;
  }
  template <typename S>
  S* take_structs(int64_t count) {
    return reinterpret_cast<S*>(take(structs_size<S>(count)));
  }
};

// Row length of the columns that a forward tile holds at a time.
template <typename T>
int64_t column_stride(const Geometry& g) {
  return least(g.channels * g.taps(), kColumnChannels) + kRowPadding;
}

template <typename T>
int64_t forward_scratch(const ForwardTask<T>& task) {
  const Geometry& g = task.g;
  using S = Scratch<T>;
  const int64_t tile = S::template structs_size<Tile<T>>(1);
  if (g.depthwise())
    return tile + S::template structs_size<SamplePoints<T>>(g.taps()) +
           S::template structs_size<CornerRows<T>>(g.taps());
  return tile + S::template structs_size<SamplePoints<T>>(1) +
         S::rounded(g.groups * panel_layout<T>().size(task.tile_pixels, g.outputs_per_group())) +
         S::rounded(task.tile_pixels * column_stride<T>(g));
}

// Fills columns[m, (tap - first_tap) * channels + c] for a run of taps and channels.
template <typename T>
void gather_columns(const ForwardTask<T>& task, const Tile<T>& tile, SamplePoints<T>& points,
                    int64_t first_tap, int64_t taps, int64_t first_channel, int64_t channels,
                    T* columns, int64_t stride) {
  const Geometry& g = task.g;
  for (int64_t t = 0; t < taps; ++t)
    for_offset_groups(g, first_channel, channels, [&](int64_t group, int64_t c, int64_t run) {
      locate_samples(g, task.sampling, tile, first_tap + t, group, points);
      T* out = columns + t * channels + (c - first_channel);
      for (int64_t m = 0; m < tile.pixels; ++m)
        interpolate(corner_rows(g, task.sampling, tile, points, m, c), run, out + m * stride);
    });
}

template <typename T>
void store_output(const ForwardTask<T>& task, const T* sums, int64_t first, int64_t pixels) {
  const Geometry& g = task.g;
  const PanelLayout layout = panel_layout<T>();
  const int64_t outputs = g.outputs_per_group();
  for (int64_t group = 0; group < g.groups; ++group)
    for (int64_t o = 0; o < outputs; o += layout.panel) {
      const int64_t width = layout.width(outputs, o), used = least(width, outputs - o);
      const T* panel = sums + group * layout.size(task.tile_pixels, outputs) + o * task.tile_pixels;
      T* out = task.output + first * g.out_channels + group * outputs + o;
      const T* bias = task.bias ? task.bias + group * outputs + o : nullptr;
      for (int64_t m = 0; m < pixels; ++m, out += g.out_channels, panel += width)
        for (int64_t i = 0; i < used; ++i) out[i] = bias ? panel[i] + bias[i] : panel[i];
    }
}

// The product of one tile with every group that has channels in [c0, c0 + channels).
template <typename T>
void multiply_columns(const ForwardTask<T>& task, int64_t pixels, int64_t first_tap, int64_t taps,
                      int64_t c0, int64_t channels, const T* columns, int64_t stride, T* sums) {
  const Geometry& g = task.g;
  const PanelLayout layout = panel_layout<T>();
  const int64_t inputs = g.channels_per_group(), outputs = g.outputs_per_group();
  const int64_t depth = g.taps() * inputs;
  for (int64_t c = c0; c < c0 + channels;) {
    const int64_t group = c / inputs, inside = c % inputs;
    const int64_t run = least(inputs - inside, c0 + channels - c);
    const T* weight = task.weight + group * layout.size(depth, outputs);
    T* out = sums + group * layout.size(task.tile_pixels, outputs);
    // Taps follow each other in the columns and in the weight only where a run is all of both.
    const bool together = run == channels && run == inputs;
    for (int64_t t = 0; t < (together ? 1 : taps); ++t)
      for (int64_t o = 0; o < outputs; o += layout.panel) {
        const int64_t width = layout.width(outputs, o);
        const T* b = weight + o * depth + ((first_tap + t) * inputs + inside) * width;
        panel_product<T, false>(width, pixels, columns + t * channels + (c - c0), stride, b,
                                together ? taps * run : run, out + o * task.tile_pixels, width);
      }
    c += run;
  }
}

template <typename T>
void forward_dense(const ForwardTask<T>& task, int64_t first, int64_t pixels, T* memory) {
  const Geometry& g = task.g;
  const PanelLayout layout = panel_layout<T>();
  Scratch<T> scratch{memory};
  Tile<T>& tile = *scratch.template take_structs<Tile<T>>(1);
  SamplePoints<T>& points = *scratch.template take_structs<SamplePoints<T>>(1);
  const int64_t sums_size = g.groups * layout.size(task.tile_pixels, g.outputs_per_group());
  T* sums = scratch.take(sums_size);
  T* columns = scratch.take(task.tile_pixels * column_stride<T>(g));
  const int64_t stride = column_stride<T>(g);
  locate_tile(g, task.sampling, first, pixels, tile);
  __builtin_memset(sums, 0, sums_size * sizeof(T));

  // A block holds whole groups, or a part of one group that is too large.
  const int64_t inputs = g.channels_per_group();
  const int64_t block =
      inputs > kColumnChannels ? kColumnChannels : kColumnChannels / inputs * inputs;
  for (int64_t c = 0; c < g.channels;) {
    const int64_t group_end = inputs > kColumnChannels ? (c / inputs + 1) * inputs : g.channels;
    const int64_t channels = least(block, group_end - c);
    const int64_t taps_at_once = most(1, kColumnChannels / channels);
    for (int64_t t = 0; t < g.taps(); t += taps_at_once) {
      const int64_t taps = least(taps_at_once, g.taps() - t);
      gather_columns(task, tile, points, t, taps, c, channels, columns, stride);
      multiply_columns(task, pixels, t, taps, c, channels, columns, stride, sums);
    }
    c += channels;
  }
  store_output(task, sums, first, pixels);
}

// groups == C == O: one multiplication per sample, so gather and accumulate without a product.
// `rows` holds one entry a tap; everything points at the first of `run` channels.
template <typename T, int Vectors>
SEGDEFORM_INLINE void depthwise_block(const CornerRows<T>* rows, int64_t taps, const T* weight,
                                      int64_t weight_stride, int64_t c, T* out) {
  Vec<T> sums[Vectors];
  for (int j = 0; j < Vectors; ++j) sums[j] = load(out + c + j * kLanes<T>);
  for (int64_t t = 0; t < taps; ++t) {
    const CornerRows<T>& r = rows[t];
    for (int j = 0; j < Vectors; ++j) {
      const int64_t at = c + j * kLanes<T>;
      sums[j] += load(weight + t * weight_stride + at) *
                 (load(r.row[0] + at) * r.weight[0] + load(r.row[1] + at) * r.weight[1] +
                  load(r.row[2] + at) * r.weight[2] + load(r.row[3] + at) * r.weight[3]);
    }
  }
  for (int j = 0; j < Vectors; ++j) store(out + c + j * kLanes<T>, sums[j]);
}

template <typename T>
void depthwise_pixel(const CornerRows<T>* rows, int64_t taps, const T* weight,
                     int64_t weight_stride, int64_t run, T* out) {
  int64_t c = 0;
  for (; c + 4 * kLanes<T> <= run; c += 4 * kLanes<T>)
    depthwise_block<T, 4>(rows, taps, weight, weight_stride, c, out);
  for (; c + kLanes<T> <= run; c += kLanes<T>)
    depthwise_block<T, 1>(rows, taps, weight, weight_stride, c, out);
  for (; c < run; ++c)
    for (int64_t t = 0; t < taps; ++t) {
      const CornerRows<T>& r = rows[t];
      out[c] +=
          weight[t * weight_stride + c] * (r.row[0][c] * r.weight[0] + r.row[1][c] * r.weight[1] +
                                           r.row[2][c] * r.weight[2] + r.row[3][c] * r.weight[3]);
    }
}

template <typename T>
void forward_depthwise(const ForwardTask<T>& task, int64_t first, int64_t pixels, T* memory) {
  const Geometry& g = task.g;
  const int64_t taps = g.taps();
  Scratch<T> scratch{memory};
  Tile<T>& tile = *scratch.template take_structs<Tile<T>>(1);
  SamplePoints<T>* points = scratch.template take_structs<SamplePoints<T>>(taps);
  CornerRows<T>* rows = scratch.template take_structs<CornerRows<T>>(taps);
  locate_tile(g, task.sampling, first, pixels, tile);
  for_offset_groups(g, 0, g.channels, [&](int64_t group, int64_t c, int64_t run) {
    for (int64_t t = 0; t < taps; ++t) locate_samples(g, task.sampling, tile, t, group, points[t]);
    for (int64_t m = 0; m < pixels; ++m) {
      T* out = task.output + (first + m) * g.channels + c;
      for (int64_t i = 0; i < run; ++i) out[i] = task.bias ? task.bias[c + i] : T(0);
      for (int64_t t = 0; t < taps; ++t)
        rows[t] = corner_rows(g, task.sampling, tile, points[t], m, c);
      depthwise_pixel(rows, taps, task.weight + c, g.channels, run, out);
    }
  });
}

template <typename T>
void forward_tile(const ForwardTask<T>& task, int64_t index, T* scratch) {
  const int64_t first = index * task.tile_pixels;
  const int64_t pixels = least(task.tile_pixels, task.g.batch * task.g.out_pixels() - first);
  if (task.g.depthwise())
    forward_depthwise(task, first, pixels, scratch);
  else
    forward_dense(task, first, pixels, scratch);
}

// ---- backward ----

// Rows of the input gradient that a sample adds to; a skipped corner adds to `spare`.
template <typename T>
SEGDEFORM_INLINE void gradient_rows(const BackwardTask<T>& task, const Tile<T>& tile,
                                    const SamplePoints<T>& points, int64_t m, int64_t channel,
                                    T* spare, T* rows[4]) {
  const Geometry& g = task.g;
  T* image = task.grad_input + tile.image[m] * g.in_pixels() * g.channels + channel;
  for (int i = 0; i < 4; ++i) {
    const int64_t index = points.index[i][m];
    rows[i] = index < 0 || points.value_is_zero[m] ? spare : image + index * g.channels;
  }
}

// The inner products <gradient of the column, corner i>, from which all sample gradients follow.
template <typename T>
struct CornerProducts {
  T s[4];
};

// On entry column[] is the gradient of the column; on return it is the column itself.
template <typename T, bool NeedInput, bool NeedSamples>
SEGDEFORM_INLINE CornerProducts<T> backpropagate(const CornerRows<T>& r, T* const grad_rows[4],
                                                 int64_t channels, T* column) {
  Vec<T> sums[4] = {};
  int64_t c = 0;
  for (; c + kLanes<T> <= channels; c += kLanes<T>) {
    const Vec<T> grad = load(column + c);
    Vec<T> v[4];
    for (int i = 0; i < 4; ++i) v[i] = load(r.row[i] + c);
    store(column + c,
          v[0] * r.weight[0] + v[1] * r.weight[1] + v[2] * r.weight[2] + v[3] * r.weight[3]);
    for (int i = 0; i < 4; ++i) {
      if (NeedSamples) sums[i] += grad * v[i];
      if (NeedInput) store(grad_rows[i] + c, load(grad_rows[i] + c) + grad * r.weight[i]);
    }
  }
  CornerProducts<T> products = {};
  if (NeedSamples) sums_of_lanes<T>(sums, products.s);
  for (; c < channels; ++c) {
    const T grad = column[c];
    column[c] = r.row[0][c] * r.weight[0] + r.row[1][c] * r.weight[1] + r.row[2][c] * r.weight[2] +
                r.row[3][c] * r.weight[3];
    for (int i = 0; i < 4; ++i) {
      if (NeedSamples) products.s[i] += grad * r.row[i][c];
      if (NeedInput) grad_rows[i][c] += grad * r.weight[i];
    }
  }
  return products;
}

// Adds d/dy, d/dx and d/dmask of one sample; `out` is this tap's [3, P*Q] at the pixel.
template <typename T>
SEGDEFORM_INLINE void add_sample_gradients(const SamplePoints<T>& points, int64_t m,
                                           const CornerProducts<T>& p, int64_t pixels, T* out) {
  const T* s = p.s;
  out[0] += points.mask[m] * derivative_y(points.fraction_x[m], s[0], s[1], s[2], s[3]);
  out[pixels] += points.mask[m] * derivative_x(points.fraction_y[m], s[0], s[1], s[2], s[3]);
  out[2 * pixels] += points.weight[0][m] * s[0] + points.weight[1][m] * s[1] +
                     points.weight[2][m] * s[2] + points.weight[3][m] * s[3];
}

// One (tap, offset group) of one tile: turns gradients of columns into columns, and on the way
// adds to the gradients of input, offset and mask.
template <typename T, bool NeedInput, bool NeedSamples>
void backpropagate_samples(const BackwardTask<T>& task, const Tile<T>& tile,
                           const SamplePoints<T>& points, int64_t channel, int64_t run, T* columns,
                           int64_t stride, T* spare, T* samples) {
  const int64_t pixels = task.g.out_pixels();
  for (int64_t m = 0; m < tile.pixels; ++m) {
    T* column = columns + m * stride;
    T* grad_rows[4];
    if (NeedInput) gradient_rows(task, tile, points, m, channel, spare, grad_rows);
    const CornerRows<T> rows = corner_rows(task.g, task.sampling, tile, points, m, channel);
    const CornerProducts<T> products =
        backpropagate<T, NeedInput, NeedSamples>(rows, grad_rows, run, column);
    // A corner whose weight is 0 but whose value is not finite must not reach the column.
    if (points.value_is_zero[m]) __builtin_memset(column, 0, run * sizeof(T));
    if (NeedSamples) add_sample_gradients(points, m, products, pixels, samples + m);
  }
}

template <typename T>
void backpropagate_tile(const BackwardTask<T>& task, const Tile<T>& tile, SamplePoints<T>& points,
                        const Slice& slice, int64_t first_channel, int64_t channels,
                        int64_t first_pixel, T* columns, int64_t stride, T* spare) {
  const Geometry& g = task.g;
  const int64_t first_group = slice.first_channel / g.channels_per_offset_group();
  const int64_t last_group =
      (slice.first_channel + slice.channels - 1) / g.channels_per_offset_group();
  for (int64_t t = 0; t < g.taps(); ++t)
    for_offset_groups(g, first_channel, channels, [&](int64_t group, int64_t c, int64_t run) {
      locate_samples(g, task.sampling, tile, t, group, points);
      const int64_t row = tile.image[0] * (last_group - first_group + 1) + (group - first_group);
      T* samples = task.grad_samples
                       ? task.grad_samples + (row * g.taps() + t) * 3 * g.out_pixels() + first_pixel
                       : nullptr;
      T* out = columns + t * channels + (c - first_channel);
      if (task.grad_input && samples)
        backpropagate_samples<T, true, true>(task, tile, points, c, run, out, stride, spare,
                                             samples);
      else if (task.grad_input)
        backpropagate_samples<T, true, false>(task, tile, points, c, run, out, stride, spare,
                                              samples);
      else if (samples)
        backpropagate_samples<T, false, true>(task, tile, points, c, run, out, stride, spare,
                                              samples);
      else
        backpropagate_samples<T, false, false>(task, tile, points, c, run, out, stride, spare,
                                               samples);
    });
}

template <typename T>
int64_t backward_column_stride(const Geometry& g, int64_t channels) {
  return panel_layout<T>().padded(g.taps() * channels) + kRowPadding;
}

template <typename T>
int64_t backward_scratch(const BackwardTask<T>& task, const Slice& slice) {
  using S = Scratch<T>;
  const int64_t channels = least(slice.channels, task.slice_channels);
  return S::template structs_size<Tile<T>>(1) + S::template structs_size<SamplePoints<T>>(1) +
         S::rounded(channels) +
         S::rounded(task.tile_pixels * backward_column_stride<T>(task.g, channels));
}

// One unit (channels of one group) of one tile of the dense backward.
template <typename T>
void backward_unit(const BackwardTask<T>& task, const Tile<T>& tile, SamplePoints<T>& points,
                   const Slice& slice, int64_t first_channel, int64_t channels, int64_t first_pixel,
                   const T* grad, T* columns, T* spare) {
  const Geometry& g = task.g;
  const PanelLayout layout = panel_layout<T>();
  const int64_t outputs = g.outputs_per_group(), width = g.taps() * channels;
  const int64_t stride = backward_column_stride<T>(g, channels);
  // Units before this one in weight and grad_weight: whole groups, then parts of this group.
  const int64_t inputs = g.channels_per_group();
  const int64_t group = first_channel / inputs, inside = first_channel % inputs;
  const int64_t units = inside / task.slice_channels, full = task.slice_channels * g.taps();
  const int64_t parts = inputs / task.slice_channels, rest = inputs % task.slice_channels;

  if (task.weight) {
    const int64_t group_size =
        outputs * (parts * layout.padded(full) + layout.padded(rest * g.taps()));
    const T* weight = task.weight + group * group_size + units * outputs * layout.padded(full);
    for (int64_t m = 0; m < tile.pixels; ++m)
      __builtin_memset(columns + m * stride, 0, layout.padded(width) * sizeof(T));
    for (int64_t n = 0; n < width; n += layout.panel)
      for (int64_t o = 0; o < outputs; o += layout.panel) {
        const int64_t depth = least(layout.panel, outputs - o), panel = layout.width(width, n);
        panel_product<T, false>(panel, tile.pixels, grad + o * task.tile_pixels,
                                layout.width(outputs, o), weight + n * outputs + o * panel, depth,
                                columns + n, stride);
      }
  }
  backpropagate_tile(task, tile, points, slice, first_channel, channels, first_pixel, columns,
                     stride, spare);
  if (task.grad_weight) {
    T* grad_weight = task.grad_weight + first_channel * g.taps() * layout.padded(outputs);
    for (int64_t o = 0; o < outputs; o += layout.panel) {
      const int64_t panel = layout.width(outputs, o);
      panel_product<T, true>(panel, width, columns, stride, grad + o * task.tile_pixels,
                             tile.pixels, grad_weight + o * width, panel);
    }
  }
}

template <typename T>
void backward_dense(const BackwardTask<T>& task, const Slice& slice, T* memory) {
  const Geometry& g = task.g;
  const int64_t largest = least(slice.channels, task.slice_channels);
  Scratch<T> scratch{memory};
  Tile<T>& tile = *scratch.template take_structs<Tile<T>>(1);
  SamplePoints<T>& points = *scratch.template take_structs<SamplePoints<T>>(1);
  T* spare = scratch.take(largest);
  T* columns = scratch.take(task.tile_pixels * backward_column_stride<T>(g, largest));
  const int64_t tiles = (g.out_pixels() + task.tile_pixels - 1) / task.tile_pixels;
  const int64_t inputs = g.channels_per_group();
  const int64_t grad_size = panel_layout<T>().size(task.tile_pixels, g.outputs_per_group());
  for (int64_t n = task.first_image; n < task.first_image + task.images; ++n)
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t first = i * task.tile_pixels;
      const int64_t pixels = least(task.tile_pixels, g.out_pixels() - first);
      locate_tile(g, task.sampling, n * g.out_pixels() + first, pixels, tile);
      const T* grad = task.grad + (n * tiles + i) * g.groups * grad_size;
      for (int64_t c = slice.first_channel; c < slice.first_channel + slice.channels;) {
        const int64_t channels = least(least(task.slice_channels, inputs - c % inputs),
                                       slice.first_channel + slice.channels - c);
        backward_unit(task, tile, points, slice, c, channels, first, grad + c / inputs * grad_size,
                      columns, spare);
        c += channels;
      }
    }
}

// Depthwise: the gradient of a column is grad * weight, and needs no product.
template <typename T>
void backward_depthwise(const BackwardTask<T>& task, const Slice& slice, T* memory) {
  const Geometry& g = task.g;
  const int64_t taps = g.taps(), channels = slice.channels, first_channel = slice.first_channel;
  Scratch<T> scratch{memory};
  Tile<T>& tile = *scratch.template take_structs<Tile<T>>(1);
  SamplePoints<T>& points = *scratch.template take_structs<SamplePoints<T>>(1);
  T* spare = scratch.take(channels);
  const int64_t stride = backward_column_stride<T>(g, channels);
  T* columns = scratch.take(task.tile_pixels * stride);
  const int64_t end = task.first_image + task.images;
  for (int64_t n = task.first_image; n < end; ++n)
    for (int64_t first = 0; first < g.out_pixels(); first += task.tile_pixels) {
      const int64_t pixels = least(task.tile_pixels, g.out_pixels() - first);
      locate_tile(g, task.sampling, n * g.out_pixels() + first, pixels, tile);
      const T* grad = task.grad + (n * g.out_pixels() + first) * g.channels + first_channel;
      for (int64_t m = 0; m < pixels; ++m)
        for (int64_t t = 0; t < taps; ++t) {
          const T* weight = task.weight + t * g.channels + first_channel;
          T* column = columns + m * stride + t * channels;
          for (int64_t c = 0; c < channels; ++c) column[c] = grad[m * g.channels + c] * weight[c];
        }
      backpropagate_tile(task, tile, points, slice, first_channel, channels, first, columns, stride,
                         spare);
      if (!task.grad_weight) continue;
      for (int64_t m = 0; m < pixels; ++m)
        for (int64_t t = 0; t < taps; ++t) {
          const T* column = columns + m * stride + t * channels;
          T* out = task.grad_weight + t * g.channels + first_channel;
          for (int64_t c = 0; c < channels; ++c) out[c] += grad[m * g.channels + c] * column[c];
        }
    }
}

template <typename T>
void backward_slice(const BackwardTask<T>& task, const Slice& slice, T* scratch) {
  if (task.g.depthwise())
    backward_depthwise(task, slice, scratch);
  else
    backward_dense(task, slice, scratch);
}

template <typename T>
constexpr Kernels<T> table(const char* name) {
  return {name,
          {kPanelVectors * kLanes<T>, kLanes<T>},
          forward_scratch<T>,
          forward_tile<T>,
          backward_scratch<T>,
          backward_slice<T>};
}

}  // namespace

#define SEGDEFORM_NAME_OF(isa) #isa
#define SEGDEFORM_NAME(isa) SEGDEFORM_NAME_OF(isa)
extern const Kernels<float> kernels_float;
extern const Kernels<double> kernels_double;
const Kernels<float> kernels_float = table<float>(SEGDEFORM_NAME(SEGDEFORM_ISA));
const Kernels<double> kernels_double = table<double>(SEGDEFORM_NAME(SEGDEFORM_ISA));

}  // namespace segdeform::cpu::SEGDEFORM_ISA
