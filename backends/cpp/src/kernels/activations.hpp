#pragma once

/// Preparation of activations, to int8 codes or to float32, written once for every instruction set V (a traits class).

#include <cstddef>
#include <cstdint>

#include "bittensor/linear_kernels.hpp"

namespace bittensor {
namespace {

/// Below this magnitude (2^-100) a group counts as zero: 127 / amax would leave the range in which it is exact enough.
inline constexpr float smallest_amax = 0x1p-100F;

template <class V>
void quantize_row(
    const void* x, FloatType type, const PreparedLayout& layout, std::int8_t* codes, float* scales,
    std::int32_t* sums) {
  const auto* bytes = static_cast<const std::uint8_t*>(x);
  const std::int64_t size = bytes_of(type);
  for (std::int64_t g = 0; g < layout.groups(); ++g) {
    const std::int64_t columns = layout.columns_of_group(g);
    const std::int64_t padded = layout.blocks_of(columns) * layout.block_columns();
    const std::int64_t whole = columns / V::lanes * V::lanes;
    // The rest of a group that is no whole vector, followed by zeros.
    alignas(64) std::uint8_t rest[V::lanes * 4] = {};
    __builtin_memcpy(rest, bytes + whole * size, static_cast<std::size_t>((columns - whole) * size));

    // For magnitudes the order of the bits is the order of the values, with infinity and NaN on top.
    typename V::LaneSum largest = V::broadcast_i32(0);
    for (std::int64_t k = 0; k < whole; k += V::lanes) {
      largest = V::max_i32(largest, V::magnitude_bits(V::load_float(bytes + k * size, type)));
    }
    largest = V::max_i32(largest, V::magnitude_bits(V::load_float(rest, type)));
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
      if (whole < padded) {
        const typename V::LaneSum code = V::round_to_i32(V::multiply(V::load_float(rest, type), inverse));
        sum = V::add_i32(sum, code);
        std::int8_t last[V::lanes];
        V::store_as_i8(last, code);
        // `rest` is shorter than a vector, the gap may be longer: 8 columns of a group against a block of 16.
        for (std::int64_t k = whole; k < padded; ++k)
          codes[k] = k - whole < V::lanes ? last[k - whole] : std::int8_t{0};
      }
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
  for (std::int64_t g = 0; g < layout.groups(); ++g) {
    const std::int64_t columns = layout.columns_of_group(g);
    const std::int64_t padded = layout.blocks_of(columns) * layout.block_columns();
    const std::int64_t whole = columns / V::lanes * V::lanes;
    for (std::int64_t k = 0; k < whole; k += V::lanes)
      V::store_float(values + k, V::load_float(bytes + k * size, type));
    if (whole < padded) {
      alignas(64) std::uint8_t rest[V::lanes * 4] = {};
      alignas(64) float widened[V::lanes];
      __builtin_memcpy(rest, bytes + whole * size, static_cast<std::size_t>((columns - whole) * size));
      V::store_float(widened, V::load_float(rest, type));
      for (std::int64_t k = whole; k < padded; ++k) values[k] = k < columns ? widened[k - whole] : 0.0F;
    }
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
