// The shapes of the operators: checked once on the host, passed by value everywhere.
#pragma once

#include <cstdint>

namespace segdeform {

// Of one deformable convolution. Its functions serve on the device too: they are constexpr.
struct Geometry {
  int64_t batch, channels, height, width;       // input  [N, C, H, W]
  int64_t out_channels, out_height, out_width;  // output [N, O, P, Q]
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  int64_t dilation_h, dilation_w;
  int64_t groups;         // of the weight
  int64_t offset_groups;  // of the offsets; need not nest with `groups`

  constexpr int64_t taps() const { return kernel_h * kernel_w; }
  constexpr int64_t in_pixels() const { return height * width; }
  constexpr int64_t out_pixels() const { return out_height * out_width; }
  constexpr int64_t channels_per_group() const { return channels / groups; }
  constexpr int64_t outputs_per_group() const { return out_channels / groups; }
  constexpr int64_t channels_per_offset_group() const { return channels / offset_groups; }
  constexpr bool depthwise() const { return groups == channels && out_channels == channels; }
};

constexpr int64_t kMaxRoiSamples = 4096;  // along one axis of one bin

// Of one RoI pooling.
struct RoiGeometry {
  int64_t batch, channels, height, width;    // input [N, C, H, W], C = O * group * group
  int64_t rois;                              // [R, 5]: image, x1, y1, x2, y2 in image pixels
  int64_t out_channels, pooled_h, pooled_w;  // output [R, O, pooled_h, pooled_w]
  int64_t group;                             // cells of position-sensitive channels along a side
  int64_t classes, part_h, part_w;           // shifts [R, 2 * classes, part_h, part_w], x first
  int64_t samples;                           // along an axis of a bin; 0: one a pixel or denser
  double spatial_scale, shift_scale;         // image to feature pixels; share of the RoI's size
  bool position_sensitive;                   // R-FCN's sampling rule, or RoIAlign's
};

}  // namespace segdeform
