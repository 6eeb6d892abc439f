// deform_conv2d on CUDA: gathers chunks of columns that stay in the L2 cache, and multiplies them.
//
// The output is made channels-last, as the product writes it, and is copied only if the input asks
// for another layout. Every sum has one order that the shapes decide: no atomics.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "depthwise.cuh"
#include "gather.cuh"
#include "operands.h"
#include "plan.h"
#include "products.h"

namespace segdeform::cuda {
namespace {

// bias: [O] in the type of the columns. The products of several groups wait in the compute type for
// it, so that half precision is rounded once (torch's product of batches that adds one is not to be
// had through the stable ABI); of one group torch's product adds it.
template <typename T, int V>
void forward_dense(const Operands<T>& operands, const std::optional<Tensor>& bias, T* output,
                   const CurrentDevice& device) {
  using R = Real<T>;
  const Stream stream = device.stream();
  const Geometry& g = operands.g;
  const Sampling<T> sampling = operands.sampling();
  const int64_t width = g.taps() * g.channels_per_group(), outputs = g.outputs_per_group();
  const bool waits = bias && g.groups > 1;
  const int64_t column_bytes = g.taps() * g.channels * int64_t(sizeof(T));
  const int64_t product_bytes = waits ? g.out_channels * int64_t(sizeof(R)) : 0;
  const Waves waves{device.multiprocessors(), gather_blocks<V>(g), kGatherBlocks,
                    g.groups * Waves::over(outputs, 128)};
  const int64_t rows = g.batch * g.out_pixels();
  const int64_t most = forward_rows(rows, workspace_limit(), column_bytes + product_bytes, waves);
  const Workspace<T> memory(operands.input, most * g.taps() * g.channels);
  const Workspace<R> products(operands.input, waits ? most * g.out_channels : 0);
  const Matrices weight{
      data<T>(operands.weight), {g.groups, outputs, width}, {outputs * width, width, 1}};
  for (int64_t first = 0; first < rows; first += most) {
    const int64_t count = std::min(most, rows - first);
    const Slice all{0, g.channels, g.channels_per_group()};
    launch_gather<T, V>(g, sampling, rows_from(g, first, count),
                        columns_of(memory.get(), g, all, count), stream);
    T* chunk = output + first * g.out_channels;
    const Matrices column{memory.get(), {g.groups, count, width}, {count * width, width, 1}};
    const Matrices out{chunk, {g.groups, count, outputs}, {outputs, g.out_channels, 1}};
    if (!bias) {
      multiply(operands.input, type_of<T>(), column, weight.transposed(), out);
    } else if (!waits) {
      multiply_and_add(operands.input, type_of<T>(), column, weight, *bias, out);
    } else {
      multiply_wide(operands.input, type_of<T>(), type_of<R>(), column, weight.transposed(),
                    {products.get(), {g.groups, count, outputs}, {count * outputs, outputs, 1}});
      launch_add_bias(g, products.get(), data<T>(*bias), count, chunk, stream);
    }
  }
}

template <typename T>
Tensor forward(const Geometry& g, const Tensor& input, const Tensor& offset, const Tensor& weight,
               const std::optional<Tensor>& bias, const std::optional<Tensor>& mask) {
  const CurrentDevice device(input);
  Tensor output = empty_like_format(input, {g.batch, g.out_channels, g.out_height, g.out_width},
                                    type_of<T>(), MemoryFormat::ChannelsLast);
  if (g.batch > 0) {
    const Operands<T> operands(g, input, offset, weight, mask);
    std::optional<Tensor> flat_bias;
    if (bias) flat_bias = torch::stable::contiguous(torch::stable::to(*bias, type_of<T>()));
    const bool wide = vectors_fit<T>(g, {&operands.input});
    if (g.depthwise()) {
      const Tensor taps_first = operands.taps_first();
      const auto run = wide ? launch_depthwise<T, kVector<T>> : launch_depthwise<T, 1>;
      run(g, operands.sampling(), data<T>(taps_first), bias ? data<T>(*flat_bias) : nullptr,
          data<T>(output), device.stream());
    } else {
      const auto run = wide ? forward_dense<T, kVector<T>> : forward_dense<T, 1>;
      run(operands, flat_bias, data<T>(output), device);
    }
  }
  return finished(output, input.scalar_type(), prefers_channels_last(input));
}

Tensor deform_conv2d(const Tensor& input, const Tensor& offset, const Tensor& weight,
                     const std::optional<Tensor>& bias, const std::optional<Tensor>& mask,
                     const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                     const std::vector<int64_t>& dilation, int64_t groups, int64_t offset_groups) {
  const Geometry g =
      geometry_of(input, offset, weight, mask, stride, padding, dilation, groups, offset_groups);
  check_operands(input, {&offset, &weight, bias ? &*bias : &input, mask ? &*mask : &input}, weight);
  return with_type(input.scalar_type(), [&](auto of_type) {
    return forward<decltype(of_type)>(g, input, offset, weight, bias, mask);
  });
}

}  // namespace
}  // namespace segdeform::cuda

STABLE_TORCH_LIBRARY_IMPL(SEGDEFORM_LIBRARY, SEGDEFORM_DEVICE, library) {
  library.impl("deform_conv2d", TORCH_BOX(&segdeform::cuda::deform_conv2d));
}
