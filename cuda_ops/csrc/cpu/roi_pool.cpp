// deform_roi_pool, ps_deform_roi_pool and their backward on CPU: from tensors to units of work.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <tuple>
#include <vector>

#include "../roi_arguments.h"
#include "../tensors.h"
#include "kernels.h"
#include "transpose.h"
#include "workspace.h"

namespace segdeform::cpu {
namespace {

// [N, O * cells, h, w] -> [N, h * w, cells, O] in the compute type; not copied if it lies so.
template <typename T>
Tensor packed(const Tensor& t, ScalarType type, int64_t cells) {
  const Tensor converted = torch::stable::to(t, type);
  const int64_t n = t.size(0), o = t.size(1) / cells, pixels = t.size(2) * t.size(3);
  if (cells > 1 || !converted.is_contiguous()) {
    const int64_t sizes[4] = {n, o, cells, pixels};
    const Tensor flat = torch::stable::reshape(converted, {sizes, 4});
    return torch::stable::contiguous(torch::stable::transpose(flat, 1, 3));
  }
  // The common case by hand, in less than half the time of torch's copy.
  Tensor result = empty_like_format(t, {n, pixels, 1, o}, type, MemoryFormat::Contiguous);
  constexpr int64_t kStrip = 64;
  const int64_t strips = (pixels + kStrip - 1) / kStrip;
  parallel_units(n * strips, o * kStrip, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit % strips * kStrip, start = unit / strips * o * pixels;
      transpose(o, std::min(kStrip, pixels - first), data<const T>(converted) + start + first,
                pixels, data<T>(result) + start + first * o, o);
    }
  });
  return result;
}

