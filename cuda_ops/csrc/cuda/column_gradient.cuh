// The gradient of the loss by the columns, from which all other gradients follow, in two kinds.
// Rows count from the first of the chunk.
#pragma once

#include "gather.cuh"

namespace segdeform::cuda {

// A product of the output's gradient and the weight, in memory.
template <typename T>
struct StoredGradient {
  Columns<T> columns;

  struct Cursor {
    const T* from;
    int64_t row_stride, tap_stride;

    template <int V>
    __device__ void read(int64_t row, int64_t tap, Real<T> (&values)[V]) const {
      const Vector<T, V> stored = load<V>(from + row * row_stride + tap * tap_stride);
      for (int k = 0; k < V; ++k) values[k] = Real<T>(stored.value[k]);
    }
  };
  __device__ Cursor at(int64_t channel) const {
    return {columns.at(channel, 0), columns.row_stride(), columns.group_channels};
  }
};

// Depthwise: one factor each of the output's gradient and the weight.
template <typename T>
struct DepthwiseGradient {
  const T* grad;    // [rows, C]
  const T* weight;  // [T, C]
  int64_t channels;

  struct Cursor {
    const T *grad, *weight;
    int64_t channels;

    template <int V>
    __device__ void read(int64_t row, int64_t tap, Real<T> (&values)[V]) const {
      const Vector<T, V> a = load<V>(grad + row * channels), b = load<V>(weight + tap * channels);
      for (int k = 0; k < V; ++k) values[k] = Real<T>(a.value[k]) * Real<T>(b.value[k]);
    }
  };
  __device__ Cursor at(int64_t channel) const {
    return {grad + channel, weight + channel, channels};
  }
};

}  // namespace segdeform::cuda
