// The forward kernels: one tile of output pixels at a time. Part of kernels.inl.
namespace segdeform::cpu::SEGDEFORM_ISA {
namespace {

// The size of parts, none above `limit`, that `total` falls into evenly.
SEGDEFORM_INLINE int64_t even_part(int64_t total, int64_t limit) {
  const int64_t parts = (total + limit - 1) / limit;
  return (total + parts - 1) / parts;
}

constexpr int64_t kTapsLocated = 9;          // taps whose samples are located at a time
constexpr int64_t kDepthwiseChannels = 192;  // of a depthwise convolution worked on at a time

// Row length of the columns that a forward tile holds at a time.
template <typename T>
int64_t column_stride(const Geometry& g) {
  return least(g.channels * g.taps(), kColumnElements) + kRowPadding;
}

template <typename T>
int64_t forward_scratch(const ForwardTask<T>& task) {
  const Geometry& g = task.g;
  using S = Scratch<T>;
  const int64_t tile = S::template structs_size<Tile<T>>(1);
  if (g.depthwise())
    return tile + S::template structs_size<SamplePoints<T>>(g.taps()) +
           S::template structs_size<CornerRows<T>>(g.taps());
  return tile + S::template structs_size<SamplePoints<T>>(least(g.taps(), kTapsLocated)) +
         S::rounded(g.groups * panel_layout<T>().size(task.tile_pixels, g.outputs_per_group())) +
         S::rounded(task.tile_pixels * column_stride<T>(g));
}

// Fills columns[m, (tap - first_tap) * channels + c] for a run of taps and channels. Pixel by
// pixel: the taps of a pixel sample near each other and its neighbours, so most of the image they
// need is in the first cache already.
template <typename T>
void gather_columns(const ForwardTask<T>& task, const Tile<T>& tile, SamplePoints<T>* points,
                    int64_t first_tap, int64_t taps, int64_t first_channel, int64_t channels,
                    T* columns, int64_t stride) {
  const Geometry& g = task.g;
  for_offset_groups(g, first_channel, channels, [&](int64_t group, int64_t c, int64_t run) {
    for (int64_t t0 = 0; t0 < taps; t0 += kTapsLocated) {
      const int64_t located = least(kTapsLocated, taps - t0);
      for (int64_t t = 0; t < located; ++t)
        locate_samples<true>(g, task.sampling, tile, first_tap + t0 + t, group, points[t]);
      T* out = columns + t0 * channels + (c - first_channel);
      for (int64_t m = 0; m < tile.pixels; ++m, out += stride)
        for (int64_t t = 0; t < located; ++t)
          interpolate(corner_rows<true>(g, task.sampling, tile, points[t], m, c), run,
                      out + t * channels);
    }
  });
}

// Calls f(first output, outputs used, its panel of sums, width) for the panels of a tile.
template <typename T, typename F>
SEGDEFORM_INLINE void for_panels(const ForwardTask<T>& task, T* sums, F f) {
  const PanelLayout layout = panel_layout<T>();
  const int64_t outputs = task.g.outputs_per_group();
  for (int64_t group = 0; group < task.g.groups; ++group)
    for (int64_t o = 0; o < outputs; o += layout.panel) {
      const int64_t width = layout.width(outputs, o);
      f(group * outputs + o, least(width, outputs - o),
        sums + group * layout.size(task.tile_pixels, outputs) + o * task.tile_pixels, width);
    }
}

template <typename T>
void start_sums(const ForwardTask<T>& task, int64_t pixels, T* sums) {
  for_panels(task, sums, [&](int64_t first, int64_t used, T* panel, int64_t width) {
    for (int64_t m = 0; m < pixels; ++m, panel += width) {
      __builtin_memset(panel, 0, width * sizeof(T));
      if (task.bias) __builtin_memcpy(panel, task.bias + first, used * sizeof(T));
    }
  });
}

template <typename T>
void store_sums(const ForwardTask<T>& task, int64_t first_pixel, int64_t pixels, T* sums) {
  const int64_t stride = task.g.out_channels;
  for_panels(task, sums, [&](int64_t first, int64_t used, const T* panel, int64_t width) {
    T* out = task.output + first_pixel * stride + first;
    for (int64_t m = 0; m < pixels; ++m, out += stride, panel += width) copy_row(panel, used, out);
  });
}

// The product of one tile with every group that has channels in [c0, c0 + channels).
template <typename T>
void multiply_columns(const ForwardTask<T>& task, int64_t pixels, int64_t first_tap, int64_t taps,
                      int64_t c0, int64_t channels, const T* columns, int64_t stride, T* sums) {
  const Geometry& g = task.g;
  const PanelLayout layout = panel_layout<T>();
  const int64_t inputs = g.channels_per_group(), outputs = g.outputs_per_group();
  const int64_t depth = g.taps() * inputs;
  for (int64_t c = c0; c < c0 + channels;) {
    const int64_t group = c / inputs, inside = c % inputs;
    const int64_t run = least(inputs - inside, c0 + channels - c);
    const T* weight = task.weight + group * layout.size(depth, outputs);
    T* out = sums + group * layout.size(task.tile_pixels, outputs);
    // Taps follow each other in the columns and in the weight only where a run is all of both.
    const bool together = run == channels && run == inputs;
    for (int64_t t = 0; t < (together ? 1 : taps); ++t)
      for (int64_t o = 0; o < outputs; o += layout.panel) {
        const int64_t width = layout.width(outputs, o);
        const T* b = weight + o * depth + ((first_tap + t) * inputs + inside) * width;
        panel_product<T, false>(width, pixels, columns + t * channels + (c - c0), stride, b, width,
                                together ? taps * run : run, out + o * task.tile_pixels, width);
      }
    c += run;
  }
}

template <typename T>
void forward_dense(const ForwardTask<T>& task, int64_t first, int64_t pixels, T* memory) {
  const Geometry& g = task.g;
  const PanelLayout layout = panel_layout<T>();
  Scratch<T> scratch{memory};
  Tile<T>& tile = *scratch.template take_structs<Tile<T>>(1);
  SamplePoints<T>* points =
      scratch.template take_structs<SamplePoints<T>>(least(g.taps(), kTapsLocated));
  const int64_t sums_size = g.groups * layout.size(task.tile_pixels, g.outputs_per_group());
  T* sums = scratch.take(sums_size);
  T* columns = scratch.take(task.tile_pixels * column_stride<T>(g));
  const int64_t stride = column_stride<T>(g);
  locate_tile(g, task.sampling, first, pixels, tile);
  start_sums(task, pixels, sums);

  // A block holds whole groups, or a part of one group that is too large.
  const int64_t inputs = g.channels_per_group();
  const int64_t block = inputs > kColumnElements ? even_part(inputs, kColumnElements)
                                                 : kColumnElements / inputs * inputs;
  for (int64_t c = 0; c < g.channels;) {
    const int64_t group_end = inputs > kColumnElements ? (c / inputs + 1) * inputs : g.channels;
    const int64_t channels = least(block, group_end - c);
    const int64_t taps_at_once = even_part(g.taps(), most(1, kColumnElements / channels));
    for (int64_t t = 0; t < g.taps(); t += taps_at_once) {
      const int64_t taps = least(taps_at_once, g.taps() - t);
      gather_columns(task, tile, points, t, taps, c, channels, columns, stride);
      multiply_columns(task, pixels, t, taps, c, channels, columns, stride, sums);
    }
    c += channels;
  }
  store_sums(task, first, pixels, sums);
}

// groups == C == O: one multiplication per sample, so gather and accumulate without a product.
// `rows` holds one entry a tap; everything points at the first of `run` channels.
template <typename T, int Vectors>
SEGDEFORM_INLINE void depthwise_block(const CornerRows<T>* rows, int64_t taps, const T* weight,
                                      int64_t weight_stride, int64_t c, T* out) {
  Vec<T> sums[Vectors];
  for (int j = 0; j < Vectors; ++j) sums[j] = load(out + c + j * kLanes<T>);
  for (int64_t t = 0; t < taps; ++t) {
    const CornerRows<T>& r = rows[t];
    for (int j = 0; j < Vectors; ++j) {
      const int64_t at = c + j * kLanes<T>;
      sums[j] += load(weight + t * weight_stride + at) *
                 (load(r.row[0] + at) * r.weight[0] + load(r.row[1] + at) * r.weight[1] +
                  load(r.row[2] + at) * r.weight[2] + load(r.row[3] + at) * r.weight[3]);
    }
  }
  for (int j = 0; j < Vectors; ++j) store(out + c + j * kLanes<T>, sums[j]);
}

template <typename T>
void depthwise_pixel(const CornerRows<T>* rows, int64_t taps, const T* weight,
                     int64_t weight_stride, int64_t run, T* out) {
  int64_t c = 0;
  for (; c + 4 * kLanes<T> <= run; c += 4 * kLanes<T>)
    depthwise_block<T, 4>(rows, taps, weight, weight_stride, c, out);
  for (; c + kLanes<T> <= run; c += kLanes<T>)
    depthwise_block<T, 1>(rows, taps, weight, weight_stride, c, out);
  for (; c < run; ++c)
    for (int64_t t = 0; t < taps; ++t) {
      const CornerRows<T>& r = rows[t];
      out[c] +=
          weight[t * weight_stride + c] * (r.row[0][c] * r.weight[0] + r.row[1][c] * r.weight[1] +
                                           r.row[2][c] * r.weight[2] + r.row[3][c] * r.weight[3]);
    }
}

template <typename T>
void forward_depthwise(const ForwardTask<T>& task, int64_t first, int64_t pixels, T* memory) {
  const Geometry& g = task.g;
  const int64_t taps = g.taps();
  Scratch<T> scratch{memory};
  Tile<T>& tile = *scratch.template take_structs<Tile<T>>(1);
  SamplePoints<T>* points = scratch.template take_structs<SamplePoints<T>>(taps);
  CornerRows<T>* rows = scratch.template take_structs<CornerRows<T>>(taps);
  locate_tile(g, task.sampling, first, pixels, tile);
  for_offset_groups(g, 0, g.channels, [&](int64_t group, int64_t c, int64_t run) {
    for (int64_t t = 0; t < taps; ++t)
      locate_samples<true>(g, task.sampling, tile, t, group, points[t]);
    // A pixel's taps read four rows each: of so many channels these stay in the first cache.
    const int64_t block = Scratch<T>::rounded(even_part(run, kDepthwiseChannels));
    for (int64_t b = c; b < c + run; b += block) {
      const int64_t width = least(block, c + run - b);
      for (int64_t m = 0; m < pixels; ++m) {
        T* out = task.output + (first + m) * g.channels + b;
        for (int64_t i = 0; i < width; ++i) out[i] = task.bias ? task.bias[b + i] : T(0);
        for (int64_t t = 0; t < taps; ++t)
          rows[t] = corner_rows<true>(g, task.sampling, tile, points[t], m, b);
        depthwise_pixel(rows, taps, task.weight + b, g.channels, width, out);
      }
    }
  });
}

template <typename T>
void forward_tile(const ForwardTask<T>& task, int64_t index, T* scratch) {
  const int64_t first = index * task.tile_pixels;
  const int64_t pixels = least(task.tile_pixels, task.g.batch * task.g.out_pixels() - first);
  if (task.g.depthwise())
    forward_depthwise(task, first, pixels, scratch);
  else
    forward_dense(task, first, pixels, scratch);
}

}  // namespace
}  // namespace segdeform::cpu::SEGDEFORM_ISA
