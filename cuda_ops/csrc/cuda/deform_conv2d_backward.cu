// The backward of deform_conv2d on CUDA: chunks of column gradients, without atomics, so that
// every run gives the same bits.
//
// Workspace: a chunk is some images, or for the input gradient of a large image some channels of
// one. What is sorted and the column gradients together stay below the limit (operands.h), at any
// N and C, unless one image alone needs more: 16 bytes for each of its G*T*P*Q samples while they
// are sorted, then 16 bytes of column gradients for each of its T*P*Q.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "depthwise.cuh"
#include "operands.h"
#include "plan.h"
#include "products.h"
#include "samples.cuh"
#include "sorted_samples.h"

namespace segdeform::cuda {
namespace {

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Tensor zeros(const Tensor& like, std::vector<int64_t> sizes, ScalarType type) {
  return torch::stable::new_zeros(like, IntHeaderOnlyArrayRef(sizes.data(), sizes.size()), type);
}

Tensor empty(const Tensor& like, std::vector<int64_t> sizes, ScalarType type) {
  return torch::stable::new_empty(like, IntHeaderOnlyArrayRef(sizes.data(), sizes.size()), type);
}

// One call of the backward.
template <typename T, int V>
class Backward {
 public:
  using R = Real<T>;

  Backward(const Operands<T>& operands, const Tensor& grad, const Needs& need,
           const CurrentDevice& device)
      : g_(operands.g),
        operands_(operands),
        sampling_(operands.sampling()),
        grad_(grad),
        need_(need),
        stream_(device.stream()),
        multiprocessors_(device.multiprocessors()) {
    const std::vector<int64_t> samples = {g_.batch, g_.offset_groups * g_.taps(), g_.out_height,
                                          g_.out_width};
    if (need.input)
      grad_input = empty_like_format(grad, {g_.batch, g_.channels, g_.height, g_.width},
                                     type_of<T>(), MemoryFormat::ChannelsLast);
    if (need.offset)
      grad_offset =
          empty(grad, {g_.batch, 2 * samples[1], g_.out_height, g_.out_width}, type_of<R>());
    if (need.mask) grad_mask = empty(grad, samples, type_of<R>());
    sample_gradients_ = {need.offset ? data<R>(grad_offset) : nullptr,
                         need.mask ? data<R>(grad_mask) : nullptr};
  }

  void run() {
    if (g_.depthwise())
      run_depthwise();
    else
      run_dense();
  }

  Tensor grad_input, grad_offset, grad_weight, grad_mask;

 private:
  void run_dense() {
    if (need_.weight)
      grad_weight =
          zeros(grad_, {g_.out_channels, g_.taps(), g_.channels_per_group()}, type_of<R>());
    if (g_.batch == 0 || !(need_.input || need_.samples() || need_.weight)) return;
    const int64_t pixels = g_.out_pixels();
    const int64_t sorted_images =
        need_.input ? images_to_sort(g_, count_cells(g_), workspace_limit()) : 0;
    const BackwardPlan plan(g_, workspace_limit(), sizeof(T), V, sorted_images, multiprocessors_);
    plan.for_sortings([&](int64_t first, int64_t end) {
      std::optional<SortedSamples<T>> sorted;
      if (need_.input) sorted.emplace(operands_, first / pixels, (end - first) / pixels, stream_);
      const int64_t most = std::min(plan.chunk_rows, end - first);
      const Workspace<T> memory(grad_, most * g_.taps() * plan.widest());
      for (const Slice& slice : plan.slices) {
        const Tensor weight = weight_of(slice);
        plan.for_chunks(first, end, [&](int64_t row, int64_t count) {
          run_chunk(slice, weight, rows_from(g_, row, count), sorted, memory.get());
        });
      }
    });
  }

  // [groups, O/groups, T * channels] of the slice, contiguous.
  Tensor weight_of(const Slice& slice) const {
    const int64_t inputs = g_.channels_per_group(), outputs = g_.outputs_per_group();
    const int64_t group = slice.first_channel / inputs, inside = slice.first_channel % inputs;
    const int64_t sizes[4] = {slice.groups(), outputs, g_.taps(), slice.group_channels};
    const int64_t row = g_.taps() * inputs, strides[4] = {outputs * row, row, inputs, 1};
    return torch::stable::contiguous(torch::stable::from_blob(
        data<T>(operands_.weight) + group * outputs * row + inside, IntHeaderOnlyArrayRef(sizes, 4),
        IntHeaderOnlyArrayRef(strides, 4), grad_.device(), type_of<T>()));
  }

