// The radix sort of CUB, which comes with the compiler; on the host its stand-in.
#include "sort.h"

#if defined(SEGDEFORM_HOST_SHIM)
#include <algorithm>
#include <numeric>
#include <vector>
#else
#include <cub/device/device_radix_sort.cuh>
#endif

namespace segdeform::cuda {

#if defined(SEGDEFORM_HOST_SHIM)

void sort_pairs(const torch::stable::Tensor&, Pairs& pairs, int64_t count, int bits, Stream) {
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), int64_t(0));
  const uint32_t mask = bits == 32 ? ~0u : (1u << bits) - 1u;
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return (pairs.keys[a] & mask) < (pairs.keys[b] & mask);
  });
  for (int64_t i = 0; i < count; ++i) {
    pairs.other_keys[i] = pairs.keys[order[i]];
    pairs.other_values[i] = pairs.values[order[i]];
  }
  std::swap(pairs.keys, pairs.other_keys);
  std::swap(pairs.values, pairs.other_values);
}

#else

void sort_pairs(const torch::stable::Tensor& like, Pairs& pairs, int64_t count, int bits,
                Stream stream) {
  cub::DoubleBuffer<uint32_t> keys(pairs.keys, pairs.other_keys);
  cub::DoubleBuffer<uint32_t> values(pairs.values, pairs.other_values);
  const auto sort = [&](void* memory, size_t& bytes) {
    const cudaError_t sorted = cub::DeviceRadixSort::SortPairs(memory, bytes, keys, values,
                                                               uint32_t(count), 0, bits, stream);
    if (sorted != cudaSuccess) cudaGetLastError();
    STD_TORCH_CHECK(sorted == cudaSuccess,
                    "segdeform: sorting failed: ", cudaGetErrorString(sorted));
  };
  size_t bytes = 0;
  sort(nullptr, bytes);
  const Workspace<unsigned char> memory(like, std::max<int64_t>(1, int64_t(bytes)));
  sort(memory.get(), bytes);
  pairs = {keys.Current(), values.Current(), keys.Alternate(), values.Alternate()};
}

#endif

}  // namespace segdeform::cuda
