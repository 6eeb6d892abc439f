// The lists of samples that the input gradient is gathered from, for as long as they are needed.
#pragma once

#include <bit>

#include "operands.h"
#include "scatter.cuh"
#include "sort.h"

namespace segdeform::cuda {
namespace {

// Samples of some images sorted by where they fall.
template <typename T>
class SortedSamples {
 public:
  SortedSamples(const Operands<T>& operands, int64_t first_image, int64_t images, Stream stream)
      : first_image(first_image) {
    const Geometry& g = operands.g;
    const int64_t count = images * g.offset_groups * g.taps() * g.out_pixels();
    const int64_t lists = images * g.offset_groups * count_cells(g);
    STD_TORCH_CHECK(count < UINT32_MAX && lists < UINT32_MAX,
                    "deform_conv2d_backward: images of 2^32 samples or more are not supported");
    samples_.emplace(operands.input, count);
    other_samples_.emplace(operands.input, count);
    starts_.emplace(operands.input, lists + 1);
    const Workspace<uint32_t> keys(operands.input, count), other_keys(operands.input, count);
    launch(find_lists<T>, blocks_for(count, kThreads), kThreads, 0, stream, *on_device(g),
           operands.sampling(), first_image, count, uint32_t(lists), keys.get(), samples_->get());
    Pairs pairs{keys.get(), samples_->get(), other_keys.get(), other_samples_->get()};
    sort_pairs(operands.input, pairs, count, int(std::bit_width(uint64_t(lists))), stream);
    if (pairs.values != samples_->get()) std::swap(samples_, other_samples_);
    other_samples_.reset();
    launch(find_starts, blocks_for(lists + 1, kThreads), kThreads, 0, stream, pairs.keys, count,
           lists, starts_->get());
  }

  SampleLists lists() const { return {samples_->get(), starts_->get()}; }
  const int64_t first_image;

 private:
  std::optional<Workspace<uint32_t>> samples_, other_samples_, starts_;
};

}  // namespace
}  // namespace segdeform::cuda
