// Vectors of the instruction set and the matrix product on them. Part of kernels.inl.
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
  typedef int32_t FourIndices __attribute__((vector_size(16)));
};
template <>
struct Simd<double> {
  typedef double Vector __attribute__((vector_size(SEGDEFORM_VECTOR_BYTES)));
  typedef int64_t IntVector __attribute__((vector_size(SEGDEFORM_VECTOR_BYTES)));
  typedef double Four __attribute__((vector_size(32)));
  typedef int64_t FourIndices __attribute__((vector_size(32)));
};
template <typename T>
using Vec = typename Simd<T>::Vector;
template <typename T>
constexpr int64_t kLanes = SEGDEFORM_VECTOR_BYTES / int64_t(sizeof(T));
constexpr int kPanelVectors = SEGDEFORM_PANEL_VECTORS;
constexpr int kMicroRows = SEGDEFORM_MICRO_ROWS;

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
template <typename T>
SEGDEFORM_INLINE void copy_row(const T* from, int64_t elements, T* to) {
  int64_t i = 0;
  for (; i + kLanes<T> <= elements; i += kLanes<T>) store(to + i, load(from + i));
  for (; i < elements; ++i) to[i] = from[i];
}
// Four lanes out of the eight of a and b. GCC has clang's builtin from version 12 on only.
#if defined(__clang__)
#define SEGDEFORM_SHUFFLE(T, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SEGDEFORM_SHUFFLE(T, a, b, ...) \
  __builtin_shuffle(a, b, typename Simd<T>::FourIndices{__VA_ARGS__})
#endif

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
    const Four ab = SEGDEFORM_SHUFFLE(T, four[0], four[1], 0, 4, 1, 5) +
                    SEGDEFORM_SHUFFLE(T, four[0], four[1], 2, 6, 3, 7);
    const Four cd = SEGDEFORM_SHUFFLE(T, four[2], four[3], 0, 4, 1, 5) +
                    SEGDEFORM_SHUFFLE(T, four[2], four[3], 2, 6, 3, 7);
    const Four all =
        SEGDEFORM_SHUFFLE(T, ab, cd, 0, 1, 4, 5) + SEGDEFORM_SHUFFLE(T, ab, cd, 2, 3, 6, 7);
    __builtin_memcpy(out, &all, sizeof(Four));
  }
}
SEGDEFORM_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
SEGDEFORM_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
template <typename T>
SEGDEFORM_INLINE PanelLayout panel_layout() {
  return {kPanelVectors * kLanes<T>, kLanes<T>};
}

// ---- matrix product: C[rows, width] += A[rows, depth] * B[depth, width], width of a panel ----

// A(i, k) stands at a[i * a_stride + k], or, transposed, at a[i + k * a_stride].
template <typename T, int Rows, int Vectors, bool Transposed>
SEGDEFORM_INLINE void micro_kernel(const T* a, int64_t a_stride, const T* b, int64_t b_stride,
                                   int64_t depth, T* c, int64_t c_stride) {
  Vec<T> sums[Rows][Vectors];
  for (int i = 0; i < Rows; ++i)
    for (int j = 0; j < Vectors; ++j) sums[i][j] = load(c + i * c_stride + j * kLanes<T>);
  int64_t k = 0;
#if SEGDEFORM_PRODUCTS_BY_LANE
  // Where a product by a lane is one instruction, a vector of each row of A serves as many steps of
  // the depth as it has lanes. The order of the sums is the same.
  if constexpr (!Transposed)
    for (; k + kLanes<T> <= depth; k += kLanes<T>) {
      Vec<T> factors[Rows];
      for (int i = 0; i < Rows; ++i) {
        factors[i] = load(a + i * a_stride + k);
        asm("" : "+w"(factors[i]));  // in a vector register: else GCC loads lane by lane
      }
#pragma GCC unroll 4
      for (int64_t lane = 0; lane < kLanes<T>; ++lane)
        for (int j = 0; j < Vectors; ++j) {
          const Vec<T> row = load(b + (k + lane) * b_stride + j * kLanes<T>);
          for (int i = 0; i < Rows; ++i) sums[i][j] += row * factors[i][lane];
        }
    }
#endif
  for (; k < depth; ++k) {
    Vec<T> row[Vectors];
    for (int j = 0; j < Vectors; ++j) row[j] = load(b + k * b_stride + j * kLanes<T>);
    for (int i = 0; i < Rows; ++i) {
      const T factor = Transposed ? a[i + k * a_stride] : a[i * a_stride + k];
      for (int j = 0; j < Vectors; ++j) sums[i][j] += row[j] * factor;
    }
  }
  for (int i = 0; i < Rows; ++i)
    for (int j = 0; j < Vectors; ++j) store(c + i * c_stride + j * kLanes<T>, sums[i][j]);
}

// The last rows, fewer than a block.
template <typename T, int Rows, int Vectors, bool Transposed>
SEGDEFORM_INLINE void remaining_rows(int64_t rows, const T* a, int64_t a_stride, const T* b,
                                     int64_t b_stride, int64_t depth, T* c, int64_t c_stride) {
  if constexpr (Rows > 0) {
    if (rows == Rows)
      micro_kernel<T, Rows, Vectors, Transposed>(a, a_stride, b, b_stride, depth, c, c_stride);
    else
      remaining_rows<T, Rows - 1, Vectors, Transposed>(rows, a, a_stride, b, b_stride, depth, c,
                                                       c_stride);
  }
}

template <typename T, int Vectors, bool Transposed>
void row_blocks(int64_t rows, const T* a, int64_t a_stride, const T* b, int64_t b_stride,
                int64_t depth, T* c, int64_t c_stride) {
  const int64_t step = Transposed ? 1 : a_stride;
  for (; rows >= kMicroRows; rows -= kMicroRows) {
    micro_kernel<T, kMicroRows, Vectors, Transposed>(a, a_stride, b, b_stride, depth, c, c_stride);
    a += kMicroRows * step;
    c += kMicroRows * c_stride;
  }
  remaining_rows<T, kMicroRows - 1, Vectors, Transposed>(rows, a, a_stride, b, b_stride, depth, c,
                                                         c_stride);
}

// `width`: that of a panel, one to Vectors whole vectors.
template <typename T, bool Transposed, int Vectors = kPanelVectors>
void panel_product(int64_t width, int64_t rows, const T* a, int64_t a_stride, const T* b,
                   int64_t b_stride, int64_t depth, T* c, int64_t c_stride) {
  if constexpr (Vectors > 1)
    if (width < Vectors * kLanes<T>)
      return panel_product<T, Transposed, Vectors - 1>(width, rows, a, a_stride, b, b_stride, depth,
                                                       c, c_stride);
  row_blocks<T, Vectors, Transposed>(rows, a, a_stride, b, b_stride, depth, c, c_stride);
}

}  // namespace
}  // namespace segdeform::cpu::SEGDEFORM_ISA
