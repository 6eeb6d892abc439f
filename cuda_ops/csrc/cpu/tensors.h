// What operators on CPU share in handling tensors: layouts, dtypes and threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <optional>

namespace segdeform::cpu {
namespace {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Calls f(begin, end) over the units on torch's threads. `cost` is the work of one unit in
// elementary operations: waking a thread pays from some ten thousand on.
template <typename F>
void parallel_units(int64_t units, int64_t cost, F f) {
  torch::stable::parallel_for(0, units, std::max<int64_t>(1, 30000 / std::max<int64_t>(1, cost)),
                              f);
}

// Channels-last in memory and not also contiguous; dimensions of size 1 decide nothing.
inline bool prefers_channels_last(const Tensor& t) {
  if (t.is_contiguous()) return false;
  int64_t expected = 1;
  for (int d : {1, 3, 2, 0}) {
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

inline Tensor empty_like_format(const Tensor& like, std::array<int64_t, 4> sizes, ScalarType type,
                                MemoryFormat format) {
  return torch::stable::empty(IntHeaderOnlyArrayRef(sizes.data(), 4), type, std::nullopt,
                              like.device(), std::nullopt, format);
}

}  // namespace
}  // namespace segdeform::cpu
