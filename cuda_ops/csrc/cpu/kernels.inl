// The CPU kernels, written with the compiler's vector extensions and compiled once for each
// instruction set. The including file sets SEGDEFORM_ISA (a namespace), SEGDEFORM_VECTOR_BYTES,
// SEGDEFORM_PANEL_VECTORS, SEGDEFORM_MICRO_ROWS and, on AArch64, SEGDEFORM_PRODUCTS_BY_LANE, and
// switches the instruction set on beforehand.
//
// Nothing here may instantiate a template of the standard library that is not force-inlined: the
// linker could pick its copy, built for these instructions, for a processor that lacks them.
#include <cstring>

#include "../bilinear.h"
#include "../roi.h"
#include "kernels.h"

#include "simd.inl"
#include "sampling.inl"
#include "forward.inl"
#include "backward.inl"
#include "roi.inl"
#include "labels.inl"

namespace segdeform::cpu::SEGDEFORM_ISA {
namespace {

template <typename T>
constexpr Kernels<T> table(const char* name) {
  return {name,
          {kPanelVectors * kLanes<T>, kLanes<T>},
          forward_scratch<T>,
          forward_tile<T>,
          backward_scratch<T>,
          backward_slice<T>,
          roi_table<T>(),
          label_scratch<T>,
          label_rows<T>};
}

}  // namespace

#define SEGDEFORM_NAME_OF(isa) #isa
#define SEGDEFORM_NAME(isa) SEGDEFORM_NAME_OF(isa)
extern const Kernels<float> kernels_float;
extern const Kernels<double> kernels_double;
const Kernels<float> kernels_float = table<float>(SEGDEFORM_NAME(SEGDEFORM_ISA));
const Kernels<double> kernels_double = table<double>(SEGDEFORM_NAME(SEGDEFORM_ISA));

}  // namespace segdeform::cpu::SEGDEFORM_ISA
