// The backward kernels: one slice of channels at a time. Part of kernels.inl.
namespace segdeform::cpu::SEGDEFORM_ISA {
namespace {

// Rows of the input gradient that a sample adds to; a skipped corner adds to `spare`.
template <typename T>
SEGDEFORM_INLINE void gradient_rows(const BackwardTask<T>& task, const Tile<T>& tile,
                                    const SamplePoints<T>& points, int64_t m, int64_t channel,
                                    T* spare, T* rows[4]) {
  const Geometry& g = task.g;
  T* image = task.grad_input + tile.image[m] * g.in_pixels() * g.channels + channel;
  for (int i = 0; i < 4; ++i) {
    const int64_t index = points.index[i][m];
    rows[i] = index < 0 || points.value_is_zero[m] ? spare : image + index * g.channels;
  }
}

// The modulated sample where it is 0 by rule: no value of the image reaches it, but a mask that is
// no number does.
template <typename T>
SEGDEFORM_INLINE T zero_by_rule(const CornerRows<T>& r) {
  return (r.weight[0] + r.weight[1] + r.weight[2] + r.weight[3]) * T(0);
}

template <typename T>
SEGDEFORM_INLINE void fill(T* row, int64_t elements, T value) {
  for (int64_t i = 0; i < elements; ++i) row[i] = value;
}

// The inner products <gradient of the column, corner i>, from which all sample gradients follow.
template <typename T>
struct CornerProducts {
  T s[4];
};

// On entry column[] is the gradient of the column; on return it is the column itself.
template <typename T, bool NeedInput, bool NeedSamples>
SEGDEFORM_INLINE CornerProducts<T> backpropagate(const CornerRows<T>& r, T* const grad_rows[4],
                                                 int64_t channels, T* column) {
  Vec<T> sums[4] = {};
  int64_t c = 0;
  for (; c + kLanes<T> <= channels; c += kLanes<T>) {
    const Vec<T> grad = load(column + c);
    Vec<T> v[4];
    for (int i = 0; i < 4; ++i) v[i] = load(r.row[i] + c);
    store(column + c,
          v[0] * r.weight[0] + v[1] * r.weight[1] + v[2] * r.weight[2] + v[3] * r.weight[3]);
    for (int i = 0; i < 4; ++i) {
      if (NeedSamples) sums[i] += grad * v[i];
      if (NeedInput) store(grad_rows[i] + c, load(grad_rows[i] + c) + grad * r.weight[i]);
    }
  }
  CornerProducts<T> products = {};
  if (NeedSamples) sums_of_lanes<T>(sums, products.s);
  for (; c < channels; ++c) {
    const T grad = column[c];
    column[c] = r.row[0][c] * r.weight[0] + r.row[1][c] * r.weight[1] + r.row[2][c] * r.weight[2] +
                r.row[3][c] * r.weight[3];
    for (int i = 0; i < 4; ++i) {
      if (NeedSamples) products.s[i] += grad * r.row[i][c];
      if (NeedInput) grad_rows[i][c] += grad * r.weight[i];
    }
  }
  return products;
}

// Adds d/dy, d/dx and d/dmask of one sample; `out` is this tap's [3, P*Q] at the pixel.
template <typename T>
SEGDEFORM_INLINE void add_sample_gradients(const SamplePoints<T>& points, int64_t m,
                                           const CornerProducts<T>& p, int64_t pixels, T* out) {
  const T* s = p.s;
  out[0] += points.mask[m] * derivative_y(points.fraction_x[m], s[0], s[1], s[2], s[3]);
  out[pixels] += points.mask[m] * derivative_x(points.fraction_y[m], s[0], s[1], s[2], s[3]);
  out[2 * pixels] += points.weight[0][m] * s[0] + points.weight[1][m] * s[1] +
                     points.weight[2][m] * s[2] + points.weight[3][m] * s[3];
}

// One (tap, offset group) of one tile: turns gradients of columns into columns, and on the way
// adds to the gradients of input, offset and mask.
template <typename T, bool NeedInput, bool NeedSamples>
void backpropagate_samples(const BackwardTask<T>& task, const Tile<T>& tile,
                           const SamplePoints<T>& points, int64_t channel, int64_t run, T* columns,
                           int64_t stride, T* spare, T* samples) {
  const int64_t pixels = task.g.out_pixels();
  for (int64_t m = 0; m < tile.pixels; ++m) {
    T* column = columns + m * stride;
    T* grad_rows[4];
    if (NeedInput) gradient_rows(task, tile, points, m, channel, spare, grad_rows);
    const CornerRows<T> rows = corner_rows<false>(task.g, task.sampling, tile, points, m, channel);
    const CornerProducts<T> products =
        backpropagate<T, NeedInput, NeedSamples>(rows, grad_rows, run, column);
    if (points.value_is_zero[m]) fill(column, run, zero_by_rule(rows));
    if (NeedSamples) add_sample_gradients(points, m, products, pixels, samples + m);
  }
}

template <typename T>
void backpropagate_tile(const BackwardTask<T>& task, const Tile<T>& tile, SamplePoints<T>& points,
                        const Slice& slice, int64_t first_channel, int64_t channels,
                        int64_t first_pixel, T* columns, int64_t stride, T* spare) {
  const Geometry& g = task.g;
  const int64_t first_group = slice.first_channel / g.channels_per_offset_group();
  const int64_t last_group =
      (slice.first_channel + slice.channels - 1) / g.channels_per_offset_group();
  for (int64_t t = 0; t < g.taps(); ++t)
    for_offset_groups(g, first_channel, channels, [&](int64_t group, int64_t c, int64_t run) {
      locate_samples<false>(g, task.sampling, tile, t, group, points);
      const int64_t row = tile.image[0] * (last_group - first_group + 1) + (group - first_group);
      T* samples = task.grad_samples
                       ? task.grad_samples + (row * g.taps() + t) * 3 * g.out_pixels() + first_pixel
                       : nullptr;
      T* out = columns + t * channels + (c - first_channel);
      if (task.grad_input && samples)
        backpropagate_samples<T, true, true>(task, tile, points, c, run, out, stride, spare,
                                             samples);
      else if (task.grad_input)
        backpropagate_samples<T, true, false>(task, tile, points, c, run, out, stride, spare,
                                              samples);
      else if (samples)
        backpropagate_samples<T, false, true>(task, tile, points, c, run, out, stride, spare,
                                              samples);
      else
        backpropagate_samples<T, false, false>(task, tile, points, c, run, out, stride, spare,
                                               samples);
    });
}

template <typename T>
int64_t backward_column_stride(const Geometry& g, int64_t channels) {
  return panel_layout<T>().padded(g.taps() * channels) + kRowPadding;
}

template <typename T>
int64_t backward_scratch(const BackwardTask<T>& task, const Slice& slice) {
  using S = Scratch<T>;
  const int64_t channels = least(slice.channels, task.slice_channels);
  const int64_t fixed = S::template structs_size<Tile<T>>(1) + S::rounded(channels);
  if (task.g.depthwise())
    return fixed + S::template structs_size<SamplePoints<T>>(least(task.g.taps(), kTapsLocated));
  return fixed + S::template structs_size<SamplePoints<T>>(1) +
         S::rounded(task.tile_pixels * backward_column_stride<T>(task.g, channels));
}

// One unit (channels of one group) of one tile of the dense backward.
template <typename T>
void backward_unit(const BackwardTask<T>& task, const Tile<T>& tile, SamplePoints<T>& points,
                   const Slice& slice, const WeightUnit& unit, int64_t first_pixel, const T* grad,
                   int64_t grad_stride, T* columns, T* spare) {
  const Geometry& g = task.g;
  const PanelLayout layout = panel_layout<T>();
  const int64_t outputs = g.outputs_per_group(), width = g.taps() * unit.channels;
  const int64_t stride = backward_column_stride<T>(g, unit.channels);
  if (task.weight) {
    const T* weight = task.weight + unit.weight_at;
    for (int64_t m = 0; m < tile.pixels; ++m)
      __builtin_memset(columns + m * stride, 0, layout.padded(width) * sizeof(T));
    for (int64_t n = 0; n < width; n += layout.panel) {
      const int64_t panel = layout.width(width, n);
      panel_product<T, false>(panel, tile.pixels, grad, grad_stride, weight + n * outputs, panel,
                              outputs, columns + n, stride);
    }
  }
  backpropagate_tile(task, tile, points, slice, unit.first_channel, unit.channels, first_pixel,
                     columns, stride, spare);
  if (task.grad_weight) {
    T* grad_weight = task.grad_weight + unit.grad_at;
    for (int64_t o = 0; o < outputs; o += layout.panel) {
      const int64_t panel = layout.width(outputs, o);
      panel_product<T, true>(panel, width, columns, stride, grad + o, grad_stride, tile.pixels,
                             grad_weight + o * width, panel);
    }
  }
}

template <typename T>
void backward_dense(const BackwardTask<T>& task, const Slice& slice, T* memory) {
  const Geometry& g = task.g;
  const int64_t largest = least(slice.channels, task.slice_channels);
  Scratch<T> scratch{memory};
  Tile<T>& tile = *scratch.template take_structs<Tile<T>>(1);
  SamplePoints<T>& points = *scratch.template take_structs<SamplePoints<T>>(1);
  T* spare = scratch.take(largest);
  T* columns = scratch.take(task.tile_pixels * backward_column_stride<T>(g, largest));
  const GradLayout grads(g, panel_layout<T>(), task.tile_pixels);
  for (int64_t n = task.first_image; n < task.first_image + task.images; ++n)
    for (int64_t i = 0; i < grads.tiles; ++i) {
      const int64_t first = i * task.tile_pixels;
      const int64_t pixels = least(task.tile_pixels, g.out_pixels() - first);
      locate_tile(g, task.sampling, n * g.out_pixels() + first, pixels, tile);
      for (int64_t u = 0; u < slice.unit_count; ++u) {
        const WeightUnit& unit = slice.units[u];
        backward_unit(task, tile, points, slice, unit, first,
                      task.grad + grads.at(n, i, unit.group), grads.stride, columns, spare);
      }
    }
}

// A sample of a depthwise convolution for a run of channels. The gradient of its column is
// grad * weight, so that one pass does all: it adds to the gradients of the input and of the
// weight, and returns the products from which those of the sample follow.
template <typename T, bool NeedInput, bool NeedSamples, bool NeedWeight>
SEGDEFORM_INLINE CornerProducts<T> depthwise_sample(const CornerRows<T>& r, T* const grad_rows[4],
                                                    const T* grad, const T* weight,
                                                    int64_t channels, T* grad_weight) {
  Vec<T> sums[4] = {};
  int64_t c = 0;
  for (; c + kLanes<T> <= channels; c += kLanes<T>) {
    const Vec<T> grad_out = load(grad + c), column = grad_out * load(weight + c);
    Vec<T> v[4];
    for (int i = 0; i < 4; ++i) v[i] = load(r.row[i] + c);
    if (NeedWeight) {
      const Vec<T> value =
          v[0] * r.weight[0] + v[1] * r.weight[1] + v[2] * r.weight[2] + v[3] * r.weight[3];
      store(grad_weight + c, load(grad_weight + c) + grad_out * value);
    }
    for (int i = 0; i < 4; ++i) {
      if (NeedSamples) sums[i] += column * v[i];
      if (NeedInput) store(grad_rows[i] + c, load(grad_rows[i] + c) + column * r.weight[i]);
    }
  }
  CornerProducts<T> products = {};
  if (NeedSamples) sums_of_lanes<T>(sums, products.s);
  for (; c < channels; ++c) {
    const T column = grad[c] * weight[c];
    if (NeedWeight)
      grad_weight[c] += grad[c] * (r.row[0][c] * r.weight[0] + r.row[1][c] * r.weight[1] +
                                   r.row[2][c] * r.weight[2] + r.row[3][c] * r.weight[3]);
    for (int i = 0; i < 4; ++i) {
      if (NeedSamples) products.s[i] += column * r.row[i][c];
      if (NeedInput) grad_rows[i][c] += column * r.weight[i];
    }
  }
  return products;
}

// What the samples of one (offset group, run of channels) of a tile read and write; every pointer
// is at the run's first channel, at the tile's first pixel, and at the first of the taps.
template <typename T>
struct DepthwiseRun {
  int64_t channel, channels, taps;
  const T* grad;
  const T* weight;
  T* spare;
  T* samples = nullptr;  // [taps, 3, P*Q]
  T* grad_weight = nullptr;
};

// Pixel by pixel, since the taps of a pixel sample near each other: the rows that they read and add
// to are in the first cache.
template <typename T, bool NeedInput, bool NeedSamples, bool NeedWeight>
void depthwise_samples(const BackwardTask<T>& task, const Tile<T>& tile,
                       const SamplePoints<T>* points, const DepthwiseRun<T>& run) {
  const Geometry& g = task.g;
  const int64_t pixels = g.out_pixels();
  for (int64_t m = 0; m < tile.pixels; ++m) {
    const T* grad = run.grad + m * g.channels;
    for (int64_t t = 0; t < run.taps; ++t) {
      const T* weight = run.weight + t * g.channels;
      T* grad_weight = NeedWeight ? run.grad_weight + t * g.channels : nullptr;
      T* grad_rows[4];
      if (NeedInput) gradient_rows(task, tile, points[t], m, run.channel, run.spare, grad_rows);
      const CornerRows<T> rows =
          corner_rows<false>(g, task.sampling, tile, points[t], m, run.channel);
      CornerProducts<T> products;
      if (!points[t].value_is_zero[m]) {
        products = depthwise_sample<T, NeedInput, NeedSamples, NeedWeight>(
            rows, grad_rows, grad, weight, run.channels, grad_weight);
      } else {
        products = depthwise_sample<T, NeedInput, NeedSamples, false>(rows, grad_rows, grad, weight,
                                                                      run.channels, grad_weight);
        const T value = zero_by_rule(rows);
        if (NeedWeight)
          for (int64_t c = 0; c < run.channels; ++c) grad_weight[c] += grad[c] * value;
      }
      if (NeedSamples)
        add_sample_gradients(points[t], m, products, pixels, run.samples + 3 * t * pixels + m);
    }
  }
}

template <typename T, bool NeedInput, bool NeedSamples>
void depthwise_run(const BackwardTask<T>& task, const Tile<T>& tile, const SamplePoints<T>* points,
                   const DepthwiseRun<T>& run) {
  if (run.grad_weight)
    depthwise_samples<T, NeedInput, NeedSamples, true>(task, tile, points, run);
  else
    depthwise_samples<T, NeedInput, NeedSamples, false>(task, tile, points, run);
}

template <typename T>
void depthwise_tile(const BackwardTask<T>& task, const Slice& slice, int64_t image, int64_t first,
                    const Tile<T>& tile, SamplePoints<T>* points, T* spare) {
  const Geometry& g = task.g;
  const int64_t size = g.channels_per_offset_group(), first_group = slice.first_channel / size;
  const int64_t groups = (slice.first_channel + slice.channels - 1) / size - first_group + 1;
  for_offset_groups(
      g, slice.first_channel, slice.channels, [&](int64_t group, int64_t c, int64_t channels) {
        for (int64_t t0 = 0; t0 < g.taps(); t0 += kTapsLocated) {
          DepthwiseRun<T> run{c,
                              channels,
                              least(kTapsLocated, g.taps() - t0),
                              task.grad + (image * g.out_pixels() + first) * g.channels + c,
                              task.weight + t0 * g.channels + c,
                              spare};
          for (int64_t t = 0; t < run.taps; ++t)
            locate_samples<false>(g, task.sampling, tile, t0 + t, group, points[t]);
          if (task.grad_samples) {
            const int64_t row = (image * groups + group - first_group) * g.taps() + t0;
            run.samples = task.grad_samples + row * 3 * g.out_pixels() + first;
          }
          if (task.grad_weight) run.grad_weight = task.grad_weight + t0 * g.channels + c;
          if (task.grad_input && run.samples)
            depthwise_run<T, true, true>(task, tile, points, run);
          else if (task.grad_input)
            depthwise_run<T, true, false>(task, tile, points, run);
          else if (run.samples)
            depthwise_run<T, false, true>(task, tile, points, run);
          else
            depthwise_run<T, false, false>(task, tile, points, run);
        }
      });
}

template <typename T>
void backward_depthwise(const BackwardTask<T>& task, const Slice& slice, T* memory) {
  const Geometry& g = task.g;
  Scratch<T> scratch{memory};
  Tile<T>& tile = *scratch.template take_structs<Tile<T>>(1);
  SamplePoints<T>* points =
      scratch.template take_structs<SamplePoints<T>>(least(g.taps(), kTapsLocated));
  T* spare = scratch.take(slice.channels);
  for (int64_t n = task.first_image; n < task.first_image + task.images; ++n)
    for (int64_t first = 0; first < g.out_pixels(); first += task.tile_pixels) {
      const int64_t pixels = least(task.tile_pixels, g.out_pixels() - first);
      locate_tile(g, task.sampling, n * g.out_pixels() + first, pixels, tile);
      depthwise_tile(task, slice, n, first, tile, points, spare);
    }
}

template <typename T>
void backward_slice(const BackwardTask<T>& task, const Slice& slice, T* scratch) {
  if (task.g.depthwise())
    backward_depthwise(task, slice, scratch);
  else
    backward_dense(task, slice, scratch);
}

}  // namespace
}  // namespace segdeform::cpu::SEGDEFORM_ISA
