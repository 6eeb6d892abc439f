// The operands of the convolution as the kernels want them.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "../tensors.h"
#include "kernels.h"
#include "packing.h"

namespace segdeform::cpu {
namespace {

// The operands in the compute type, alive for as long as the kernels point into them.
template <typename T>
struct Operands {
  Tensor input, offset, weight;
  std::optional<Tensor> mask;
  std::vector<T> zeros;

  Operands(const Geometry& g, const Tensor& input, const Tensor& offset, const Tensor& weight,
           const std::optional<Tensor>& mask, ScalarType type)
      : input(channels_last(input, type)),
        offset(torch::stable::to(offset, type)),
        weight(torch::stable::to(weight, type)),
        zeros(size_t(g.channels), T(0)) {
    if (mask) this->mask = torch::stable::to(*mask, type);
    if (!prefers_channels_last(this->weight))
      this->weight = torch::stable::contiguous(this->weight);
  }

  Sampling<T> sampling() const {
    Sampling<T> s{};
    s.input = data<const T>(input);
    s.offset = data<const T>(offset);
    s.mask = mask ? data<const T>(*mask) : nullptr;
    for (int d = 0; d < 4; ++d) s.offset_stride[d] = offset.stride(d);
    for (int d = 0; d < 4; ++d) s.mask_stride[d] = mask ? mask->stride(d) : 0;
    s.zeros = zeros.data();
    return s;
  }

  WeightRows<T> weight_rows(const Geometry& g) const {
    const bool last = prefers_channels_last(weight);
    return {data<const T>(weight), last ? 1 : g.taps(), last ? g.channels_per_group() : 1};
  }
};

}  // namespace
}  // namespace segdeform::cpu
