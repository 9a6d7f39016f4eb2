#pragma once

/// Preparation of activations, to int8 codes or to float32, written once for every instruction set V (a traits class).

#include <cstddef>
#include <cstdint>

#include "bittensor/linear_kernels.hpp"

namespace bittensor {
namespace {

/// Below this magnitude (2^-100) a group counts as zero: 127 / amax would leave the range in which it is exact enough.
inline constexpr float smallest_amax = 0x1p-100F;

/// The last values of a group as one vector: those of `columns` values that end it, or all of a shorter group with
/// zeros behind.
template <class V>
class LastVector {
 public:
  LastVector(const std::uint8_t* group, std::int64_t columns, FloatType type) {
    const std::int64_t size = bytes_of(type);
    if (columns >= V::lanes) {
      values_ = V::load_float(group + (columns - V::lanes) * size, type);
    } else {
      alignas(64) std::uint8_t padded[V::lanes * 4] = {};
      __builtin_memcpy(padded, group, static_cast<std::size_t>(columns * size));
      values_ = V::load_float(padded, type);
    }
  }
  const typename V::Float& values() const { return values_; }

 private:
  typename V::Float values_;
};

/// The groups of a row. Divisions are done once: in the loops over groups they would take longer than the rest.
struct RowGroups {
  struct Columns {
    std::int64_t count;
    std::int64_t padded;  // to whole blocks
  };

  explicit RowGroups(const PreparedLayout& layout)
      : count(layout.groups()), each(columns(layout, 0)), last(columns(layout, count - 1)) {}

  static Columns columns(const PreparedLayout& layout, std::int64_t group) {
    const std::int64_t count = layout.columns_of_group(group);
    return {count, layout.blocks_of(count) * layout.block_columns()};
  }

  std::int64_t count;
  Columns each;  // of all but the last
  Columns last;
};

/// 1 in the last `count` lanes, which are not all, else 0.
template <class V>
typename V::LaneSum last_lanes(std::int64_t count) {
  alignas(64) static constexpr std::uint8_t zeros_and_ones[2 * tile_rows] = {
      0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  return V::load_u8_as_i32(zeros_and_ones + tile_rows - V::lanes + count);
}

template <class V>
void quantize_row(
    const void* x, FloatType type, const PreparedLayout& layout, std::int8_t* codes, float* scales,
    std::int32_t* sums) {
  const auto* bytes = static_cast<const std::uint8_t*>(x);
  const std::int64_t size = bytes_of(type);
  const RowGroups groups(layout);
  for (std::int64_t g = 0; g < groups.count; ++g) {
    const auto [columns, padded] = g + 1 < groups.count ? groups.each : groups.last;
    const std::int64_t rest = columns % V::lanes;
    const std::int64_t whole = columns - rest;
    const LastVector<V> last(bytes, columns, type);

    // For magnitudes the order of the bits is the order of the values, with infinity and NaN on top.
    typename V::LaneSum largest = V::magnitude_bits(last.values());
    for (std::int64_t k = 0; k < whole; k += V::lanes) {
      largest = V::max_i32(largest, V::magnitude_bits(V::load_float(bytes + k * size, type)));
    }
    const std::int32_t amax_bits = V::largest_i32(largest);
    float amax = 0.0F;
    __builtin_memcpy(&amax, &amax_bits, sizeof amax);
    const bool is_finite = amax_bits < 0x7F800000;
    const bool is_zero = is_finite && amax < smallest_amax;

    if (!is_finite || is_zero) {
      __builtin_memset(codes, 0, static_cast<std::size_t>(padded));
      scales[g] = is_zero ? 0.0F : __builtin_nanf("");
      sums[g] = 0;
    } else {
      const typename V::Float inverse = V::broadcast_f32(127.0F / amax);
      typename V::LaneSum sum = V::broadcast_i32(0);
      for (std::int64_t k = 0; k < whole; k += V::lanes) {
        const typename V::LaneSum code = V::round_to_i32(V::multiply(V::load_float(bytes + k * size, type), inverse));
        sum = V::add_i32(sum, code);
        V::store_as_i8(codes + k, code);
      }
      if (rest > 0) {
        const typename V::LaneSum code = V::round_to_i32(V::multiply(last.values(), inverse));
        if (whole > 0) {  // the lanes before the rest are written again, and counted once
          V::store_as_i8(codes + columns - V::lanes, code);
          sum = V::add_i32(sum, V::multiply_i32(code, last_lanes<V>(rest)));
        } else {
          std::int8_t only[V::lanes];
          V::store_as_i8(only, code);
          __builtin_memcpy(codes, only, static_cast<std::size_t>(rest));
          sum = code;
        }
      }
      for (std::int64_t k = columns; k < padded; ++k) codes[k] = 0;
      scales[g] = amax / 127.0F;
      sums[g] = V::sum_i32(sum);
    }
    bytes += columns * size;
    codes += padded;
  }
}

template <class V>
void widen_row(const void* x, FloatType type, const PreparedLayout& layout, float* values, float* sums) {
  const auto* bytes = static_cast<const std::uint8_t*>(x);
  const std::int64_t size = bytes_of(type);
  const RowGroups groups(layout);
  for (std::int64_t g = 0; g < groups.count; ++g) {
    const auto [columns, padded] = g + 1 < groups.count ? groups.each : groups.last;
    const std::int64_t whole = columns / V::lanes * V::lanes;
    for (std::int64_t k = 0; k < whole; k += V::lanes)
      V::store_float(values + k, V::load_float(bytes + k * size, type));
    if (whole < columns) {
      const LastVector<V> last(bytes, columns, type);
      if (whole > 0) {
        V::store_float(values + columns - V::lanes, last.values());
      } else {
        alignas(64) float only[V::lanes];
        V::store_float(only, last.values());
        __builtin_memcpy(values, only, static_cast<std::size_t>(columns) * sizeof(float));
      }
    }
    for (std::int64_t k = columns; k < padded; ++k) values[k] = 0.0F;
    if (sums != nullptr) {
      float sum = 0.0F;
      for (std::int64_t k = 0; k < columns; ++k) sum += values[k];
      sums[g] = sum;
    }
    bytes += columns * size;
    values += padded;
  }
}

}  // namespace
}  // namespace bittensor
