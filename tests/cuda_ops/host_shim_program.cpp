// Small kernels for the tests of the host shim, right ones and wrong ones: test_host_shim.py.
#include <cstdio>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "launch.h"

namespace segdeform::cuda {
namespace {

__global__ void block_sums(long* sums) {
  long* partial = shared_memory<long>();
  const unsigned block = blockIdx.y * gridDim.x + blockIdx.x;
  long value = threadIdx.x + 1000 * block;
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  if (lane_of_warp() == 0) partial[threadIdx.x / kWarp] = value;
  __syncthreads();
  if (threadIdx.x > 0) return;
  sums[block] = 0;
  for (unsigned w = 0; w < blockDim.x / kWarp; ++w) sums[block] += partial[w];
}

__global__ void shuffles(int* out) {
  const int lane = lane_of_warp();
  out[lane] = __shfl_xor_sync(kAllLanes, lane, 5);
  out[32 + lane] = __shfl_down_sync(kAllLanes, lane, 3);
  out[64 + lane] = __shfl_sync(kAllLanes, lane, 7);
  out[96 + lane] = int(__ballot_sync(kAllLanes, lane % 3 == 0));
  const int first = lane / 8 * 8;
  out[128 + lane] = __shfl_sync(0xffu << first, lane, first);
}

template <bool kBarrier>
__global__ void reverse(int* out) {
  int* shared = shared_memory<int>();
  shared[threadIdx.x] = int(threadIdx.x);
  if (kBarrier) __syncthreads();
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

__global__ void order_of_blocks(int* out) { out[out[63]++] = int(blockIdx.x); }

__global__ void barrier_in_a_branch(int*) {
  if (threadIdx.x < 5) __syncthreads();
}

__global__ void shuffle_after_exit(int* out) {
  if (threadIdx.x > 20) return;
  out[threadIdx.x] = __shfl_xor_sync(kAllLanes, int(threadIdx.x), 1);
}

__global__ void shuffle_from_outside(int* out) {
  if (threadIdx.x < 8) out[threadIdx.x] = __shfl_sync(0xffu, int(threadIdx.x), 9);
}

__global__ void past_shared_memory(int*) { shared_memory<int>()[blockDim.x + threadIdx.x] = 1; }

__global__ void throws(int*) {
  if (threadIdx.x == 3) throw std::runtime_error("thrown by a thread");
  __syncthreads();
}

void print(const std::vector<int>& values, size_t count, size_t a_line) {
  for (size_t i = 0; i < count; ++i)
    std::printf("%d%s", values[i], (i + 1) % a_line == 0 ? "\n" : " ");
}

int run(const std::string& name) {
  std::vector<int> out(256, 0);
  if (name == "block_sums") {
    std::vector<long> sums(6);
    launch(block_sums, dim3(3, 2), 96, 3 * sizeof(long), nullptr, sums.data());
    for (long v : sums) std::printf("%ld\n", v);
  } else if (name == "shuffles") {
    launch(shuffles, 1, 32, 0, nullptr, out.data());
    print(out, 160, 32);
  } else if (name == "order_of_blocks") {
    launch(order_of_blocks, 20, 1, 0, nullptr, out.data());
    print(out, 20, 20);
  } else if (name == "too_much_shared_memory") {
    launch(past_shared_memory, 1, 64, kMaxSharedBytes + 1, nullptr, out.data());
  } else {
    using Kernel = void (*)(int*);
    static const std::map<std::string, Kernel> kernels = {
        {"reverse", reverse<true>},
        {"reverse_without_barrier", reverse<false>},
        {"barrier_in_a_branch", barrier_in_a_branch},
        {"shuffle_after_exit", shuffle_after_exit},
        {"shuffle_from_outside", shuffle_from_outside},
        {"past_shared_memory", past_shared_memory},
        {"throws", throws},
    };
    launch(kernels.at(name), 1, 64, 64 * sizeof(int), nullptr, out.data());
    print(out, 64, 64);
  }
  return 0;
}

}  // namespace
}  // namespace segdeform::cuda

int main(int, char** arguments) {
  try {
    return segdeform::cuda::run(arguments[1]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
