// The kernels of RoI pooling. Part of kernels.inl.
//
// The mean over a grid of bilinear samples is a weighted sum over the pixels that they touch, and
// the weight of a pixel is the product of one weight for its row and one for its column. So each
// pixel is read once, however many samples share it.
namespace segdeform::cpu::SEGDEFORM_ISA {
namespace {

template <typename T>
struct Tap {
  int64_t pixel;
  T weight;  // in the sum of the samples
  T slope;   // d(weight) / d(shift)
};

template <typename T>
struct Taps {
  Tap<T>* taps;
  int64_t count, samples_inside;
};

// Adds to the tap of a pixel. A line visits pixels in order, so its tap is among the last two.
template <typename T>
SEGDEFORM_INLINE void add_tap(Taps<T>& line, int64_t pixel, T weight, T slope) {
  if (weight == T(0) && slope == T(0)) return;
  for (int64_t i = line.count - 1; i >= most(line.count - 2, 0); --i)
    if (line.taps[i].pixel == pixel) {
      line.taps[i].weight += weight;
      line.taps[i].slope += slope;
      return;
    }
  line.taps[line.count++] = {pixel, weight, slope};
}

// At most `pixels` taps: going up or down the line, no pixel comes a second time.
template <typename T>
void collect_taps(const SampleLine<T>& line, int64_t pixels, bool with_slope, Taps<T>& out) {
  out.count = out.samples_inside = 0;
  for (int32_t i = 0; i < line.samples; ++i) {
    const LineSample<T> s = line_sample(line, i, pixels);
    if (!s.inside) continue;
    ++out.samples_inside;
    const T slope = with_slope ? s.slope : T(0);
    if (line.length < T(0)) add_tap(out, s.high, s.fraction, slope);
    add_tap(out, s.low, T(1) - s.fraction, -slope);
    if (!(line.length < T(0))) add_tap(out, s.high, s.fraction, slope);
  }
}

template <typename T>
struct Bin {
  Taps<T> y, x;
  T samples;  // what the sum is divided by
  bool lost;
};

template <typename T>
int64_t roi_scratch(const RoiGeometry& g) {
  using S = Scratch<T>;
  return S::template structs_size<Tap<T>>(g.height) + S::template structs_size<Tap<T>>(g.width);
}

template <typename T>
Bin<T> bin_in(const RoiGeometry& g, T* memory) {
  Scratch<T> scratch{memory};
  Bin<T> bin{};
  bin.y.taps = scratch.template take_structs<Tap<T>>(g.height);
  bin.x.taps = scratch.template take_structs<Tap<T>>(g.width);
  return bin;
}

template <typename T>
void locate_bin(const RoiTask<T>& task, int64_t index, const Roi<T>& roi, int64_t group, int64_t ph,
                int64_t pw, bool with_slope, Bin<T>& bin) {
  const RoiGeometry& g = task.g;
  const BinLines<T> lines = bin_lines(g, task.shifts, index, roi, group, ph, pw);
  bin.lost = lines.lost;
  if (lines.lost) return;
  collect_taps(lines.y, g.height, with_slope, bin.y);
  collect_taps(lines.x, g.width, with_slope, bin.x);
  const int64_t samples = g.position_sensitive ? bin.y.samples_inside * bin.x.samples_inside
                                               : int64_t(lines.y.samples) * lines.x.samples;
  bin.samples = T(most(samples, 1));
}

// V is a vector or one element of it: this many values.
template <typename V, typename T>
constexpr int64_t kValues = int64_t(sizeof(V) / sizeof(T));
template <typename V, typename T>
SEGDEFORM_INLINE V load_as(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <typename V, typename T>
SEGDEFORM_INLINE void store_as(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// Calls f.template operator()<V, Count>(c) for blocks of Count values of type V that tile the
// channels.
template <typename T, typename F>
SEGDEFORM_INLINE void for_channel_blocks(int64_t channels, F f) {
  int64_t c = 0;
  for (; c + 4 * kLanes<T> <= channels; c += 4 * kLanes<T>) f.template operator()<Vec<T>, 4>(c);
  for (; c + kLanes<T> <= channels; c += kLanes<T>) f.template operator()<Vec<T>, 1>(c);
  for (; c < channels; ++c) f.template operator()<T, 1>(c);
}

template <typename T>
void pool_bin(const RoiGeometry& g, const Bin<T>& bin, const T* image, int64_t channels, T* out) {
  for_channel_blocks<T>(channels,
                        [&]<typename V, int Count>(int64_t c) __attribute__((always_inline)) {
                          V sums[Count] = {};
                          for (int64_t i = 0; i < bin.y.count; ++i) {
                            const T* row = image + bin.y.taps[i].pixel * g.width * g.channels + c;
                            for (int64_t j = 0; j < bin.x.count; ++j) {
                              const T weight = bin.y.taps[i].weight * bin.x.taps[j].weight;
                              const T* pixel = row + bin.x.taps[j].pixel * g.channels;
                              for (int k = 0; k < Count; ++k)
                                sums[k] += load_as<V>(pixel + k * kValues<V, T>) * weight;
                            }
                          }
                          for (int k = 0; k < Count; ++k)
                            store_as(out + c + k * kValues<V, T>, sums[k] / bin.samples);
                        });
}

template <typename T>
void roi_forward(const RoiTask<T>& task, int64_t unit, T* out, T* scratch) {
  const RoiGeometry& g = task.g;
  const int64_t index = unit / (g.pooled_h * g.pooled_w);
  const int64_t ph = unit / g.pooled_w % g.pooled_h, pw = unit % g.pooled_w;
  const Roi<T> roi = roi_at(g, task.rois + index * 5);
  const int64_t channels = g.out_channels / g.classes;
  Bin<T> bin = bin_in(g, scratch);
  for (int64_t group = 0; group < g.classes; ++group) {
    locate_bin(task, index, roi, group, ph, pw, false, bin);
    if (bin.lost) {
      for (int64_t c = 0; c < channels; ++c) out[group * channels + c] = T(__builtin_nanf(""));
      continue;
    }
    const T* image = task.input + roi.image * g.height * g.width * g.channels +
                     first_channel_of_bin(g, ph, pw) + group * channels;
    pool_bin(g, bin, image, channels, out + group * channels);
  }
}

// Adds the derivatives of <grad, pooled bin> by the shifts in pixels: along[0] by x, along[1] by y.
template <typename T>
void add_derivatives(const RoiGeometry& g, const Bin<T>& bin, const T* image, int64_t channels,
                     const T* grad, T along[2]) {
  Vec<T> lanes[4] = {};
  T rest[2] = {};
  for_channel_blocks<T>(channels,
                        [&]<typename V, int Count>(int64_t c) __attribute__((always_inline)) {
                          V by_x[Count] = {}, by_y[Count] = {};
                          for (int64_t i = 0; i < bin.y.count; ++i) {
                            const Tap<T>& y = bin.y.taps[i];
                            const T* row = image + y.pixel * g.width * g.channels + c;
                            for (int64_t j = 0; j < bin.x.count; ++j) {
                              const Tap<T>& x = bin.x.taps[j];
                              const T weight_x = y.weight * x.slope, weight_y = y.slope * x.weight;
                              const T* pixel = row + x.pixel * g.channels;
                              for (int k = 0; k < Count; ++k) {
                                const V value = load_as<V>(pixel + k * kValues<V, T>);
                                by_x[k] += value * weight_x;
                                by_y[k] += value * weight_y;
                              }
                            }
                          }
                          for (int k = 0; k < Count; ++k) {
                            const V factor = load_as<V>(grad + c + k * kValues<V, T>);
                            if constexpr (kValues<V, T> == 1) {
                              rest[0] += by_x[k] * factor;
                              rest[1] += by_y[k] * factor;
                            } else {
                              lanes[0] += by_x[k] * factor;
                              lanes[1] += by_y[k] * factor;
                            }
                          }
                        });
  T sums[4];
  sums_of_lanes<T>(lanes, sums);
  for (int axis = 0; axis < 2; ++axis) along[axis] += (sums[axis] + rest[axis]) / bin.samples;
}

template <typename T>
void roi_backward_shifts(const RoiTask<T>& task, int64_t unit, T* scratch) {
  const RoiGeometry& g = task.g;
  const int64_t parts = g.part_h * g.part_w, index = unit / parts, part = unit % parts;
  const int64_t part_y = part / g.part_w, part_x = part % g.part_w;
  const Roi<T> roi = roi_at(g, task.rois + index * 5);
  const int64_t channels = g.out_channels / g.classes;
  Bin<T> bin = bin_in(g, scratch);
  for (int64_t group = 0; group < g.classes; ++group) {
    T along[2] = {};
    for (int64_t ph = first_bin_of_cell(part_y, g.pooled_h, g.part_h);
         ph < first_bin_of_cell(part_y + 1, g.pooled_h, g.part_h); ++ph)
      for (int64_t pw = first_bin_of_cell(part_x, g.pooled_w, g.part_w);
           pw < first_bin_of_cell(part_x + 1, g.pooled_w, g.part_w); ++pw) {
        locate_bin(task, index, roi, group, ph, pw, true, bin);
        if (bin.lost) {
          along[0] = along[1] = T(__builtin_nanf(""));
          continue;
        }
        const int64_t out = (index * g.pooled_h + ph) * g.pooled_w + pw;
        const T* image = task.input + roi.image * g.height * g.width * g.channels +
                         first_channel_of_bin(g, ph, pw) + group * channels;
        add_derivatives(g, bin, image, channels,
                        task.grad + out * g.out_channels + group * channels, along);
      }
    T* to = task.grad_shifts + ((index * g.classes + group) * 2) * parts + part;
    to[0] = by_shift(g, along[0], roi.x.size);
    to[parts] = by_shift(g, along[1], roi.y.size);
  }
}

// Adds the gradient of one bin to `channels` channels of the image's gradient.
template <typename T>
void scatter_bin(const RoiGeometry& g, const Bin<T>& bin, const T* grad, int64_t channels,
                 T* image) {
  for_channel_blocks<T>(channels,
                        [&]<typename V, int Count>(int64_t c) __attribute__((always_inline)) {
                          V factors[Count];
                          for (int k = 0; k < Count; ++k)
                            factors[k] = load_as<V>(grad + c + k * kValues<V, T>) / bin.samples;
                          for (int64_t i = 0; i < bin.y.count; ++i) {
                            T* row = image + bin.y.taps[i].pixel * g.width * g.channels + c;
                            for (int64_t j = 0; j < bin.x.count; ++j) {
                              const T weight = bin.y.taps[i].weight * bin.x.taps[j].weight;
                              T* pixel = row + bin.x.taps[j].pixel * g.channels;
                              for (int k = 0; k < Count; ++k) {
                                T* at = pixel + k * kValues<V, T>;
                                store_as(at, load_as<V>(at) + factors[k] * weight);
                              }
                            }
                          }
                        });
}

// One slice of channels of one image: all that any RoI adds to it, in the order of the RoIs.
template <typename T>
void roi_backward_input(const RoiTask<T>& task, int64_t unit, T* scratch) {
  const RoiGeometry& g = task.g;
  const int64_t slices = (g.channels + task.slice_channels - 1) / task.slice_channels;
  const int64_t number = unit / slices, first = unit % slices * task.slice_channels;
  const int64_t end = least(first + task.slice_channels, g.channels);
  const int64_t run = g.out_channels / g.classes;
  T* image = task.grad_input + number * g.height * g.width * g.channels;
  Bin<T> bin = bin_in(g, scratch);
  for (int64_t index = 0; index < g.rois; ++index) {
    const Roi<T> roi = roi_at(g, task.rois + index * 5);
    if (roi.image != number) continue;
    for (int64_t b = 0; b < g.pooled_h * g.pooled_w; ++b) {
      const int64_t ph = b / g.pooled_w, pw = b % g.pooled_w;
      const int64_t channel = first_channel_of_bin(g, ph, pw);
      for (int64_t group = 0; group < g.classes; ++group) {
        const int64_t c = most(channel + group * run, first);
        const int64_t channels = least(channel + (group + 1) * run, end) - c;
        if (channels <= 0) continue;
        locate_bin(task, index, roi, group, ph, pw, false, bin);
        if (bin.lost) continue;
        const int64_t out = index * g.pooled_h * g.pooled_w + b;
        scatter_bin(g, bin, task.grad + out * g.out_channels + (c - channel), channels, image + c);
      }
    }
  }
}

template <typename T>
constexpr RoiKernels<T> roi_table() {
  return {roi_scratch<T>, roi_forward<T>, roi_backward_shifts<T>, roi_backward_input<T>};
}

}  // namespace
}  // namespace segdeform::cpu::SEGDEFORM_ISA