  // In memory first the gradients of the columns, then the columns.
  void run_chunk(const Slice& slice, const Tensor& weight, const Rows& rows,
                 const std::optional<SortedSamples<T>>& sorted, T* memory) {
    const Columns<T> columns = columns_of(memory, g_, slice, rows.count);
    const int64_t width = columns.row_stride(), outputs = g_.outputs_per_group();
    const int64_t groups = slice.groups(),
                  first_group = slice.first_channel / g_.channels_per_group();
    const Matrices grad{data<T>(grad_) + rows.first * g_.out_channels + first_group * outputs,
                        {groups, rows.count, outputs},
                        {outputs, g_.out_channels, 1}};
    const Matrices column{memory, {groups, rows.count, width}, {rows.count * width, width, 1}};
    if (need_.input || need_.samples())
      multiply(grad_, type_of<T>(), grad,
               {data<T>(weight), {groups, outputs, width}, {outputs * width, width, 1}}, column);
    const StoredGradient<T> gradient{columns};
    if (need_.input)
      launch_input_gradient<T, V>(g_, sampling_, sorted->lists(), sorted->first_image,
                                  rows.first / g_.out_pixels(), rows.count / g_.out_pixels(),
                                  slice.first_channel, slice.channels, gradient,
                                  data<T>(grad_input), stream_);
    if (need_.samples()) {
      const auto run = need_.weight ? launch_sample_gradients<T, V, true, StoredGradient<T>>
                                    : launch_sample_gradients<T, V, false, StoredGradient<T>>;
      run(g_, sampling_, rows, slice.first_channel, slice.channels, gradient, sample_gradients_,
          stream_);
    } else if (need_.weight) {
      launch_gather<T, V>(g_, sampling_, rows, columns, stream_);
    }
    if (need_.weight) add_to_weight_gradient(slice, grad, column);
  }

  void add_to_weight_gradient(const Slice& slice, const Matrices& grad, const Matrices& column) {
    const int64_t inputs = g_.channels_per_group(), outputs = g_.outputs_per_group();
    const int64_t width = column.size[2], elements = slice.groups() * outputs * width;
    const Workspace<R> product(grad_, elements);
    multiply_wide(grad_, type_of<T>(), type_of<R>(), grad.transposed(), column,
                  {product.get(), {slice.groups(), outputs, width}, {outputs * width, width, 1}});
    const int64_t group = slice.first_channel / inputs, inside = slice.first_channel % inputs;
    launch(add_weight_gradient<R>, blocks_for(elements, kThreads), kThreads, 0, stream_,
           product.get(), elements, slice.group_channels, inputs,
           data<R>(grad_weight) + group * outputs * g_.taps() * inputs + inside);
  }

  void run_depthwise() {
    const Tensor weight = operands_.taps_first();
    const DepthwiseGradient<T> all{data<T>(grad_), data<T>(weight), int32_t(g_.channels)};
    if (need_.weight) grad_weight = depthwise_weight();
    if (g_.batch == 0) return;
    if (need_.samples())
      for_launches(g_, [&](const Rows& rows) {
        launch_sample_gradients<T, V, false>(g_, sampling_, rows, 0, g_.channels,
                                             all.from(rows.first), sample_gradients_, stream_);
      });
    const int64_t images =
        need_.input ? images_to_sort(g_, count_cells(g_), workspace_limit()) : g_.batch;
    for (int64_t first = 0; need_.input && first < g_.batch; first += images) {
      const int64_t count = std::min(images, g_.batch - first);
      const SortedSamples<T> sorted(operands_, first, count, stream_);
      launch_input_gradient<T, V>(g_, sampling_, sorted.lists(), first, first, count, 0,
                                  g_.channels, all.from(first * g_.out_pixels()),
                                  data<T>(grad_input), stream_);
    }
  }

  // [C, 1, T], summed over chunks of pixels and then over the chunks.
  Tensor depthwise_weight() const {
    const int64_t rows = g_.batch * g_.out_pixels();
    constexpr int64_t kMostChunks = 512;
    const int64_t fit = workspace_limit() / (g_.taps() * g_.channels * int64_t(sizeof(R)));
    const int64_t most = std::clamp<int64_t>(fit, 1, kMostChunks);
    const int64_t chunk_pixels = std::max<int64_t>(kThreads, (rows + most - 1) / most);
    const int64_t chunks = (rows + chunk_pixels - 1) / chunk_pixels;
    const Tensor partial = empty(grad_, {chunks, g_.taps(), g_.channels}, type_of<R>());
    launch_depthwise_weight_gradient<T, V>(g_, sampling_, data<T>(grad_), chunks, chunk_pixels,
                                           data<R>(partial), stream_);
    const int64_t first[1] = {0};
    return torch::stable::sum(partial, IntHeaderOnlyArrayRef(first, 1), false, type_of<R>());
  }

