// The gradient of the loss by the columns, from which all other gradients follow, in two kinds.
// Rows count from the first of the chunk.
#pragma once

#include "gather.cuh"

namespace segdeform::cuda {

// A place stands for a row and a tap; a cursor stays at one vector of channels and reads at places.
// `load` only asks memory for what `values` needs, so that several requests can be under way.

// A product of the output's gradient and the weight, in memory.
template <typename T>
struct StoredGradient {
  static constexpr int kAtOnce = 4;  // entries whose loads are under way together
  Columns<T> columns;

  struct Cursor {
    T* from;

    template <int V>
    __device__ Vector<T, V> load(uint64_t place) const {
      return cuda::load<V>(from + place);
    }
    template <int V>
    __device__ static void values(const Vector<T, V>& loaded, Real<T> (&values)[V]) {
      widen(loaded, values);
    }
  };
  // Of a row after `row`, which need not be the first.
  __device__ Cursor at(int32_t channel, int64_t row) const { return {columns.at(channel, row)}; }
  __device__ uint64_t place(uint32_t row, uint32_t tap) const {
    return uint64_t(row) * uint32_t(columns.row_stride()) +
           uint64_t(tap) * uint32_t(columns.group_channels);
  }
};

// Depthwise: one factor each of the output's gradient and the weight.
template <typename T>
struct DepthwiseGradient {
  static constexpr int kAtOnce = 2;
  const T* grad;    // [rows, C]
  const T* weight;  // [T, C]
  int32_t channels;

  template <int V>
  struct Factors {
    Vector<T, V> grad, weight;
  };
  struct Cursor {
    const T *grad, *weight;
    uint32_t channels;

    template <int V>
    __device__ Factors<V> load(uint64_t place) const {
      return {cuda::load<V>(grad + (place >> 32) * channels),
              cuda::load<V>(weight + (place & 0xffffffffu) * channels)};
    }
    template <int V>
    __device__ static void values(const Factors<V>& loaded, Real<T> (&values)[V]) {
      Real<T> factors[V];
      widen(loaded.grad, values);
      widen(loaded.weight, factors);
      for (int k = 0; k < V; ++k) values[k] *= factors[k];
    }
  };
  DepthwiseGradient from(int64_t row) const { return {grad + row * channels, weight, channels}; }
  __device__ Cursor at(int32_t channel, int64_t row) const {
    return {grad + row * channels + channel, weight + channel, uint32_t(channels)};
  }
  __device__ static uint64_t place(uint32_t row, uint32_t tap) { return uint64_t(row) << 32 | tap; }
};

}  // namespace segdeform::cuda
