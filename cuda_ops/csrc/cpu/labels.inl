// The kernel of enlarged_labels. Part of kernels.inl.
//
// Enlarging by a whole number repeats the same weights for every value of a row. So the pixels of
// an output row are worked on by phase, those first that are the first of their value, and every
// loop runs over neighbours in memory. Of the scores, one row of one class is held at a time.
namespace segdeform::cpu::SEGDEFORM_ISA {
namespace {

template <typename T>
struct LabelScratch {
  int64_t columns;  // of a row, rounded up to whole vectors
  T* row;           // [1 + columns + kLanes] scores of one class, what lies left of them first
  T* best;          // [phases, columns]
  T* label;         // [phases, columns] as numbers of T, exact for 2^24 classes

  LabelScratch(const LabelTask<T>& t, T* memory)
      : columns((t.columns + kLanes<T> - 1) / kLanes<T> * kLanes<T>),
        row(memory),
        best(row + columns + 2 * kLanes<T>),
        label(best + t.phases() * columns) {}
};

template <typename T>
int64_t label_scratch(const LabelTask<T>& t) {
  const LabelScratch<T> s(t, nullptr);
  return s.columns + 2 * kLanes<T> + 2 * t.phases() * s.columns;
}

// Where pixel `phase` of a value lies between values: weight of the later one, and whether the
// earlier one is the value before. Half a pixel off, as in align_corners=False.
template <typename T>
struct Between {
  T later;
  int64_t back;
};
template <typename T>
SEGDEFORM_INLINE Between<T> between(int64_t phase, int64_t stride) {
  const T at = (T(phase) + T(0.5)) / T(stride) - T(0.5);
  return at < T(0) ? Between<T>{at + T(1), 1} : Between<T>{at, 0};
}

// Blends two rows of the map into s.row, whose ends are repeated on either side.
template <typename T>
SEGDEFORM_INLINE void blend_rows(const LabelTask<T>& t, const T* upper, const T* lower, T later,
                                 const LabelScratch<T>& s) {
  T* row = s.row + 1;
  int64_t i = 0;
  for (; i + kLanes<T> <= t.columns; i += kLanes<T>) {
    const Vec<T> a = load(upper + i);
    store(row + i, a + (load(lower + i) - a) * later);
  }
  for (; i < t.columns; ++i) row[i] = upper[i] + (lower[i] - upper[i]) * later;
  s.row[0] = row[0];
  for (; i < s.columns + 1; ++i) row[i] = row[t.columns - 1];
}

// Lets class k compete for the pixels of one output row.
template <typename T>
SEGDEFORM_INLINE void compete(const LabelTask<T>& t, int64_t k, const LabelScratch<T>& s) {
  const Vec<T> name = Vec<T>{} + T(k);
  for (int64_t phase = 0; phase < t.phases(); ++phase) {
    const Between<T> place = between<T>(phase, t.stride);
    const T* left = s.row + 1 - place.back;
    T *best = s.best + phase * s.columns, *label = s.label + phase * s.columns;
    for (int64_t i = 0; i < s.columns; i += kLanes<T>) {
      const Vec<T> a = load(left + i);
      const Vec<T> score = a + (load(left + i + 1) - a) * place.later;
      if (k == 0) {
        store(best + i, score);
        store(label + i, name);
        continue;
      }
      const Vec<T> leader = load(best + i);
      store(best + i, score > leader ? score : leader);
      store(label + i, score > leader ? name : load(label + i));
    }
  }
}

// Brings the labels of an output row, held by phase, into the order of its pixels.
template <typename T, typename Label>
SEGDEFORM_INLINE void write_row(const LabelTask<T>& t, const LabelScratch<T>& s, Label* out) {
  for (int64_t phase = 0; phase < t.phases(); ++phase)
    for (int64_t i = 0, x = phase; x < t.width; ++i, x += t.phases())
      out[x] = Label(s.label[phase * s.columns + i]);
}

// Labels the output rows that belong to one row of the maps. unit: image, row.
template <typename T>
void label_rows(const LabelTask<T>& t, int64_t unit, T* scratch) {
  const LabelScratch<T> s(t, scratch);
  const int64_t image = unit / t.rows, row = unit % t.rows;
  const int64_t last = least(t.stride, t.height - row * t.stride);
  for (int64_t y = 0; y < last; ++y) {
    const Between<T> place = between<T>(y, t.stride);
    const int64_t upper = most(row - place.back, 0);
    const int64_t lower = least(row - place.back + 1, t.rows - 1);
    for (int64_t k = 0; k < t.classes; ++k) {
      const T* map = t.maps + (image * t.classes + k) * t.rows * t.columns;
      blend_rows(t, map + upper * t.columns, map + lower * t.columns, place.later, s);
      compete(t, k, s);
    }
    const int64_t begin = (image * t.height + row * t.stride + y) * t.width;
    if (t.labels != nullptr)
      write_row(t, s, t.labels + begin);
    else
      write_row(t, s, t.wide_labels + begin);
  }
}

}  // namespace
}  // namespace segdeform::cpu::SEGDEFORM_ISA
