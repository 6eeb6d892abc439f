// The backward of deform_conv2d on CPU: slices of channels for the kernels, and what they leave to
// be summed.
#include <torch/csrc/stable/library.h>

#include <array>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "../deform_conv2d.h"
#include "operands.h"
#include "workspace.h"

namespace segdeform::cpu {
namespace {

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// How the backward is cut: slices of channels, times chunks of images where slices are few.
// It depends on the shape alone, so that the order of every sum does.
struct Cut {
  std::vector<Slice> slices;
  std::vector<WeightUnit> units;  // of all slices, in order; depthwise has none
  int64_t slice_channels, chunks;
};

// Channels of a slice, at most. Wide ones repeat less work for each sample, but there must be
// enough for many threads, of one image or of several.
int64_t slice_channels(const Geometry& g) {
  constexpr int64_t kEnough = 8;  // slices of all images
  const int64_t images = std::clamp<int64_t>(g.batch, 1, kEnough);
  if (!g.depthwise()) return g.channels * images >= kEnough * 64 ? 64 : 32;
  const int64_t needed = (kEnough + images - 1) / images;
  const int64_t widest = std::clamp<int64_t>(g.channels / needed, 64, 256);
  const int64_t slices = (g.channels + widest - 1) / widest;
  return ((g.channels + slices - 1) / slices + 15) / 16 * 16;  // of equal width, whole vectors
}

Cut cut_backward(const Geometry& g, const PanelLayout& layout) {
  constexpr int64_t kEnoughSlices = 8, kEnoughUnits = 16;
  Cut cut{};
  cut.slice_channels = slice_channels(g);
  const int64_t inputs = g.depthwise() ? 1 : g.channels_per_group();
  const int64_t step =
      inputs < cut.slice_channels ? cut.slice_channels / inputs * inputs : cut.slice_channels;
  for (int64_t c = 0; c < g.channels;) {
    const int64_t group_end = inputs > cut.slice_channels ? (c / inputs + 1) * inputs : g.channels;
    const int64_t channels = std::min(step, group_end - c);
    cut.slices.push_back({c, channels, nullptr, 0});
    c += channels;
  }
  if (!g.depthwise()) {
    cut.units = weight_units(g, layout, cut.slice_channels);
    size_t next = 0;
    for (Slice& s : cut.slices) {
      s.units = &cut.units[next];
      for (;
           next < cut.units.size() && cut.units[next].first_channel < s.first_channel + s.channels;
           ++next)
        ++s.unit_count;
    }
  }
  const int64_t slices = int64_t(cut.slices.size());
  cut.chunks = slices >= kEnoughSlices ? 1
                                       : std::clamp<int64_t>((kEnoughUnits + slices - 1) / slices,
                                                             1, std::max<int64_t>(g.batch, 1));
  return cut;
}

// Where the per-slice sums of sample gradients lie: one block [N, groups it overlaps, T, 3, P*Q]
// a slice.
struct SampleBlocks {
  std::vector<int64_t> start, first_group, groups;
  int64_t total = 0;

