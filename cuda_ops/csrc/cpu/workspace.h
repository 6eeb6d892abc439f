// Memory and threads for the CPU kernels.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <atomic>
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
// elementary operations: waking a thread pays from some ten thousand on. Threads take runs of units
// as they become free, so that none waits long for one whose core is slow or busy.
template <typename F>
void parallel_units(int64_t units, int64_t cost, F f) {
  constexpr int64_t kWorth = 30000, kTurns = 8;
  const int64_t least = std::max<int64_t>(1, kWorth / std::max<int64_t>(1, cost));
  const int64_t threads =
      std::min<int64_t>(torch::stable::get_num_threads(), (units + least - 1) / least);
  if (threads <= 1) {
    if (units > 0) f(int64_t(0), units);
    return;
  }
  const int64_t run = std::max(least, units / (threads * kTurns));
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t begin; (begin = next.fetch_add(run, std::memory_order_relaxed)) < units;)
      f(begin, std::min(begin + run, units));
  });
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
