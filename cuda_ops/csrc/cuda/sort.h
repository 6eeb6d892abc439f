// Sorting on the device: stable, and the same on every run.
#pragma once

#include "device.h"

namespace segdeform::cuda {

// Keys with values beside them, and room for as many again.
struct Pairs {
  uint32_t *keys, *values;
  uint32_t *other_keys, *other_values;
};

// Sorts by the lowest `bits` bits of the keys, equal keys in their order. The result is in `keys`
// and `values`, which may have changed places with the others. No host synchronisation.
void sort_pairs(const torch::stable::Tensor& like, Pairs& pairs, int64_t count, int bits,
                Stream stream);

}  // namespace segdeform::cuda
