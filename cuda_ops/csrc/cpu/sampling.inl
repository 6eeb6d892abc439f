// Where the pixels of a tile sample, and the interpolated values. Part of kernels.inl.
namespace segdeform::cpu::SEGDEFORM_ISA {
namespace {

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
  bool offset_in_line, mask_in_line;  // pixels follow each other in the offsets, in the mask
};

template <typename T>
void locate_tile(const Geometry& g, const Sampling<T>& s, int64_t first, int64_t pixels,
                 Tile<T>& tile) {
  tile.pixels = pixels;
  int64_t n = first / g.out_pixels();
  int64_t p = first % g.out_pixels() / g.out_width, q = first % g.out_width;
  tile.offset_in_line = tile.mask_in_line = true;
  for (int64_t m = 0; m < pixels; ++m) {
    tile.image[m] = n;
    tile.y[m] = int32_t(p * g.stride_h - g.pad_h);
    tile.x[m] = int32_t(q * g.stride_w - g.pad_w);
    tile.offset_at[m] = n * s.offset_stride[0] + p * s.offset_stride[2] + q * s.offset_stride[3];
    tile.mask_at[m] = n * s.mask_stride[0] + p * s.mask_stride[2] + q * s.mask_stride[3];
    if (m > 0 && tile.offset_at[m] != tile.offset_at[m - 1] + 1) tile.offset_in_line = false;
    if (m > 0 && tile.mask_at[m] != tile.mask_at[m - 1] + 1) tile.mask_in_line = false;
    if (++q == g.out_width) {
      q = 0;
      if (++p == g.out_height) p = 0, ++n;
    }
  }
}

// out[m] = channel[at[m]] for the pixels of a tile.
template <typename T>
SEGDEFORM_INLINE void read_tile(const T* channel, const int64_t* at, bool in_line, int64_t pixels,
                                T* out) {
  if (in_line)
    __builtin_memcpy(out, channel + at[0], size_t(pixels) * sizeof(T));
  else
    for (int64_t m = 0; m < pixels; ++m) out[m] = channel[at[m]];
}

// `ForValue`: only what the value needs; the gradients need the rest as well.
template <bool ForValue, typename T>
void locate_samples(const Geometry& g, const Sampling<T>& s, const Tile<T>& tile, int64_t tap,
                    int64_t offset_group, SamplePoints<T>& points) {
  const int64_t channel = (offset_group * g.taps() + tap);
  const T* dy = s.offset + 2 * channel * s.offset_stride[1];
  const T* dx = dy + s.offset_stride[1];
  const int32_t tap_y = int32_t(tap / g.kernel_w * g.dilation_h);
  const int32_t tap_x = int32_t(tap % g.kernel_w * g.dilation_w);
  T y[kTilePixels], x[kTilePixels];
  read_tile(dy, tile.offset_at, tile.offset_in_line, tile.pixels, y);
  read_tile(dx, tile.offset_at, tile.offset_in_line, tile.pixels, x);
  for (int64_t m = 0; m < tile.pixels; ++m) {
    y[m] += T(tile.y[m] + tap_y);
    x[m] += T(tile.x[m] + tap_x);
    points.mask[m] = T(1);
  }
  if (s.mask)
    read_tile(s.mask + channel * s.mask_stride[1], tile.mask_at, tile.mask_in_line, tile.pixels,
              points.mask);
  for (int64_t m = tile.pixels; m % kLanes<T> != 0; ++m) y[m] = x[m] = points.mask[m] = T(0);
  for (int64_t m = 0; m < tile.pixels; m += kLanes<T>) {
    const auto c = corners_at<VectorOfSamples<T>>(load(y + m), load(x + m), int32_t(g.height),
                                                  int32_t(g.width));
    const Vec<T> scale = load(points.mask + m);
    for (int i = 0; i < 4; ++i) {
      __builtin_memcpy(&points.index[i][m], &c.index[i], sizeof c.index[i]);
      if (!ForValue) store(&points.weight[i][m], c.weight[i]);
      store(&points.scaled[i][m], c.weight[i] * scale);
    }
    __builtin_memcpy(&points.value_is_zero[m], &c.value_is_zero, sizeof c.value_is_zero);
    if (ForValue) continue;
    store(&points.fraction_y[m], c.fraction_y);
    store(&points.fraction_x[m], c.fraction_x);
  }
}

template <typename T>
struct CornerRows {
  const T* row[4];
  T weight[4];  // times the mask
};

template <bool ForValue, typename T>
SEGDEFORM_INLINE CornerRows<T> corner_rows(const Geometry& g, const Sampling<T>& s,
                                           const Tile<T>& tile, const SamplePoints<T>& points,
                                           int64_t m, int64_t first_channel) {
  const T* image = s.input + tile.image[m] * g.in_pixels() * g.channels + first_channel;
  CornerRows<T> rows;
  for (int i = 0; i < 4; ++i) {
    const int64_t index = points.index[i][m];
    // On the very border the value is 0 whatever the picture holds; derivatives need the picture.
    const bool skipped = index < 0 || (ForValue && points.value_is_zero[m]);
    rows.row[i] = skipped ? s.zeros : image + index * g.channels;
    rows.weight[i] = points.scaled[i][m];
  }
  return rows;
}

template <typename T, int Vectors>
SEGDEFORM_INLINE void interpolate_vectors(const CornerRows<T>& r, int64_t c, T* out) {
  Vec<T> sums[Vectors];
  for (int j = 0; j < Vectors; ++j) sums[j] = load(r.row[0] + c + j * kLanes<T>) * r.weight[0];
  for (int i = 1; i < 4; ++i)
    for (int j = 0; j < Vectors; ++j) sums[j] += load(r.row[i] + c + j * kLanes<T>) * r.weight[i];
  for (int j = 0; j < Vectors; ++j) store(out + c + j * kLanes<T>, sums[j]);
}

// out[0..channels) = sum_i weight[i] * row[i][0..channels)
template <typename T>
SEGDEFORM_INLINE void interpolate(const CornerRows<T>& r, int64_t channels, T* out) {
  int64_t c = 0;
  for (; c + 4 * kLanes<T> <= channels; c += 4 * kLanes<T>) interpolate_vectors<T, 4>(r, c, out);
  for (; c + kLanes<T> <= channels; c += kLanes<T>) interpolate_vectors<T, 1>(r, c, out);
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

}  // namespace
}  // namespace segdeform::cpu::SEGDEFORM_ISA
