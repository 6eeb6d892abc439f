// What every CUDA kernel is written with, so that the same source also runs on the host.
//
// A kernel file includes this header alone for CUDA's vocabulary and uses of it:
//   __global__, __device__, threadIdx, blockIdx, blockDim, gridDim, dim3 (x only, if it can be);
//   __syncthreads, __syncwarp, __ballot_sync, __any_sync, __all_sync, __shfl_sync,
//   __shfl_xor_sync, __shfl_down_sync;
//   SEGDEFORM_HOST_DEVICE for functions that are no templates (it implies inline);
//   shared_memory<T>() for all shared memory: one array sized by the launch (no __shared__ names);
//   launch(kernel, grid, block, shared_bytes, stream, arguments...) in place of <<<>>>: it throws
//   where the launch fails, and does nothing for an empty grid;
//   CurrentDevice (device.h) for the device guard and torch's current stream;
//   STABLE_TORCH_LIBRARY_IMPL(SEGDEFORM_LIBRARY, SEGDEFORM_DEVICE, library) to register.
// Anything else of CUDA's (atomics, <<<>>>, cudaMalloc, CUB) stands behind one function with a
// host version beside it.
//
// nvcc compiles such a file for the GPU into `segdeform` under the key CUDA. With
// SEGDEFORM_HOST_SHIM a C++ compiler makes of it operators of `segdeform_host_shim` under the key
// CPU: tests call these on tiny CPU tensors (build.build_host_shim, tests/cuda_ops/host_shim.py).
// See host_shim.h for what such a run detects.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "../bilinear.h"

#if defined(SEGDEFORM_HOST_SHIM)
#include "host_shim.h"
#define SEGDEFORM_DEVICE CPU
#else
#include <cuda_runtime.h>
#define SEGDEFORM_DEVICE CUDA
#endif
#if !defined(SEGDEFORM_LIBRARY)
#define SEGDEFORM_LIBRARY segdeform
#endif

namespace segdeform::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr size_t kMaxSharedBytes = 48 * 1024;  // of a block, on every GPU and without opting in

// Blocks along x for so many units of work. Throws where a grid cannot be that large.
inline unsigned blocks_for(int64_t units, int64_t units_per_block) {
  const int64_t blocks = (units + units_per_block - 1) / units_per_block;
  STD_TORCH_CHECK(blocks < (int64_t(1) << 31), "segdeform: too much work for one launch");
  return unsigned(blocks);
}

// The same along y or z.
inline unsigned planes_for(int64_t units) {
  STD_TORCH_CHECK(units <= 65535, "segdeform: too many groups for one launch");
  return unsigned(units);
}

#if defined(SEGDEFORM_HOST_SHIM)

using Stream = void*;

template <typename T>
T* shared_memory() {
  return static_cast<T*>(shim::Block::current().shared_memory());
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Stream,
            Arguments&&... arguments) {
  STD_TORCH_CHECK(shared_bytes <= kMaxSharedBytes, "segdeform: too much shared memory");
  shim::run_grid(grid, block, shared_bytes, [&] { kernel(Parameters(arguments)...); });
}

#else

using Stream = cudaStream_t;

template <typename T>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ __align__(128) unsigned char segdeform_shared_memory[];
  return reinterpret_cast<T*>(segdeform_shared_memory);
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            Stream stream, Arguments&&... arguments) {
  STD_TORCH_CHECK(shared_bytes <= kMaxSharedBytes, "segdeform: too much shared memory");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes, config.stream = stream;
  const cudaError_t launched =
      cudaLaunchKernelEx(&config, kernel, Parameters(std::forward<Arguments>(arguments))...);
  if (launched != cudaSuccess) cudaGetLastError();  // or the next launch would be blamed for it
  STD_TORCH_CHECK(launched == cudaSuccess,
                  "segdeform: a kernel was not launched: ", cudaGetErrorString(launched),
                  " (SEGDEFORM_OPS=torchvision sets the kernels aside)");
}

#endif

// ---- inside a kernel ----

SEGDEFORM_HOST_DEVICE int lane_of_warp() {
#if defined(__CUDA_ARCH__) || defined(SEGDEFORM_HOST_SHIM)
  return int(threadIdx.x % kWarp);
#else
  return 0;
#endif
}

}  // namespace segdeform::cuda
