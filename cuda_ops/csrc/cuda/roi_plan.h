// What the kernels of RoI pooling count in 32 bits: arithmetic on shapes alone, without CUDA.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>

#include "../geometry.h"

namespace segdeform::cuda {

// The shapes in 32 bits, in which the kernels count RoIs, channels, the pixels of one image, the
// bins and parts of one RoI and the units of one launch; nothing where one of these numbers does
// not fit. Addresses have 64 bits.
inline std::optional<RoiShape<int32_t>> on_device(const RoiGeometry& g) {
  const auto of_cells = [](int64_t bins, int64_t cells) { return (cells + 1) * (bins + 1); };
  for (const int64_t number :
       {g.rois, g.channels, g.height * g.width, g.classes * g.pooled_h * g.pooled_w,
        g.classes * 2 * g.part_h * g.part_w, of_cells(g.pooled_h, g.part_h),
        of_cells(g.pooled_w, g.part_w), of_cells(g.pooled_h, g.group),
        of_cells(g.pooled_w, g.group)})
    if (number > std::numeric_limits<int32_t>::max()) return std::nullopt;
  return RoiShape<int32_t>{
      int32_t(g.batch),   int32_t(g.channels),     int32_t(g.height),   int32_t(g.width),
      int32_t(g.rois),    int32_t(g.out_channels), int32_t(g.pooled_h), int32_t(g.pooled_w),
      int32_t(g.group),   int32_t(g.classes),      int32_t(g.part_h),   int32_t(g.part_w),
      int32_t(g.samples), g.spatial_scale,         g.shift_scale,       g.position_sensitive};
}

// Units of one launch, at most: a block's warps may lie beyond the last and are counted, too.
constexpr int64_t kMostUnits = std::numeric_limits<int32_t>::max() - 1024;

// RoIs of one launch, at most; 0 where even the units of one are too many.
inline int64_t rois_of_launch(int64_t units_of_roi) { return kMostUnits / units_of_roi; }

}  // namespace segdeform::cuda
