// The arguments of the RoI poolings: from tensors and numbers to a checked geometry, on any device.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <vector>

#include "geometry.h"

namespace segdeform {
namespace {

using torch::stable::Tensor;

inline RoiGeometry checked(RoiGeometry g, const Tensor& input, const Tensor& rois,
                           const std::optional<Tensor>& shifts) {
  STD_TORCH_CHECK(input.dim() == 4 && rois.dim() == 2 && rois.size(1) == 5,
                  "roi pooling: input must have 4 dimensions and rois the shape [R, 5]");
  g.batch = input.size(0), g.channels = input.size(1);
  g.height = input.size(2), g.width = input.size(3);
  g.rois = rois.size(0);
  constexpr int64_t kFar = int64_t(1) << 24;  // beyond, float32 cannot tell neighbouring pixels
  STD_TORCH_CHECK(g.batch < kFar && g.height > 0 && g.height < kFar && g.width > 0 &&
                      g.width < kFar && g.pooled_h > 0 && g.pooled_h < kFar && g.pooled_w > 0 &&
                      g.pooled_w < kFar,
                  "roi pooling: sizes must be positive and below 2^24");
  STD_TORCH_CHECK(g.samples >= (g.position_sensitive ? 1 : 0) && g.samples <= kMaxRoiSamples,
                  "roi pooling: the samples along an axis must be at most ", kMaxRoiSamples);
  STD_TORCH_CHECK(g.part_h > 0 && g.part_h < kFar && g.part_w > 0 && g.part_w < kFar,
                  "roi pooling: the part sizes must be positive and below 2^24");
  STD_TORCH_CHECK(g.group > 0 && g.group < kFar && g.out_channels > 0 &&
                      g.out_channels <= g.channels && g.channels % g.out_channels == 0 &&
                      g.channels / g.out_channels == g.group * g.group,
                  "roi pooling: input must have out channels * group * group channels");
  g.classes = 1;
  if (shifts) {
    STD_TORCH_CHECK(shifts->dim() == 4 && shifts->size(0) == g.rois && shifts->size(1) > 0 &&
                        shifts->size(1) % 2 == 0 && shifts->size(2) == g.part_h &&
                        shifts->size(3) == g.part_w,
                    "roi pooling: the shape of the offsets does not fit");
    g.classes = shifts->size(1) / 2;
    STD_TORCH_CHECK(g.out_channels % g.classes == 0,
                    "roi pooling: the classes of the offsets must divide the out channels");
  }
  return g;
}

// What a backward pass gets beside the operands.
inline void check_gradient(const RoiGeometry& g, const Tensor& grad,
                           const std::optional<Tensor>& shifts, bool need_shifts) {
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == g.rois && grad.size(1) == g.out_channels &&
                      grad.size(2) == g.pooled_h && grad.size(3) == g.pooled_w,
                  "roi pooling: the shape of grad does not fit");
  STD_TORCH_CHECK(shifts.has_value() || !need_shifts, "roi pooling: there are no offsets");
}

// Of deform_roi_pool.
inline RoiGeometry aligned(const Tensor& input, const Tensor& rois,
                           const std::optional<Tensor>& offset,
                           const std::vector<int64_t>& output_size, double spatial_scale,
                           int64_t sampling_ratio, double gamma) {
  STD_TORCH_CHECK(input.dim() == 4 && output_size.size() == 2 &&
                      (!offset || (offset->dim() == 4 && offset->size(1) == 2)),
                  "deform_roi_pool: input [N, C, H, W], offset [R, 2, ph, pw] and two output "
                  "sizes are needed");
  RoiGeometry g{};
  g.out_channels = input.size(1), g.group = 1;
  g.pooled_h = g.part_h = output_size[0], g.pooled_w = g.part_w = output_size[1];
  g.samples = sampling_ratio;
  g.spatial_scale = spatial_scale, g.shift_scale = gamma;
  return checked(g, input, rois, offset);
}

// Of ps_deform_roi_pool.
inline RoiGeometry position_sensitive(const Tensor& input, const Tensor& rois,
                                      const std::optional<Tensor>& trans, double spatial_scale,
                                      int64_t output_channels, int64_t group_size,
                                      int64_t pooled_size, int64_t part_size,
                                      int64_t sample_per_part, double trans_std) {
  RoiGeometry g{};
  g.out_channels = output_channels, g.group = group_size;
  g.pooled_h = g.pooled_w = pooled_size;
  g.part_h = g.part_w = part_size;
  g.samples = sample_per_part;
  g.spatial_scale = spatial_scale, g.shift_scale = trans_std;
  g.position_sensitive = true;
  return checked(g, input, rois, trans);
}

}  // namespace
}  // namespace segdeform
