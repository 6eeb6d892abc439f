// Kernels that may read global memory which no one wrote, for test_host_shim.py: they sum 0, 1, ...
// from memory of 96 numbers after the first `written` of them have been written.
#include <torch/csrc/stable/library.h>

#include "../../cuda_ops/csrc/cuda/device.h"

namespace segdeform::cuda {
namespace {

template <typename T>
__global__ void write_some(T* memory, int64_t written) {
  if (threadIdx.x < written) memory[threadIdx.x] = T(threadIdx.x);
}

template <typename T>
__global__ void sum_all(const T* memory, T* sum) {
  *sum = T(0);
  for (int i = 0; i < 96; ++i) *sum += memory[i];
}

template <typename T>
Tensor sum_of(const Tensor& like, T* memory, int64_t written) {
  const int64_t one[1] = {1};
  const Tensor sum = torch::stable::new_empty(like, IntHeaderOnlyArrayRef(one, 1));
  launch(write_some<T>, 1, 96, 0, nullptr, memory, written);
  launch(sum_all<T>, 1, 1, 0, nullptr, memory, data<T>(sum));
  return sum;
}

Tensor sum_of_workspace(const Tensor& like, int64_t written) {
  return with_type(like.scalar_type(), [&](auto t) {
    const Workspace<decltype(t)> memory(like, 96);
    return sum_of(like, memory.get(), written);
  });
}

Tensor sum_of_result(const Tensor& like, int64_t written) {
  return with_type(like.scalar_type(), [&](auto t) {
    const Tensor result =
        empty_like_format(like, {96, 1, 1, 1}, type_of<decltype(t)>(), MemoryFormat::ChannelsLast);
    return sum_of(like, data<decltype(t)>(result), written);
  });
}

}  // namespace
}  // namespace segdeform::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(SEGDEFORM_LIBRARY, library) {
  library.def("sum_of_workspace(Tensor like, int written) -> Tensor");
  library.def("sum_of_result(Tensor like, int written) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(SEGDEFORM_LIBRARY, SEGDEFORM_DEVICE, library) {
  library.impl("sum_of_workspace", TORCH_BOX(&segdeform::cuda::sum_of_workspace));
  library.impl("sum_of_result", TORCH_BOX(&segdeform::cuda::sum_of_result));
}
