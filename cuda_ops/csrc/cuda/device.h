// The device that a tensor lies on, torch's stream there, and memory for the kernels.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../tensors.h"
#include "launch.h"

namespace segdeform::cuda {
namespace {

// Makes a tensor's device the current one for as long as it lives.
class CurrentDevice {
 public:
#if defined(SEGDEFORM_HOST_SHIM)
  explicit CurrentDevice(const torch::stable::Tensor&) {}
#else
  explicit CurrentDevice(const torch::stable::Tensor& t) : guard_(t.get_device_index()) {
    // This library has a CUDA runtime of its own; the guard, which restores, speaks to torch's.
    const cudaError_t set = cudaSetDevice(t.get_device_index());
    STD_TORCH_CHECK(set == cudaSuccess, "segdeform: ", cudaGetErrorString(set));
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
    stream_ = static_cast<Stream>(stream);
  }
#endif
  Stream stream() const { return stream_; }

  int64_t multiprocessors() const {
#if defined(SEGDEFORM_HOST_SHIM)
    return 2;
#else
    int device = 0, count = 0;
    cudaError_t asked = cudaGetDevice(&device);
    if (asked == cudaSuccess)
      asked = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
    STD_TORCH_CHECK(asked == cudaSuccess, "segdeform: ", cudaGetErrorString(asked));
    return count;
#endif
  }

 private:
#if !defined(SEGDEFORM_HOST_SHIM)
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  Stream stream_ = nullptr;  // torch's current stream there
};

template <typename T>
constexpr ScalarType type_of() {
  return torch::headeronly::CppTypeToScalarType<T>::value;
}

// Calls f with a value of the C++ type that a dtype stands for.
template <typename F>
auto with_type(ScalarType type, F f) {
  switch (type) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(c10::Half{});
    default:
      STD_TORCH_CHECK(type == ScalarType::BFloat16, "segdeform: floating dtypes alone");
      return f(c10::BFloat16{});
  }
}

// Memory of torch's allocator, not initialised: bound to the current stream and to a graph that is
// being captured.
template <typename T>
class Workspace {
 public:
  Workspace(const torch::stable::Tensor& like, int64_t elements) {
    const int64_t bytes[1] = {elements * int64_t(sizeof(T))};
    memory_ = torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(bytes, 1),
                                       torch::headeronly::ScalarType::Byte);
  }
  T* get() const { return static_cast<T*>(memory_.data_ptr()); }

 private:
  torch::stable::Tensor memory_;
};

}  // namespace
}  // namespace segdeform::cuda