  SampleBlocks(const Geometry& g, const std::vector<Slice>& slices) {
    const int64_t size = g.channels_per_offset_group();
    for (const Slice& s : slices) {
      start.push_back(total);
      first_group.push_back(s.first_channel / size);
      groups.push_back((s.first_channel + s.channels - 1) / size - first_group.back() + 1);
      total += g.batch * groups.back() * g.taps() * 3 * g.out_pixels();
    }
  }
};

// Sums the blocks of all slices, in the order of the slices, into [N, 2*G*T, P, Q], [N, G*T, P, Q].
template <typename T>
void reduce_samples(const Geometry& g, const SampleBlocks& blocks, const T* sums, T* grad_offset,
                    T* grad_mask) {
  const int64_t pixels = g.out_pixels(), taps = g.taps();
  parallel_units(g.batch * g.offset_groups * taps, 3 * pixels, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / (g.offset_groups * taps);
      const int64_t group = unit / taps % g.offset_groups, t = unit % taps;
      T* parts[3] = {grad_offset ? grad_offset + 2 * unit * pixels : nullptr,
                     grad_offset ? grad_offset + (2 * unit + 1) * pixels : nullptr,
                     grad_mask ? grad_mask + unit * pixels : nullptr};
      for (int k = 0; k < 3; ++k) {
        if (!parts[k]) continue;
        std::fill(parts[k], parts[k] + pixels, T(0));
        for (size_t s = 0; s < blocks.start.size(); ++s) {
          const int64_t inside = group - blocks.first_group[s];
          if (inside < 0 || inside >= blocks.groups[s]) continue;
          const T* from = sums + blocks.start[s] +
                          (((n * blocks.groups[s] + inside) * taps + t) * 3 + k) * pixels;
          for (int64_t p = 0; p < pixels; ++p) parts[k][p] += from[p];
        }
      }
    }
  });
}

// One call of the backward: what the units of work read and write, and the results.
template <typename T>
class Backward {
 public:
  // `grad`: channels-last, in the compute type.
  Backward(const Geometry& g, const Tensor& grad, const Operands<T>& operands, const Needs& need,
           ScalarType type)
      : g_(g),
        grad_(grad),
        need_(need),
        type_(type),
        cut_(cut_backward(g, kernel_.layout)),
        blocks_(g, cut_.slices) {
    task_.g = g;
    task_.sampling = operands.sampling();
    task_.tile_pixels = kBackwardPixels;
    task_.slice_channels = cut_.slice_channels;
    pack(operands.weight_rows(g));
    if (need.input) {
      grad_input = empty({g.batch, g.channels, g.height, g.width}, MemoryFormat::ChannelsLast);
      torch::stable::zero_(grad_input);
      task_.grad_input = data<T>(grad_input);
    }
    if (need.samples()) samples_ = zeroed<T>(blocks_.total);
    if (need.weight) weight_sums_ = zeroed<T>(cut_.chunks * chunk_size());
  }

  void run() {
    run_units();
    if (need_.samples()) sum_samples();
    if (need_.weight) {
      grad_weight = empty({g_.out_channels, g_.channels_per_group(), g_.kernel_h, g_.kernel_w});
      unpack_grad_weight(g_, kernel_.layout, cut_.units, cut_.chunks, chunk_size(),
                         weight_sums_->get(), data<T>(grad_weight));
    }
  }

  Tensor grad_input, grad_offset, grad_weight, grad_mask;

 private:
  Tensor empty(std::array<int64_t, 4> sizes, MemoryFormat format = MemoryFormat::Contiguous) const {
    return empty_like_format(grad_, sizes, type_, format);
  }

  // Weight and output gradient as the matrix products read them.
  void pack(const WeightRows<T>& rows) {
    if (g_.depthwise()) {
      weight_.emplace(packed_size(g_, kernel_.layout));
      pack_weight(g_, rows, kernel_.layout, weight_->get());
      task_.grad = data<T>(grad_);
    } else {
      if (need_.input || need_.samples())
        weight_.emplace(transposed_weight(g_, rows, kernel_.layout, cut_.units));
      packed_grad_.emplace(padded_grad(g_, data<T>(grad_), kernel_.layout, task_.tile_pixels));
      task_.grad = packed_grad_->get();
    }
    task_.weight = weight_ ? weight_->get() : nullptr;
  }

  // Elements of the weight's gradient, as the kernels write it for a chunk of images.
  int64_t chunk_size() const {
    const int64_t outputs = g_.depthwise() ? 1 : kernel_.layout.padded(g_.outputs_per_group());
    return g_.taps() * g_.channels * outputs;
  }

