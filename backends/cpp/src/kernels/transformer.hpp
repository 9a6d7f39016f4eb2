#pragma once

/// What lies between the linears of a transformer, row by row, written once for every instruction set V (a traits
/// class).

#include <cstddef>
#include <cstdint>

#include "activation_functions.hpp"
#include "bittensor/transformer_kernels.hpp"

namespace bittensor {
namespace {

inline constexpr int partial_sums = 16;

/// Partial sums over a row that any instruction set adds in the same order.
template <class V>
struct PartialSums {
  static constexpr int vectors = partial_sums / V::lanes;
  typename V::Float at[vectors];

  PartialSums() {
    for (int v = 0; v < vectors; ++v) at[v] = V::broadcast_f32(0.0F);
  }
  float total() const {
    alignas(64) float sums[partial_sums];
    for (int v = 0; v < vectors; ++v) V::store_float(sums + v * V::lanes, at[v]);
    for (int half = partial_sums / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
    }
    return sums[0];
  }
};

/// Calls f(column, from) for each vector of a row; the last one is completed with zeros.
template <class V, class F>
void for_each_vector(const void* row, FloatType type, std::int64_t columns, const F& f) {
  const auto* bytes = static_cast<const std::uint8_t*>(row);
  const std::int64_t whole = columns / partial_sums * partial_sums;
  for (std::int64_t k = 0; k < whole; k += V::lanes) f(k, bytes + k * bytes_of(type));
  if (whole == columns) return;
  alignas(64) std::uint8_t rest[partial_sums * 4] = {};
  __builtin_memcpy(rest, bytes + whole * bytes_of(type), static_cast<std::size_t>((columns - whole) * bytes_of(type)));
  for (int i = 0; i < partial_sums; i += V::lanes) f(whole + i, rest + i * bytes_of(type));
}

/// Stores the values of `columns` that a vector from `column` on has.
template <class V>
void store_columns(float* out, std::int64_t columns, std::int64_t column, const typename V::Float& value) {
  if (column + V::lanes <= columns) {
    V::store_float(out + column, value);
  } else if (column < columns) {
    alignas(64) float rest[V::lanes];
    V::store_float(rest, value);
    __builtin_memcpy(out + column, rest, static_cast<std::size_t>(columns - column) * 4);
  }
}

template <class V>
void normalize_row(
    const void* x, FloatType type, std::int64_t columns, const float* weight, float epsilon, float* out) {
  PartialSums<V> squares;
  for_each_vector<V>(x, type, columns, [&](std::int64_t k, const void* from) {
    const typename V::Float value = V::load_float(from, type);
    typename V::Float& sum = squares.at[k % partial_sums / V::lanes];
    sum = V::fma(value, value, sum);
  });
  const float mean = squares.total() / static_cast<float>(columns);
  const typename V::Float inverse = V::broadcast_f32(1.0F / __builtin_sqrtf(mean + epsilon));
  for_each_vector<V>(x, type, columns, [&](std::int64_t k, const void* from) {
    alignas(64) float rest[V::lanes] = {};
    const float* factor = weight + k;
    if (k + V::lanes > columns) {
      if (k < columns) __builtin_memcpy(rest, factor, static_cast<std::size_t>(columns - k) * 4);
      factor = rest;
    }
    const typename V::Float value = V::multiply(V::load_float(from, type), inverse);
    store_columns<V>(out, columns, k, V::multiply(value, V::load_float(factor, FloatType::f32)));
  });
}

template <class V>
void gate_row(const void* x, FloatType type, std::int64_t columns, float* out) {
  const auto* up = static_cast<const std::uint8_t*>(x) + columns * bytes_of(type);
  for_each_vector<V>(x, type, columns, [&](std::int64_t k, const void* from) {
    alignas(64) std::uint8_t rest[V::lanes * 4] = {};
    const std::uint8_t* factor = up + k * bytes_of(type);
    if (k + V::lanes > columns) {
      if (k < columns) __builtin_memcpy(rest, factor, static_cast<std::size_t>((columns - k) * bytes_of(type)));
      factor = rest;
    }
    store_columns<V>(out, columns, k, V::multiply(silu<V>(V::load_float(from, type)), V::load_float(factor, type)));
  });
}

template <class V>
void softmax_row(float* scores, std::int64_t columns) {
  const std::int64_t padded = (columns + partial_sums - 1) / partial_sums * partial_sums;
  for (std::int64_t k = columns; k < padded; ++k) scores[k] = scores[0];
  typename V::Float largest = V::load_float(scores, FloatType::f32);
  for (std::int64_t k = V::lanes; k < padded; k += V::lanes) {
    largest = V::max(V::load_float(scores + k, FloatType::f32), largest);
  }
  alignas(64) float lanes[V::lanes];
  V::store_float(lanes, largest);
  float top = lanes[0];
  for (const float value : lanes) top = value > top ? value : top;
  const typename V::Float most = V::broadcast_f32(top);
  const auto exponential = [&](std::int64_t k) {
    const typename V::Float below = V::subtract_f32(most, V::load_float(scores + k, FloatType::f32));
    // The difference with itself is 0, or NaN where a score is NaN or infinite: the exponential alone would hide it.
    const typename V::Float value = V::add(exp_of_negative<V>(below), V::subtract_f32(below, below));
    V::store_float(scores + k, value);
    return value;
  };
  PartialSums<V> sums;
  const std::int64_t whole = columns / partial_sums * partial_sums;
  for (std::int64_t first = 0; first < whole; first += partial_sums) {
#pragma GCC unroll 16
    for (int v = 0; v < PartialSums<V>::vectors; ++v) {
      sums.at[v] = V::add(sums.at[v], exponential(first + v * V::lanes));
    }
  }
  if (whole < columns) {
    for (std::int64_t k = whole; k < padded; k += V::lanes) exponential(k);
    for (std::int64_t k = columns; k < padded; ++k) scores[k] = 0.0F;
    for (int v = 0; v < PartialSums<V>::vectors; ++v) {
      sums.at[v] = V::add(sums.at[v], V::load_float(scores + whole + v * V::lanes, FloatType::f32));
    }
  }
  const typename V::Float inverse = V::broadcast_f32(1.0F / sums.total());
  for (std::int64_t k = 0; k < padded; k += V::lanes) {
    V::store_float(scores + k, V::multiply(V::load_float(scores + k, FloatType::f32), inverse));
  }
}

}  // namespace
}  // namespace bittensor
