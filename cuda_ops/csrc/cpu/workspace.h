// Memory and threads for the CPU kernels.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace segdeform::cpu {

// Memory for the kernels: aligned to cache lines, not initialised.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t elements)
      : data_(static_cast<T*>(std::aligned_alloc(64, bytes(elements)))) {
    STD_TORCH_CHECK(data_ != nullptr, "segdeform: out of memory, ", bytes(elements), " bytes");
  }
  T* get() const { return data_.get(); }

 private:
  static size_t bytes(int64_t elements) { return (size_t(elements) * sizeof(T) + 127) / 64 * 64; }
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
};

// Calls f(begin, end) over the units on torch's threads. `cost` is the work of one unit in
// elementary operations: waking a thread pays from some ten thousand on.
template <typename F>
void parallel_units(int64_t units, int64_t cost, F f) {
  torch::stable::parallel_for(0, units, std::max<int64_t>(1, 30000 / std::max<int64_t>(1, cost)),
                              f);
}

template <typename T>
std::unique_ptr<Buffer<T>> zeroed(int64_t elements) {
  auto buffer = std::make_unique<Buffer<T>>(elements);
  constexpr int64_t kBlock = 1 << 16;
  parallel_units((elements + kBlock - 1) / kBlock, kBlock, [&](int64_t begin, int64_t end) {
    std::fill(buffer->get() + begin * kBlock, buffer->get() + std::min(end * kBlock, elements),
              T(0));
  });
  return buffer;
}

}  // namespace segdeform::cpu