  void run_units() const {
    const int64_t slices = int64_t(cut_.slices.size());
    const int64_t macs = g_.out_pixels() * cut_.slice_channels * g_.taps() * g_.outputs_per_group();
    const int64_t work = g_.batch * macs / (4 * cut_.chunks);
    parallel_units(slices * cut_.chunks, work, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) run_unit(unit % slices, unit / slices);
    });
  }

  void run_unit(int64_t slice, int64_t chunk) const {
    BackwardTask<T> mine = task_;
    mine.first_image = g_.batch * chunk / cut_.chunks;
    mine.images = g_.batch * (chunk + 1) / cut_.chunks - mine.first_image;
    if (samples_) mine.grad_samples = samples_->get() + blocks_.start[size_t(slice)];
    if (weight_sums_) mine.grad_weight = weight_sums_->get() + chunk * chunk_size();
    const Slice& channels = cut_.slices[size_t(slice)];
    const Buffer<T> scratch(kernel_.backward_scratch(mine, channels));
    kernel_.backward_slice(mine, channels, scratch.get());
  }

  void sum_samples() {
    const int64_t channels = g_.offset_groups * g_.taps(), p = g_.out_height, q = g_.out_width;
    if (need_.offset) grad_offset = empty({g_.batch, 2 * channels, p, q});
    if (need_.mask) grad_mask = empty({g_.batch, channels, p, q});
    reduce_samples(g_, blocks_, samples_->get(), need_.offset ? data<T>(grad_offset) : nullptr,
                   need_.mask ? data<T>(grad_mask) : nullptr);
  }

  const Kernels<T>& kernel_ = kernels<T>();
  const Geometry g_;
  const Tensor grad_;
  const Needs need_;
  const ScalarType type_;
  const Cut cut_;
  const SampleBlocks blocks_;
  BackwardTask<T> task_{};
  std::optional<Buffer<T>> weight_, packed_grad_;
  std::unique_ptr<Buffer<T>> samples_, weight_sums_;
};

// The gradient of the bias [O], of that of the output, channels-last.
template <typename T>
Tensor sum_of_outputs(const Geometry& g, const Tensor& grad) {
  const int64_t sizes[1] = {g.out_channels};
  Tensor sums = torch::stable::new_empty(grad, IntHeaderOnlyArrayRef(sizes, 1));
  sum_grad(g, data<const T>(grad), data<T>(sums));
  return sums;
}

template <typename T>
Gradients backward(const Geometry& g, const Tensor& grad, const Tensor& input, const Tensor& offset,
                   const Tensor& weight, const std::optional<Tensor>& mask, const Needs& need,
                   ScalarType type) {
  const Tensor flat_grad = channels_last(grad, type);
  const ScalarType weights = weight.scalar_type();
  const Tensor grad_bias =
      need.bias ? torch::stable::to(sum_of_outputs<T>(g, flat_grad), weights) : nothing(weight);
  if (!need.columns())
    return {nothing(input), nothing(offset), nothing(weight), grad_bias, nothing(offset)};
  const Operands<T> operands(g, input, offset, weight, mask, type);
  Backward<T> call(g, flat_grad, operands, need, type);
  call.run();
  return {need.input ? finished(call.grad_input, input.scalar_type(), prefers_channels_last(input))
                     : nothing(input),
          need.offset ? finished(call.grad_offset, offset.scalar_type(), false) : nothing(offset),
          need.weight ? finished(call.grad_weight, weights, false) : nothing(weight), grad_bias,
          need.mask ? finished(call.grad_mask, mask->scalar_type(), false) : nothing(offset)};
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
  if (input.scalar_type() == ScalarType::Double)
    return backward<double>(g, grad, input, offset, weight, mask, need, ScalarType::Double);
  return backward<float>(g, grad, input, offset, weight, mask, need, ScalarType::Float);
}

}  // namespace
}  // namespace segdeform::cpu

STABLE_TORCH_LIBRARY_IMPL(segdeform, CPU, library) {
  library.impl("deform_conv2d_backward", TORCH_BOX(&segdeform::cpu::deform_conv2d_backward));
}
