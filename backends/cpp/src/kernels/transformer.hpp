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
    static_assert(vectors <= 2);
    return V::sum_of_halves(vectors == 1 ? at[0] : V::add(at[0], at[vectors - 1]));
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
  using Float = typename V::Float;
  static constexpr float lane_numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  static_assert(V::lanes <= 16);
  const Float numbers = V::load_float(lane_numbers, FloatType::f32);
  // `outside` in the lanes behind the last column.
  const auto inside = [&](std::int64_t k, const Float& value, const Float& outside) {
    if (k + V::lanes <= columns) return value;
    return V::where_negative(
        V::subtract_f32(numbers, V::broadcast_f32(static_cast<float>(columns - k))), value, outside);
  };
  const std::int64_t padded = (columns + partial_sums - 1) / partial_sums * partial_sums;
  const Float first = V::broadcast_f32(scores[0]);
  Float largest = first;
  for (std::int64_t k = 0; k < padded; k += V::lanes) {
    largest = V::max(inside(k, V::load_float(scores + k, FloatType::f32), first), largest);
  }
  const Float most = V::broadcast_f32(V::largest_f32(largest));
  PartialSums<V> sums;
  for (std::int64_t block = 0; block < padded; block += partial_sums) {
#pragma GCC unroll 16
    for (int v = 0; v < PartialSums<V>::vectors; ++v) {
      const std::int64_t k = block + v * V::lanes;
      const Float score = inside(k, V::load_float(scores + k, FloatType::f32), first);
      // The difference with itself is 0, or NaN where a score is NaN or infinite: the exponential alone would hide it.
      const Float value = V::add(exp_of_negative<V>(V::subtract_f32(most, score)), V::subtract_f32(score, score));
      const Float weight = inside(k, value, V::broadcast_f32(0.0F));
      V::store_float(scores + k, weight);
      sums.at[v] = V::add(sums.at[v], weight);
    }
  }
  const Float inverse = V::broadcast_f32(1.0F / sums.total());
  for (std::int64_t k = 0; k < padded; k += V::lanes) {
    V::store_float(scores + k, V::multiply(V::load_float(scores + k, FloatType::f32), inverse));
  }
}

}  // namespace
}  // namespace bittensor
