// CUDA's blocks, threads, barriers and warp shuffles on the host, for tests on tiny shapes.
//
// Each thread of a block is a fiber with a stack of its own; it runs until it waits at a barrier or
// a shuffle. Which thread runs next, and which block, is drawn at random (SEGDEFORM_SHIM_SEED, read
// at each launch): a result that needs an order which no barrier enforces differs between seeds.
// Shared memory starts each block as NaN (all bits set); so does global memory that the tests have
// torch fill (tests/cuda_ops/host_shim.py). These throw: a barrier or shuffle that not
// all threads named reach, a shuffle from a lane that takes no part, a write past shared memory, a
// vector at an address that is not aligned (vectors.cuh).
// What it cannot show: memory models weaker than the host's, speed, bounds of tensors (address
// sanitizer can: scripts/sanitize.sh).
#pragma once

#include <setjmp.h>
#include <torch/headeronly/util/Exception.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#define __global__
#define __device__ inline
#define __host__
#define __forceinline__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace segdeform::cuda::shim {

// One block while it runs: the scheduler of its threads.
class Block {
 public:
  static Block& current() {
    static thread_local Block block;
    return block;
  }

  void run(size_t threads, size_t shared_bytes, std::mt19937& order,
           const std::function<void()>& body) {
    body_ = &body, error_ = nullptr;
    shared_.assign((shared_bytes + kGuard) / sizeof(Line) + 1, Line{});
    std::memset(static_cast<void*>(shared_.data()), 0xff, shared_.size() * sizeof(Line));
    prepare(threads);
    std::vector<size_t> ready(threads);
    std::iota(ready.begin(), ready.end(), size_t(0));
    size_t done = 0;
    while (!ready.empty()) {
      std::swap(ready[order() % ready.size()], ready.back());
      const size_t next = ready.back();
      ready.pop_back();
      resume(next);
      if (error_) std::rethrow_exception(error_);
      done += fibers_[next]->state == State::kDone;
      release(next, threads, ready);
    }
    STD_TORCH_CHECK(done == threads,
                    "host shim: threads wait at a barrier that others never reach");
    const auto* end = static_cast<const unsigned char*>(shared_memory()) + shared_bytes;
    for (size_t i = 0; i < kGuard; ++i)
      STD_TORCH_CHECK(end[i] == 0xff, "host shim: a write past the block's shared memory");
  }

  void* shared_memory() { return shared_.data(); }

  void wait_for_block() { wait(State::kAtBlockBarrier, 0); }

  void wait_for_warp(unsigned mask) {
    STD_TORCH_CHECK(mask >> lane() & 1, "host shim: a thread is not in its own mask");
    wait(State::kAtWarpBarrier, mask);
  }

