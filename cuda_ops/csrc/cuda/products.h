// Matrix products by torch, on memory of our own: cuBLAS with torch's own settings (tf32, reduced
// precision reductions, determinism), on torch's stream.
#pragma once

#include <torch/csrc/stable/library.h>

#include <array>

#include "../tensors.h"
#include "device.h"

namespace segdeform::cuda {
namespace {

// A batch of matrices in memory that someone else keeps; strides in elements.
struct Matrices {
  const void* data;
  std::array<int64_t, 3> size, stride;

  Matrices transposed() const {
    return {data, {size[0], size[2], size[1]}, {stride[0], stride[2], stride[1]}};
  }
  Tensor view(const Tensor& like, ScalarType type) const {
    const int skip = size[0] == 1 ? 1 : 0;  // a single one is a matrix, not a batch
    return torch::stable::from_blob(
        const_cast<void*>(data), IntHeaderOnlyArrayRef(size.data() + skip, size_t(3 - skip)),
        IntHeaderOnlyArrayRef(stride.data() + skip, size_t(3 - skip)), like.device(), type);
  }
};

inline void call_product(const char* overload, const Tensor& a, const Tensor& b,
                         std::optional<ScalarType> type, const Tensor& out) {
  using torch::stable::detail::from;
  const char* name = a.dim() == 3 ? "aten::bmm" : "aten::mm";
  std::array<StableIValue, 4> stack{from(a), from(b)};
  size_t used = 2;
  if (type) stack[used++] = from(*type);
  stack[used] = from(out);
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);
}

// out = rows weight^T + bias, rounded once. rows [n, k], weight [o, k], bias [o], out [n, o].
inline void multiply_and_add(const Tensor& like, ScalarType type, const Matrices& rows,
                             const Matrices& weight, const Tensor& bias, const Matrices& out) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(rows.view(like, type)), from(weight.view(like, type)),
                                    from(std::optional<Tensor>(bias)), from(out.view(like, type))};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::linear", "out", stack.data(), TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);
}

// out = a b for each matrix of the batch, all of one type.
inline void multiply(const Tensor& like, ScalarType type, const Matrices& a, const Matrices& b,
                     const Matrices& out) {
  call_product("out", a.view(like, type), b.view(like, type), std::nullopt, out.view(like, type));
}

// The same with sums and results in `wide`, float32 for half precision.
inline void multiply_wide(const Tensor& like, ScalarType type, ScalarType wide, const Matrices& a,
                          const Matrices& b, const Matrices& out) {
  if (type == wide) return multiply(like, type, a, b, out);
  const Tensor left = a.view(like, type), right = b.view(like, type), to = out.view(like, wide);
  call_product("dtype_out", left, right, wide, to);
}

}  // namespace
}  // namespace segdeform::cuda
