// The shape of one deformable convolution: checked once on the host, passed by value everywhere.
#pragma once

#include <cstdint>

namespace segdeform {

struct Geometry {
  int64_t batch, channels, height, width;       // input  [N, C, H, W]
  int64_t out_channels, out_height, out_width;  // output [N, O, P, Q]
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  int64_t dilation_h, dilation_w;
  int64_t groups;         // of the weight
  int64_t offset_groups;  // of the offsets; need not nest with `groups`

  int64_t taps() const { return kernel_h * kernel_w; }
  int64_t in_pixels() const { return height * width; }
  int64_t out_pixels() const { return out_height * out_width; }
  int64_t channels_per_group() const { return channels / groups; }
  int64_t outputs_per_group() const { return out_channels / groups; }
  int64_t channels_per_offset_group() const { return channels / offset_groups; }
  bool depthwise() const { return groups == channels && out_channels == channels; }
};

}  // namespace segdeform
