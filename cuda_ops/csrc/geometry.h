// The shapes of the operators: checked once on the host, passed by value everywhere.
#pragma once

#include <cstdint>

namespace segdeform {

// Of one deformable convolution. Its functions serve on the device too: they are constexpr. Int is
// int64_t on the host; a GPU, which has no instruction that divides such, counts in int32_t.
template <typename Int>
struct ConvGeometry {
  Int batch, channels, height, width;       // input  [N, C, H, W]
  Int out_channels, out_height, out_width;  // output [N, O, P, Q]
  Int kernel_h, kernel_w;
  Int stride_h, stride_w;
  Int pad_h, pad_w;
  Int dilation_h, dilation_w;
  Int groups;         // of the weight
  Int offset_groups;  // of the offsets; need not nest with `groups`

  constexpr Int taps() const { return kernel_h * kernel_w; }
  constexpr Int in_pixels() const { return height * width; }
  constexpr Int out_pixels() const { return out_height * out_width; }
  constexpr Int channels_per_group() const { return channels / groups; }
  constexpr Int outputs_per_group() const { return out_channels / groups; }
  constexpr Int channels_per_offset_group() const { return channels / offset_groups; }
  constexpr bool depthwise() const { return groups == channels && out_channels == channels; }
};
using Geometry = ConvGeometry<int64_t>;

constexpr int64_t kMaxRoiSamples = 4096;  // along one axis of one bin

// Of one RoI pooling; Int as above.
template <typename Int>
struct RoiShape {
  Int batch, channels, height, width;    // input [N, C, H, W], C = O * group * group
  Int rois;                              // [R, 5]: image, x1, y1, x2, y2 in image pixels
  Int out_channels, pooled_h, pooled_w;  // output [R, O, pooled_h, pooled_w]
  Int group;                             // cells of position-sensitive channels along a side
  Int classes, part_h, part_w;           // shifts [R, 2 * classes, part_h, part_w], x first
  Int samples;                           // along an axis of a bin; 0: one a pixel or denser
  double spatial_scale, shift_scale;     // image to feature pixels; share of the RoI's size
  bool position_sensitive;               // R-FCN's sampling rule, or RoIAlign's
};
using RoiGeometry = RoiShape<int64_t>;

}  // namespace segdeform
