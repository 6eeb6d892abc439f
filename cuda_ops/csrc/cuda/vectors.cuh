// The dtype that kernels compute in, and reading and writing several values at once.
#pragma once

#include <torch/headeronly/util/BFloat16.h>

#include <cstring>
#include <type_traits>

#include "launch.h"

namespace segdeform::cuda {

// float64 computes in float64, all else in float32.
template <typename T>
struct ComputeType {
  using Type = float;
};
template <>
struct ComputeType<double> {
  using Type = double;
};
template <typename T>
using Real = typename ComputeType<T>::Type;

// V values that are read and written at once.
template <typename T, int V>
struct alignas(sizeof(T) * V) Vector {
  T value[V];
};

// A GPU stops at an address that is not a multiple of what is read there; so does the host shim.
template <int V, typename T>
SEGDEFORM_HOST_DEVICE void check_aligned([[maybe_unused]] const T* address) {
#if defined(SEGDEFORM_HOST_SHIM)
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(address) % alignof(Vector<T, V>) == 0,
                  "host shim: a misaligned access of ", sizeof(Vector<T, V>), " bytes");
#endif
}

template <int V, typename T>
SEGDEFORM_HOST_DEVICE Vector<T, V> load(const T* from) {
  check_aligned<V>(from);
  return *reinterpret_cast<const Vector<T, V>*>(from);
}

// The same, or zeros without reading anything; of memory that no one writes during the kernel. One
// instruction under a condition: left to itself the compiler branches around each of several loads
// and selects every half of a word by an instruction of its own.
template <int V, typename T>
SEGDEFORM_HOST_DEVICE Vector<T, V> load_if(bool wanted, const T* from, uint64_t offset) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(Vector<T, V>) == 16) {
    unsigned words[4] = {0, 0, 0, 0};
    asm("{\n\t.reg .pred wanted;\n\tsetp.ne.s32 wanted, %4, 0;\n\t"
        "@wanted ld.global.v4.u32 {%0, %1, %2, %3}, [%5];\n\t}"
        : "+r"(words[0]), "+r"(words[1]), "+r"(words[2]), "+r"(words[3])
        : "r"(int(wanted)), "l"(__cvta_generic_to_global(from + offset)));
    Vector<T, V> vector;
    memcpy(&vector, words, sizeof words);
    return vector;
  }
#endif
  return wanted ? load<V>(from + offset) : Vector<T, V>{};
}

// In the compute type. Two bfloat16 in a word are the upper halves of two float32.
template <int V, typename T>
SEGDEFORM_HOST_DEVICE void widen(const Vector<T, V>& vector, Real<T> (&values)[V]) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, c10::BFloat16> && V % 2 == 0) {
    uint32_t words[V / 2];
    memcpy(words, &vector, sizeof words);
    for (int k = 0; k < V; ++k)
      values[k] = __uint_as_float(k % 2 == 0 ? words[k / 2] << 16 : words[k / 2] & 0xffff0000u);
  } else
#endif
    for (int k = 0; k < V; ++k) values[k] = Real<T>(vector.value[k]);
}

// To memory of the device, not to a block's shared memory.
template <int V, typename T, typename R>
SEGDEFORM_HOST_DEVICE void store(T* to, const R (&values)[V]) {
  check_aligned<V>(to);
  Vector<T, V> vector;
  for (int k = 0; k < V; ++k) vector.value[k] = T(values[k]);
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof vector == 16) {  // the compiler by itself often makes several stores of it
    unsigned words[4];
    memcpy(words, &vector, sizeof words);
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
                 "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
    return;
  }
#endif
  *reinterpret_cast<Vector<T, V>*>(to) = vector;
}

}  // namespace segdeform::cuda
