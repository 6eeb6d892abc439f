// The kernels for processors with AVX2. Empty on other architectures.
#if defined(__x86_64__)
#include <cstring>

#include "kernels.h"

// After all headers but bilinear.h and roi.h, which hold nothing that is not force-inlined: no
// inline function of theirs may be compiled for these instructions.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define SEGDEFORM_ISA avx2
#define SEGDEFORM_VECTOR_BYTES 32
#define SEGDEFORM_PANEL_VECTORS 2
#define SEGDEFORM_MICRO_ROWS 6
#include "kernels.inl"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