  // What the source lane gives, to each lane of the mask.
  template <typename T>
  T exchange(unsigned mask, T value, unsigned source) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    STD_TORCH_CHECK(source < 32 && (mask >> source & 1),
                    "host shim: a shuffle from a lane that takes no part");
    Fiber& fiber = *fibers_[running_];
    std::memcpy(&fiber.given, &value, sizeof(T));
    fiber.source = source;
    wait_for_warp(mask);
    std::memcpy(&value, &fiber.received, sizeof(T));
    return value;
  }

  unsigned ballot(unsigned mask, bool predicate) {
    fibers_[running_]->given = predicate;
    wait_for_warp(mask);
    unsigned lanes = 0;
    for (unsigned i = 0; i < 32; ++i)
      if (mask >> i & 1) lanes |= unsigned(fibers_[running_ / 32 * 32 + i]->given) << i;
    wait_for_warp(mask);  // before anyone gives something else
    return lanes;
  }

  unsigned lane() const { return unsigned(running_ % 32); }

 private:
  enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };
  struct alignas(128) Line {
    unsigned char bytes[128];
  };
  struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[kStackBytes]};
    State state;
    unsigned mask, source = 0;
    uint64_t given, received;
    bool started;
    sigjmp_buf resume_at;
  };
  static constexpr size_t kStackBytes = 128 * 1024, kGuard = 128;

  void prepare(size_t threads) {
    while (fibers_.size() < threads) fibers_.push_back(std::make_unique<Fiber>());
    for (size_t i = 0; i < threads; ++i) {
      Fiber& fiber = *fibers_[i];
      fiber.state = State::kReady, fiber.started = false;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStackBytes;
      fiber.context.uc_link = nullptr;  // it never returns: see enter
      makecontext(&fiber.context, &Block::enter, 0);
    }
  }

  static void enter() {
    Block& block = current();
    try {
      (*block.body_)();
    } catch (...) {
      block.error_ = std::current_exception();
    }
    block.fibers_[block.running_]->state = State::kDone;
    siglongjmp(block.scheduler_at_, 1);
  }

  void resume(size_t thread) {
    running_ = thread;
    const unsigned x = unsigned(thread) % blockDim.x, rest = unsigned(thread) / blockDim.x;
    threadIdx = dim3(x, rest % blockDim.y, rest / blockDim.y);
    // Jumps leave the signals alone, which makes them many times faster than changing contexts.
    if (sigsetjmp(scheduler_at_, 0) != 0) return;
    if (fibers_[thread]->started) siglongjmp(fibers_[thread]->resume_at, 1);
    fibers_[thread]->started = true;
    swapcontext(&scheduler_, &fibers_[thread]->context);
  }

  void wait(State state, unsigned mask) {
    Fiber& fiber = *fibers_[running_];
    fiber.state = state, fiber.mask = mask;
    if (sigsetjmp(fiber.resume_at, 0) == 0) siglongjmp(scheduler_at_, 1);
  }

  // Lets go on whoever waited for the thread that just stopped.
  void release(size_t stopped, size_t threads, std::vector<size_t>& ready) {
    const Fiber& last = *fibers_[stopped];
    const bool whole_block = last.state == State::kAtBlockBarrier;
    if (!whole_block && last.state != State::kAtWarpBarrier) return;
    const size_t first = whole_block ? 0 : stopped / 32 * 32, count = whole_block ? threads : 32;
    const auto takes_part = [&](size_t i) { return whole_block || (last.mask >> i & 1); };
    for (size_t i = 0; i < count; ++i) {
      if (!takes_part(i)) continue;
      if (first + i >= threads) return;
      const Fiber& other = *fibers_[first + i];
      if (other.state != last.state || other.mask != last.mask) return;
    }
    for (size_t i = 0; i < count; ++i) {
      if (!takes_part(i)) continue;
      Fiber& fiber = *fibers_[first + i];
      fiber.state = State::kReady;
      if (!whole_block) fiber.received = fibers_[first + fiber.source]->given;
      ready.push_back(first + i);
    }
  }

  ucontext_t scheduler_;
  sigjmp_buf scheduler_at_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Line> shared_;
  size_t running_ = 0;
  const std::function<void()>* body_ = nullptr;
  std::exception_ptr error_;
};

inline void run_grid(dim3 grid, dim3 block, size_t shared_bytes,
                     const std::function<void()>& body) {
  const size_t threads = size_t(block.x) * block.y * block.z;
  STD_TORCH_CHECK(threads >= 1 && threads <= 1024, "host shim: a block of ", threads, " threads");
  const char* seed = std::getenv("SEGDEFORM_SHIM_SEED");
  std::mt19937 order(seed ? unsigned(std::atoi(seed)) : 0u);
  std::vector<size_t> blocks(size_t(grid.x) * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), size_t(0));
  for (size_t i = blocks.size(); i > 1; --i) std::swap(blocks[i - 1], blocks[order() % i]);
  gridDim = grid, blockDim = block;
  for (const size_t b : blocks) {
    const unsigned x = unsigned(b % grid.x), rest = unsigned(b / grid.x);
    blockIdx = dim3(x, rest % grid.y, rest / grid.y);
    Block::current().run(threads, shared_bytes, order, body);
  }
}

}  // namespace segdeform::cuda::shim

inline void __syncthreads() { segdeform::cuda::shim::Block::current().wait_for_block(); }

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  segdeform::cuda::shim::Block::current().wait_for_warp(mask);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source) {
  return segdeform::cuda::shim::Block::current().exchange(mask, value, unsigned(source) % 32);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  auto& block = segdeform::cuda::shim::Block::current();
  return block.exchange(mask, value, block.lane() ^ unsigned(lanes));
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
  auto& block = segdeform::cuda::shim::Block::current();
  const unsigned source = block.lane() + delta;
  return block.exchange(mask, value, source < 32 ? source : block.lane());
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return segdeform::cuda::shim::Block::current().ballot(mask, predicate != 0);
}

inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }

inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}
