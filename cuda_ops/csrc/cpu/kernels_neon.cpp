// The kernels for AArch64, each processor of which has NEON. Empty on other architectures.
//
// A product's block is 6 rows by 4 vectors: 24 sums and a vector of each of the 6 rows fill 30 of
// the 32 registers, and the other two take the panel's vectors by turns. That many sums keep four
// pipes of a latency of four cycles busy, and 22 loads serve 96 products.
#if defined(__aarch64__)
#include <cstring>

#include "kernels.h"

// Before it hands out registers, GCC would move the loads so far ahead that the sums no longer fit.
#if !defined(__clang__)
#pragma GCC optimize("no-schedule-insns")
#endif

#define SEGDEFORM_ISA neon
#define SEGDEFORM_VECTOR_BYTES 16
#define SEGDEFORM_PANEL_VECTORS 4
#define SEGDEFORM_MICRO_ROWS 6
#define SEGDEFORM_PRODUCTS_BY_LANE 1
#include "kernels.inl"
#endif
