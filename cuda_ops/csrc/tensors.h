// What the operators share in handling tensors, on every device: layouts and dtypes.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <initializer_list>
#include <optional>

#if !defined(STABLE_TORCH_ERROR_CODE_CHECK)  // older torch: the same without the error's own text
#include <torch/headeronly/util/shim_utils.h>
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace segdeform {
namespace {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

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

template <typename T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

// Kernels address memory: all operands must lie where the dispatcher sent the call.
inline void check_one_device(const char* name, const Tensor& input,
                             std::initializer_list<const Tensor*> others) {
  for (const Tensor* t : others)
    STD_TORCH_CHECK(t->get_device_index() == input.get_device_index() &&
                        t->device().type() == input.device().type(),
                    name, ": all operands must be on one device");
}

inline Tensor empty_like_format(const Tensor& like, std::array<int64_t, 4> sizes, ScalarType type,
                                MemoryFormat format) {
  return torch::stable::empty(IntHeaderOnlyArrayRef(sizes.data(), 4), type, std::nullopt,
                              like.device(), std::nullopt, format);
}

inline Tensor channels_last(const Tensor& t, ScalarType type) {
  return torch::stable::contiguous(torch::stable::to(t, type), MemoryFormat::ChannelsLast);
}

// To the dtype and, unless channels-last is wanted, to contiguous memory.
inline Tensor finished(const Tensor& t, ScalarType type, bool keep_channels_last) {
  const Tensor cast = torch::stable::to(t, type);
  return keep_channels_last ? cast : torch::stable::contiguous(cast);
}

// What stands for a gradient that was not asked for.
inline Tensor nothing(const Tensor& like) {
  const int64_t none[1] = {0};
  return torch::stable::new_empty(like, IntHeaderOnlyArrayRef(none, 1));
}

}  // namespace
}  // namespace segdeform