// The way back, into the dtype and memory format of `like`.
Tensor unpacked(const Tensor& t, const Tensor& like) {
  const int64_t sizes[4] = {like.size(0), like.size(1), like.size(2), like.size(3)};
  const bool keep = prefers_channels_last(like);
  Tensor result =
      empty_like_format(like, {sizes[0], sizes[1], sizes[2], sizes[3]}, like.scalar_type(),
                        keep ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  const Tensor channels_first = torch::stable::transpose(t, 1, 3);  // [N, O, cells, h * w]
  torch::stable::copy_(result, torch::stable::reshape(channels_first, {sizes, 4}));
  return result;
}

// The operands in the compute type, alive for as long as the kernels point into them.
template <typename T>
struct Operands {
  Tensor input, rois;
  std::optional<Tensor> shifts;

  Operands(const RoiGeometry& g, const Tensor& input, const Tensor& rois,
           const std::optional<Tensor>& shifts, ScalarType type)
      : input(packed<T>(input, type, g.group * g.group)),
        rois(torch::stable::contiguous(torch::stable::to(rois, type))) {
    if (shifts) this->shifts = torch::stable::contiguous(torch::stable::to(*shifts, type));
  }

  RoiTask<T> task(const RoiGeometry& g) const {
    RoiTask<T> task{};
    task.g = g;
    task.input = data<const T>(input);
    task.rois = data<const T>(rois);
    task.shifts = shifts ? data<const T>(*shifts) : nullptr;
    return task;
  }
};

// Calls f(unit, scratch) for all units; each thread has scratch memory of its own.
template <typename T, typename F>
void run(const RoiGeometry& g, int64_t units, int64_t cost, F f) {
  const int64_t elements = kernels<T>().roi.scratch(g);
  parallel_units(units, cost, [&](int64_t begin, int64_t end) {
    std::vector<T> scratch(static_cast<size_t>(elements));
    for (int64_t unit = begin; unit < end; ++unit) f(unit, scratch.data());
  });
}

constexpr int64_t kTypicalPixels = 16;  // of one bin, to guess at the cost

template <typename T>
Tensor forward(const RoiGeometry& g, const Tensor& input, const Tensor& rois,
               const std::optional<Tensor>& shifts, ScalarType type) {
  const bool keep = prefers_channels_last(input);
  const int64_t bins = g.pooled_h * g.pooled_w, channels = g.out_channels;
  const Tensor output =
      empty_like_format(input, {g.rois, channels, g.pooled_h, g.pooled_w}, type,
                        keep ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  const Operands<T> operands(g, input, rois, shifts, type);
  const RoiTask<T> task = operands.task(g);
  const auto pool_bin = kernels<T>().roi.forward;
  if (keep) {
    run<T>(g, g.rois * bins, kTypicalPixels * channels, [&](int64_t unit, T* scratch) {
      pool_bin(task, unit, data<T>(output) + unit * channels, scratch);
    });
  } else {
    // A RoI is turned round while it is in cache.
    run<T>(g, g.rois, kTypicalPixels * channels * bins, [&](int64_t roi, T* scratch) {
      std::vector<T> tile(static_cast<size_t>(bins * channels));
      for (int64_t bin = 0; bin < bins; ++bin)
        pool_bin(task, roi * bins + bin, tile.data() + bin * channels, scratch);
      transpose(bins, channels, static_cast<const T*>(tile.data()), channels,
                data<T>(output) + roi * bins * channels, bins);
    });
  }
  return torch::stable::to(output, input.scalar_type());
}

// Wide slices locate the bins less often, many slices share among more threads. It depends on the
// shape alone.
int64_t slice_channels(const RoiGeometry& g) {
  const int64_t all = g.batch * g.channels;
  return all >= 16 * 128 ? 128 : all >= 4 * 64 ? 64 : 32;
}

template <typename T>
std::tuple<Tensor, Tensor> backward(const RoiGeometry& g, const Tensor& grad, const Tensor& input,
                                    const Tensor& rois, const std::optional<Tensor>& shifts,
                                    bool need_input, bool need_shifts, ScalarType type) {
  const Operands<T> operands(g, input, rois, shifts, type);
  const RoiKernels<T>& kernel = kernels<T>().roi;
  const Tensor flat_grad = packed<T>(grad, type, 1);
  RoiTask<T> task = operands.task(g);
  task.grad = data<const T>(flat_grad);

  const int64_t none[1] = {0};
  const Tensor nothing = torch::stable::new_empty(shifts ? *shifts : rois, {none, 1});
  Tensor grad_input = torch::stable::new_empty(input, {none, 1}), grad_shifts = nothing;
  if (need_input) {
    Tensor sums = torch::stable::empty_like(operands.input);
    torch::stable::zero_(sums);
    task.grad_input = data<T>(sums);
    task.slice_channels = slice_channels(g);
    const int64_t slices = (g.channels + task.slice_channels - 1) / task.slice_channels;
    const int64_t cost = g.rois * g.pooled_h * g.pooled_w * kTypicalPixels * task.slice_channels /
                         std::max<int64_t>(g.batch, 1);
    run<T>(g, g.batch * slices, cost,
           [&](int64_t unit, T* scratch) { kernel.backward_input(task, unit, scratch); });
    grad_input = unpacked(sums, input);
  }
  if (need_shifts) {
    grad_shifts = torch::stable::empty_like(*operands.shifts);
    task.grad_shifts = data<T>(grad_shifts);
    const int64_t parts = g.part_h * g.part_w;
    const int64_t cost = g.pooled_h * g.pooled_w * kTypicalPixels * g.out_channels / parts;
    run<T>(g, g.rois * parts, cost,
           [&](int64_t unit, T* scratch) { kernel.backward_shifts(task, unit, scratch); });
    grad_shifts = torch::stable::to(grad_shifts, shifts->scalar_type());
  }
  return {grad_input, grad_shifts};
}

Tensor pool(const RoiGeometry& g, const Tensor& input, const Tensor& rois,
            const std::optional<Tensor>& shifts) {
  if (input.scalar_type() == ScalarType::Double)
    return forward<double>(g, input, rois, shifts, ScalarType::Double);
  return forward<float>(g, input, rois, shifts, ScalarType::Float);
}

std::tuple<Tensor, Tensor> pool_backward(const RoiGeometry& g, const Tensor& grad,
                                         const Tensor& input, const Tensor& rois,
                                         const std::optional<Tensor>& shifts, bool need_input,
                                         bool need_shifts) {
  check_gradient(g, grad, shifts, need_shifts);
  if (input.scalar_type() == ScalarType::Double)
    return backward<double>(g, grad, input, rois, shifts, need_input, need_shifts,
                            ScalarType::Double);
  return backward<float>(g, grad, input, rois, shifts, need_input, need_shifts, ScalarType::Float);
}

// ---- what the dispatcher calls ----

Tensor deform_roi_pool(const Tensor& input, const Tensor& rois, const std::optional<Tensor>& offset,
                       const std::vector<int64_t>& output_size, double spatial_scale,
                       int64_t sampling_ratio, double gamma) {
  return pool(aligned(input, rois, offset, output_size, spatial_scale, sampling_ratio, gamma),
              input, rois, offset);
}

std::tuple<Tensor, Tensor> deform_roi_pool_backward(
    const Tensor& grad, const Tensor& input, const Tensor& rois,
    const std::optional<Tensor>& offset, const std::vector<int64_t>& output_size,
    double spatial_scale, int64_t sampling_ratio, double gamma, bool need_input, bool need_offset) {
  return pool_backward(
      aligned(input, rois, offset, output_size, spatial_scale, sampling_ratio, gamma), grad, input,
      rois, offset, need_input, need_offset);
}

Tensor ps_deform_roi_pool(const Tensor& input, const Tensor& rois,
                          const std::optional<Tensor>& trans, double spatial_scale,
                          int64_t output_channels, int64_t group_size, int64_t pooled_size,
                          int64_t part_size, int64_t sample_per_part, double trans_std) {
  return pool(position_sensitive(input, rois, trans, spatial_scale, output_channels, group_size,
                                 pooled_size, part_size, sample_per_part, trans_std),
              input, rois, trans);
}

std::tuple<Tensor, Tensor> ps_deform_roi_pool_backward(
    const Tensor& grad, const Tensor& input, const Tensor& rois, const std::optional<Tensor>& trans,
    double spatial_scale, int64_t output_channels, int64_t group_size, int64_t pooled_size,
    int64_t part_size, int64_t sample_per_part, double trans_std, bool need_input,
    bool need_trans) {
  return pool_backward(
      position_sensitive(input, rois, trans, spatial_scale, output_channels, group_size,
                         pooled_size, part_size, sample_per_part, trans_std),
      grad, input, rois, trans, need_input, need_trans);
}

}  // namespace
}  // namespace segdeform::cpu

STABLE_TORCH_LIBRARY_IMPL(segdeform, CPU, library) {
  library.impl("deform_roi_pool", TORCH_BOX(&segdeform::cpu::deform_roi_pool));
  library.impl("deform_roi_pool_backward", TORCH_BOX(&segdeform::cpu::deform_roi_pool_backward));
  library.impl("ps_deform_roi_pool", TORCH_BOX(&segdeform::cpu::ps_deform_roi_pool));
  library.impl("ps_deform_roi_pool_backward",
               TORCH_BOX(&segdeform::cpu::ps_deform_roi_pool_backward));
}