  const Geometry g_;
  const Operands<T>& operands_;
  const Sampling<T> sampling_;
  const Tensor grad_;  // [N, P, Q, O]
  const Needs need_;
  const Stream stream_;
  const int64_t multiprocessors_;
  SampleGradients<R> sample_gradients_;
};

// [O, T, C/groups], or [T, C] for depthwise, as [O, C/groups, kh, kw].
template <typename T>
Tensor shaped_as_weight(const Geometry& g, const Tensor& gradient, ScalarType type) {
  const int64_t inputs = g.channels_per_group(), row = g.depthwise() ? 1 : g.taps() * inputs;
  const int64_t tap = g.depthwise() ? g.channels : inputs;
  const int64_t sizes[4] = {g.out_channels, inputs, g.kernel_h, g.kernel_w};
  const int64_t strides[4] = {row, 1, g.kernel_w * tap, tap};
  const Tensor view = torch::stable::from_blob(gradient.data_ptr(), IntHeaderOnlyArrayRef(sizes, 4),
                                               IntHeaderOnlyArrayRef(strides, 4), gradient.device(),
                                               type_of<Real<T>>());
  // A copy at any rate: the view does not keep its memory alive.
  Tensor result = torch::stable::new_empty(gradient, IntHeaderOnlyArrayRef(sizes, 4), type);
  return torch::stable::copy_(result, view);
}

Tensor sum_of_outputs(const Tensor& grad, ScalarType wide, ScalarType type) {
  const int64_t dims[3] = {0, 2, 3};
  return torch::stable::to(torch::stable::sum(grad, IntHeaderOnlyArrayRef(dims, 3), false, wide),
                           type);
}

template <typename T>
Gradients backward(const Geometry& g, const Tensor& grad, const Tensor& input, const Tensor& offset,
                   const Tensor& weight, const std::optional<Tensor>& mask, const Needs& need) {
  const CurrentDevice device(input);
  const Tensor flat_grad = channels_last(grad, type_of<T>());
  const Tensor grad_bias = need.bias
                               ? sum_of_outputs(flat_grad, type_of<Real<T>>(), weight.scalar_type())
                               : nothing(weight);
  if (!need.columns())
    return {nothing(input), nothing(offset), nothing(weight), grad_bias, nothing(offset)};
  const Operands<T> operands(g, input, offset, weight, mask);
  const auto finish = [&](auto&& call) -> Gradients {
    call.run();
    return {need.input
                ? finished(call.grad_input, input.scalar_type(), prefers_channels_last(input))
                : nothing(input),
            need.offset ? finished(call.grad_offset, offset.scalar_type(), false) : nothing(offset),
            need.weight ? shaped_as_weight<T>(g, call.grad_weight, weight.scalar_type())
                        : nothing(weight),
            grad_bias,
            need.mask ? finished(call.grad_mask, mask->scalar_type(), false) : nothing(offset)};
  };
  if (vectors_fit<T>(g, {&operands.input, &flat_grad}))
    return finish(Backward<T, kVector<T>>(operands, flat_grad, need, device));
  return finish(Backward<T, 1>(operands, flat_grad, need, device));
}

Gradients deform_conv2d_backward(const Tensor& grad, const Tensor& input, const Tensor& offset,
                                 const Tensor& weight, const std::optional<Tensor>& mask,
                                 const std::vector<int64_t>& stride,
                                 const std::vector<int64_t>& padding,
                                 const std::vector<int64_t>& dilation, int64_t groups,
                                 int64_t offset_groups, bool need_input, bool need_offset,
                                 bool need_weight, bool need_bias, bool need_mask) {
  const Geometry g =
      geometry_of(input, offset, weight, mask, stride, padding, dilation, groups, offset_groups);
  const Needs need{need_input, need_offset, need_weight, need_bias, need_mask};
  check_backward(g, grad, mask, need);
  check_operands(input, {&grad, &offset, &weight, mask ? &*mask : &input}, weight);
  return with_type(input.scalar_type(), [&](auto of_type) {
    return backward<decltype(of_type)>(g, grad, input, offset, weight, mask, need);
  });
}

}  // namespace
}  // namespace segdeform::cuda

STABLE_TORCH_LIBRARY_IMPL(SEGDEFORM_LIBRARY, SEGDEFORM_DEVICE, library) {
  library.impl("deform_conv2d_backward", TORCH_BOX(&segdeform::cuda::deform_conv2d_backward));
}
