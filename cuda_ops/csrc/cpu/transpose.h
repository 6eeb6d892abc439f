// Matrices turned round, as weights and images are on their way into the kernels and back.
#pragma once

#include <algorithm>
#include <cstdint>

namespace segdeform::cpu {

template <typename T>
struct FourOf {
  typedef T Type __attribute__((vector_size(4 * sizeof(T))));
};
template <typename T>
struct FourIndicesOf;
template <>
struct FourIndicesOf<float> {
  typedef int32_t Type __attribute__((vector_size(16)));
};
template <>
struct FourIndicesOf<double> {
  typedef int64_t Type __attribute__((vector_size(32)));
};

#if defined(__clang__)
#define SEGDEFORM_FOUR_OF(T, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SEGDEFORM_FOUR_OF(T, a, b, ...) \
  __builtin_shuffle(a, b, typename FourIndicesOf<T>::Type{__VA_ARGS__})
#endif

template <typename T>
inline void transpose_4x4(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  using Four = typename FourOf<T>::Type;
  Four r[4];
  for (int i = 0; i < 4; ++i) __builtin_memcpy(&r[i], from + i * from_stride, sizeof(Four));
  const Four a = SEGDEFORM_FOUR_OF(T, r[0], r[1], 0, 4, 1, 5);
  const Four b = SEGDEFORM_FOUR_OF(T, r[0], r[1], 2, 6, 3, 7);
  const Four c = SEGDEFORM_FOUR_OF(T, r[2], r[3], 0, 4, 1, 5);
  const Four d = SEGDEFORM_FOUR_OF(T, r[2], r[3], 2, 6, 3, 7);
  const Four columns[4] = {
      SEGDEFORM_FOUR_OF(T, a, c, 0, 1, 4, 5), SEGDEFORM_FOUR_OF(T, a, c, 2, 3, 6, 7),
      SEGDEFORM_FOUR_OF(T, b, d, 0, 1, 4, 5), SEGDEFORM_FOUR_OF(T, b, d, 2, 3, 6, 7)};
  for (int j = 0; j < 4; ++j) __builtin_memcpy(to + j * to_stride, &columns[j], sizeof(Four));
}

// to[j][i] = from[i][j] for i < rows, j < columns; rows lie `from_stride` and `to_stride` apart.
// In blocks of 16 x 16, so that the cache lines of either side are used whole: the rows of weights
// tend to lie at strides that map them to the same few sets of a cache.
template <typename T>
void transpose(int64_t rows, int64_t columns, const T* from, int64_t from_stride, T* to,
               int64_t to_stride) {
  constexpr int64_t kBlock = 16;
  for (int64_t j0 = 0; j0 < columns; j0 += kBlock)
    for (int64_t i0 = 0; i0 < rows; i0 += kBlock) {
      const int64_t j1 = std::min(j0 + kBlock, columns), i1 = std::min(i0 + kBlock, rows);
      int64_t i = i0;
      for (; i + 4 <= i1; i += 4) {
        int64_t j = j0;
        for (; j + 4 <= j1; j += 4)
          transpose_4x4(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
        for (; j < j1; ++j)
          for (int64_t k = i; k < i + 4; ++k) to[j * to_stride + k] = from[k * from_stride + j];
      }
      for (; i < i1; ++i)
        for (int64_t j = j0; j < j1; ++j) to[j * to_stride + i] = from[i * from_stride + j];
    }
}

}  // namespace segdeform::cpu
