// The kernels for every processor: 16-byte vectors, in blocks that 16 registers hold.
#define SEGDEFORM_ISA portable
#define SEGDEFORM_VECTOR_BYTES 16
#define SEGDEFORM_PANEL_VECTORS 2
#define SEGDEFORM_MICRO_ROWS 6
#include "kernels.inl"
