// The operands of the convolution as the kernels want them, and the choices that follow from them.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "../deform_conv2d.h"
#include "device.h"
#include "gather.cuh"

namespace segdeform::cuda {
namespace {

// Bytes that the columns, their gradients and the sorting may take at a time. The variable
// SEGDEFORM_CUDA_WORKSPACE (in bytes) says otherwise; results may differ in their last bits.
inline int64_t workspace_limit() {
  const char* wanted = std::getenv("SEGDEFORM_CUDA_WORKSPACE");
  if (!wanted) return int64_t(64) << 20;
  int64_t bytes = 0;
  const char* end = wanted + std::strlen(wanted);
  const auto [read, error] = std::from_chars(wanted, end, bytes);
  STD_TORCH_CHECK(error == std::errc() && read == end && bytes > 0, "SEGDEFORM_CUDA_WORKSPACE is '",
                  wanted, "'; it takes a number of bytes without a unit, as 67108864 for 64 MiB");
  return bytes;
}

inline void check_operands(const Tensor& input, std::initializer_list<const Tensor*> others,
                           const Tensor& weight) {
  STD_TORCH_CHECK(weight.scalar_type() == input.scalar_type(),
                  "deform_conv2d: input and weight must share a dtype");
  check_one_device("deform_conv2d", input, others);
}

// Alive for as long as the kernels read them. T: the dtype of input, weight and columns.
template <typename T>
struct Operands {
  Geometry g;
  Tensor input;   // [N, H, W, C]
  Tensor offset;  // in the compute type, any strides; so is the mask
  std::optional<Tensor> mask;
  Tensor weight;  // [O, T, C/groups]

  Operands(const Geometry& g, const Tensor& input, const Tensor& offset, const Tensor& weight,
           const std::optional<Tensor>& mask)
      : g(g),
        input(channels_last(input, type_of<T>())),
        offset(torch::stable::to(offset, type_of<Real<T>>())),
        weight(channels_last(weight, type_of<T>())) {
    if (mask) this->mask = torch::stable::to(*mask, type_of<Real<T>>());
    STD_TORCH_CHECK(on_device(g).has_value(),
                    "deform_conv2d: 2^31 and more images, output channels, taps times channels, or "
                    "output pixels of an image are not supported on CUDA");
  }

  Sampling<T> sampling() const {
    Sampling<T> s{};
    s.input = data<T>(input);
    s.offset = data<Real<T>>(offset);
    s.mask = mask ? data<Real<T>>(*mask) : nullptr;
    for (int d = 0; d < 4; ++d) s.offset_stride[d] = offset.stride(d);
    for (int d = 0; d < 4; ++d) s.mask_stride[d] = mask ? mask->stride(d) : 0;
    return s;
  }

  // The weight of a depthwise convolution as [T, C]. Even for T = 1 in memory of its own, which is
  // aligned as vectors need it.
  Tensor taps_first() const {
    const int64_t sizes[2] = {g.taps(), g.channels}, strides[2] = {1, g.taps()};
    const Tensor view =
        torch::stable::from_blob(weight.data_ptr(), IntHeaderOnlyArrayRef(sizes, 2),
                                 IntHeaderOnlyArrayRef(strides, 2), weight.device(), type_of<T>());
    Tensor result = torch::stable::new_empty(weight, IntHeaderOnlyArrayRef(sizes, 2));
    return torch::stable::copy_(result, view);
  }
};

template <typename T>
constexpr int kVector = 16 / int(sizeof(T));  // values in the widest load

// Whether all kernels may read and write 16 bytes at a time: no vector straddles groups, and all
// memory that is not our own is aligned.
template <typename T>
bool vectors_fit(const Geometry& g, std::initializer_list<const Tensor*> memory) {
  bool fit = g.channels_per_offset_group() % kVector<T> == 0 &&
             (g.depthwise() || g.channels_per_group() % kVector<T> == 0);
  for (const Tensor* t : memory) fit = fit && reinterpret_cast<uintptr_t>(t->data_ptr()) % 16 == 0;
  return fit;
}

}  // namespace
}  // namespace segdeform::cuda
