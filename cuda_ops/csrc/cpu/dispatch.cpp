// Chooses the kernels for this processor, once for each call.
#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "kernels.h"

namespace segdeform::cpu {

#define SEGDEFORM_DECLARE(isa)                 \
  namespace isa {                              \
  extern const Kernels<float> kernels_float;   \
  extern const Kernels<double> kernels_double; \
  }
SEGDEFORM_DECLARE(portable)
#if defined(__x86_64__)
SEGDEFORM_DECLARE(avx2)
SEGDEFORM_DECLARE(avx512)
#elif defined(__aarch64__)
SEGDEFORM_DECLARE(neon)
#endif

namespace {

// The kernels of one instruction set, and whether this processor runs them.
struct Choice {
  const Kernels<float>& of_float;
  const Kernels<double>& of_double;
  bool runs;
};

// Best first; the last runs everywhere.
const std::vector<Choice>& choices() {
  static const std::vector<Choice> found = {
#if defined(__x86_64__)
      {avx512::kernels_float, avx512::kernels_double,
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")},
      {avx2::kernels_float, avx2::kernels_double,
       __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#elif defined(__aarch64__)
      {neon::kernels_float, neon::kernels_double, true},
#endif
      {portable::kernels_float, portable::kernels_double, true}};
  return found;
}

const Choice& chosen() {
  const char* wanted = std::getenv("SEGDEFORM_CPU");
  for (const Choice& choice : choices())
    if (choice.runs && (!wanted || std::string(wanted) == choice.of_float.name)) return choice;
  STD_TORCH_CHECK(false, "SEGDEFORM_CPU is '", wanted,
                  "', which this processor does not have. Known: avx512, avx2, neon, portable.");
}

}  // namespace

template <>
const Kernels<float>& kernels<float>() {
  return chosen().of_float;
}

template <>
const Kernels<double>& kernels<double>() {
  return chosen().of_double;
}

}  // namespace segdeform::cpu
