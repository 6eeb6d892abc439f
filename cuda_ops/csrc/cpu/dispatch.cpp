// Chooses the kernels for this processor, once for each call.
#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <string>

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
#endif

namespace {

bool processor_has(const std::string& isa) {
#if defined(__x86_64__)
  if (isa == "avx512")
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (isa == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return isa == "portable";
}

std::string chosen() {
  if (const char* wanted = std::getenv("SEGDEFORM_CPU")) {
    STD_TORCH_CHECK(processor_has(wanted), "SEGDEFORM_CPU is '", wanted,
                    "', which this processor does not have. Known: avx512, avx2, portable.");
    return wanted;
  }
  for (const char* isa : {"avx512", "avx2"})
    if (processor_has(isa)) return isa;
  return "portable";
}

}  // namespace

template <>
const Kernels<float>& kernels<float>() {
#if defined(__x86_64__)
  const std::string isa = chosen();
  if (isa == "avx512") return avx512::kernels_float;
  if (isa == "avx2") return avx2::kernels_float;
#else
  chosen();
#endif
  return portable::kernels_float;
}

template <>
const Kernels<double>& kernels<double>() {
#if defined(__x86_64__)
  const std::string isa = chosen();
  if (isa == "avx512") return avx512::kernels_double;
  if (isa == "avx2") return avx2::kernels_double;
#else
  chosen();
#endif
  return portable::kernels_double;
}

}  // namespace segdeform::cpu
