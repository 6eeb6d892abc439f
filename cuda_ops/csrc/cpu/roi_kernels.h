// What the RoI poolings ask of a CPU kernel. Every pointer is to the compute type T; a kernel call
// handles one unit of work on one thread, and no two units write the same place.
#pragma once

#include "../geometry.h"

namespace segdeform::cpu {

template <typename T>
struct RoiTask {
  RoiGeometry g;
  const T* input;          // [N, H, W, group*group, O]: the channels of one bin lie side by side
  const T* rois;           // [R, 5]
  const T* shifts;         // [R, 2*classes, part_h, part_w], or nullptr: none
  const T* grad;           // [R, pooled_h, pooled_w, O]
  T* grad_input;           // like input, zeroed before
  T* grad_shifts;          // like shifts
  int64_t slice_channels;  // of a unit of the input gradient, out of group*group*O
};

template <typename T>
struct RoiKernels {
  int64_t (*scratch)(const RoiGeometry&);  // elements of T, for any of the following
  void (*forward)(const RoiTask<T>&, int64_t unit, T* out, T* scratch);  // unit: RoI, bin; O values
  void (*backward_shifts)(const RoiTask<T>&, int64_t unit, T* scratch);  // unit: RoI, part
  void (*backward_input)(const RoiTask<T>&, int64_t unit, T* scratch);   // unit: image, slice
};

}  // namespace segdeform::cpu
