// What the faces of deform_conv2d share on every device: the checks of shapes.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <vector>

#include "geometry.h"
#include "tensors.h"

namespace segdeform {
namespace {

inline Geometry geometry_of(const Tensor& input, const Tensor& offset, const Tensor& weight,
                            const std::optional<Tensor>& mask, const std::vector<int64_t>& stride,
                            const std::vector<int64_t>& padding,
                            const std::vector<int64_t>& dilation, int64_t groups,
                            int64_t offset_groups) {
  STD_TORCH_CHECK(input.dim() == 4 && offset.dim() == 4 && weight.dim() == 4,
                  "deform_conv2d: input, offset and weight must have 4 dimensions");
  STD_TORCH_CHECK(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2,
                  "deform_conv2d: stride, padding and dilation must be pairs");
  Geometry g{};
  g.batch = input.size(0), g.channels = input.size(1);
  g.height = input.size(2), g.width = input.size(3);
  g.out_channels = weight.size(0);
  g.kernel_h = weight.size(2), g.kernel_w = weight.size(3);
  g.stride_h = stride[0], g.stride_w = stride[1];
  g.pad_h = padding[0], g.pad_w = padding[1];
  g.dilation_h = dilation[0], g.dilation_w = dilation[1];
  g.groups = groups, g.offset_groups = offset_groups;
  STD_TORCH_CHECK(groups > 0 && offset_groups > 0 && g.stride_h > 0 && g.stride_w > 0 &&
                      g.dilation_h > 0 && g.dilation_w > 0 && g.kernel_h > 0 && g.kernel_w > 0,
                  "deform_conv2d: groups, stride, dilation and kernel sizes must be positive");
  constexpr int64_t kFar = int64_t(1) << 24;  // beyond, float32 cannot tell neighbouring pixels
  STD_TORCH_CHECK(g.height < kFar && g.width < kFar && g.pad_h < kFar && g.pad_w < kFar &&
                      g.dilation_h < kFar && g.dilation_w < kFar && g.kernel_h < 64 * 1024 &&
                      g.kernel_w < 64 * 1024 && g.dilation_h * g.kernel_h < kFar &&
                      g.dilation_w * g.kernel_w < kFar,
                  "deform_conv2d: sizes, padding and dilation must be below 2^24");
  g.out_height = (g.height + 2 * g.pad_h - (g.dilation_h * (g.kernel_h - 1) + 1)) / g.stride_h + 1;
  g.out_width = (g.width + 2 * g.pad_w - (g.dilation_w * (g.kernel_w - 1) + 1)) / g.stride_w + 1;
  const auto is = [](const Tensor& t, int64_t n, int64_t c, int64_t h, int64_t w) {
    return t.size(0) == n && t.size(1) == c && t.size(2) == h && t.size(3) == w;
  };
  STD_TORCH_CHECK(g.out_height > 0 && g.out_width > 0 && g.channels > 0 && g.out_channels > 0 &&
                      g.channels % groups == 0 && g.out_channels % groups == 0 &&
                      g.channels % offset_groups == 0 && weight.size(1) == g.channels_per_group() &&
                      is(offset, g.batch, 2 * offset_groups * g.taps(), g.out_height, g.out_width),
                  "deform_conv2d: the shapes of input, offset and weight do not fit");
  if (mask)
    STD_TORCH_CHECK(
        mask->dim() == 4 && is(*mask, g.batch, offset_groups * g.taps(), g.out_height, g.out_width),
        "deform_conv2d: the shape of mask does not fit");
  STD_TORCH_CHECK(g.in_pixels() < (int64_t(1) << 31) - 2 * g.width,
                  "deform_conv2d: images of 2^31 pixels or more are not supported");
  return g;
}

struct Needs {
  bool input, offset, weight, bias, mask;
  bool samples() const { return offset || mask; }
  bool columns() const { return input || samples() || weight; }  // the bias asks for none
};

inline void check_backward(const Geometry& g, const Tensor& grad, const std::optional<Tensor>& mask,
                           const Needs& need) {
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == g.batch && grad.size(1) == g.out_channels &&
                      grad.size(2) == g.out_height && grad.size(3) == g.out_width,
                  "deform_conv2d_backward: the shape of grad does not fit");
  STD_TORCH_CHECK(mask.has_value() || !need.mask, "deform_conv2d_backward: there is no mask");
}

}  // namespace
}  // namespace segdeform
