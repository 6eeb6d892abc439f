// The kernels for every processor: 16-byte vectors, which are SSE2 on x86-64 and NEON on AArch64.
#define SEGDEFORM_ISA portable
#define SEGDEFORM_VECTOR_BYTES 16
#define SEGDEFORM_PANEL_VECTORS 2
#define SEGDEFORM_MICRO_ROWS 6
#include "kernels.inl"
