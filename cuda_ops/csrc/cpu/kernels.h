// What the operators ask of a CPU kernel, and the table of kernels of one instruction set.
//
// Images are channels-last: pixel p of image n starts at ((n * pixels) + p) * channels. Every
// pointer is to the compute type T, float or double. A kernel call handles one unit of work on one
// thread; no two units write the same place, so no result depends on the number of threads.
//
// A matrix of K rows and N columns is stored in column panels: full panels of `panel` columns, then
// one of what is left, rounded up to `lanes` and zero-filled. Panel j holds K rows of its width.
#pragma once

#include <algorithm>

#include "../geometry.h"
#include "roi_kernels.h"

namespace segdeform::cpu {

constexpr int64_t kForwardPixels = 96;    // output pixels of a forward tile, at most
constexpr int64_t kBackwardPixels = 96;   // output pixels of a backward tile, at most
constexpr int64_t kColumnElements = 640;  // elements of a column row held at a time
constexpr int64_t kRowPadding = 16;       // keeps tile rows off strides that are powers of two

struct PanelLayout {
  int64_t panel, lanes;

  int64_t padded(int64_t columns) const { return (columns + lanes - 1) / lanes * lanes; }
  int64_t size(int64_t rows, int64_t columns) const { return rows * padded(columns); }
  int64_t width(int64_t columns, int64_t first) const {
    return std::min(panel, padded(columns) - first);
  }
};

// The gradient of the output as the backward pass of a dense convolution reads it: per image, tile
// of pixels and group a matrix [tile pixels, O/groups], its rows `stride` elements apart.
struct GradLayout {
  int64_t tiles, groups, tile_pixels, stride;

  GradLayout(const Geometry& g, const PanelLayout& layout, int64_t tile_pixels)
      : tiles((g.out_pixels() + tile_pixels - 1) / tile_pixels),
        groups(g.groups),
        tile_pixels(tile_pixels),
        stride(layout.padded(g.outputs_per_group()) + kRowPadding) {}

  int64_t at(int64_t image, int64_t tile, int64_t group) const {
    return ((image * tiles + tile) * groups + group) * tile_pixels * stride;
  }
};

template <typename T>
struct Sampling {
  const T* input;   // [N, H, W, C]
  const T* offset;  // [N, 2*G*T, P, Q], strides below
  const T* mask;    // [N, G*T, P, Q], or nullptr for v1
  int64_t offset_stride[4];
  int64_t mask_stride[4];
  const T* zeros;  // C zeros: what a corner outside the image points to
};

template <typename T>
struct ForwardTask {
  Geometry g;
  Sampling<T> sampling;
  int64_t tile_pixels;
  const T* weight;  // dense: per group a panel matrix [T*C/groups, O/groups]; depthwise: [T, C]
  const T* bias;    // [O] or nullptr
  T* output;        // [N, P, Q, O]
};

// Channels of one group whose products the dense backward pass computes at a time. packing.h lays
// out the weight and its gradient by these.
struct WeightUnit {
  int64_t first_channel, channels, group;
  int64_t weight_at, grad_at;  // elements before it in the packed weight, in its packed gradient
};

// A run of channels that one backward task owns: whole groups, or a part of one group.
struct Slice {
  int64_t first_channel, channels;
  const WeightUnit* units;  // its units, in order; depthwise has none
  int64_t unit_count;
};

template <typename T>
struct BackwardTask {
  Geometry g;
  Sampling<T> sampling;
  int64_t tile_pixels;
  int64_t slice_channels;  // channels of a unit, at most
  int64_t first_image, images;
  const T* weight;  // dense: per unit a panel matrix [O/groups, T*channels]; depthwise: [T, C]
  const T* grad;    // dense: as GradLayout says; depthwise: [N, P, Q, O]
  T* grad_input;    // [N, H, W, C], zeroed before; or nullptr
  T* grad_samples;  // [N, overlapped offset groups, T, 3, P*Q]: d/dy, d/dx, d/dmask; or nullptr
  T* grad_weight;   // dense: per unit a panel matrix [T*channels, O/groups], zeroed before;
                    // depthwise: [T, C]; or nullptr
};

// Scores of K classes at a stride, and the picture whose pixels get the class that scores highest.
template <typename T>
struct LabelTask {
  const T* maps;                   // [N, K, h, w]
  uint8_t* labels;                 // [N, H, W]; or nullptr, and
  uint16_t* wide_labels;           // the same of more classes than a byte numbers
  int64_t classes, rows, columns;  // K, h, w
  int64_t stride, height, width;   // H and W: rows and columns times the stride, or a little less

  // Pixels of a row that one value may have: a stride may be far wider than the picture.
  int64_t phases() const { return stride < width ? stride : width; }
};

template <typename T>
struct Kernels {
  const char* name;
  PanelLayout layout;
  int64_t (*forward_scratch)(const ForwardTask<T>&);  // elements of T
  void (*forward_tile)(const ForwardTask<T>&, int64_t tile, T* scratch);
  int64_t (*backward_scratch)(const BackwardTask<T>&, const Slice&);
  void (*backward_slice)(const BackwardTask<T>&, const Slice&, T* scratch);
  RoiKernels<T> roi;
  int64_t (*label_scratch)(const LabelTask<T>&);  // elements of T
  void (*label_rows)(const LabelTask<T>&, int64_t unit, T* scratch);
};

// The kernels that serve this processor; the variable SEGDEFORM_CPU (avx512, avx2, neon, portable)
// asks for one by name. Throws if the processor lacks it.
template <typename T>
const Kernels<T>& kernels();

}  // namespace segdeform::cpu
