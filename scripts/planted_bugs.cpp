// Bugs on purpose, for the sanitizer build alone (scripts/sanitize.sh): were they not caught, neither
// would real ones be.
#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <limits>
#include <vector>

namespace {

int64_t plant_bug(int64_t kind) {
  std::vector<float> memory(16);
  volatile int64_t beyond = 16;
  if (kind == 0) return static_cast<int64_t>(memory.data()[beyond]);  // AddressSanitizer's
  volatile int64_t largest = std::numeric_limits<int64_t>::max();
  return largest + kind;  // UndefinedBehaviorSanitizer's
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(segdeform, library) { library.def("plant_bug(int kind) -> int"); }

STABLE_TORCH_LIBRARY_IMPL(segdeform, CompositeExplicitAutograd, library) {
  library.impl("plant_bug", TORCH_BOX(&plant_bug));
}
