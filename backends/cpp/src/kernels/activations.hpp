#pragma once

/// Preparation of activations, to int8 codes or to float32, written once for every instruction set V (a traits class).

#include <cstddef>
#include <cstdint>

#include "bittensor/linear_kernels.hpp"

namespace bittensor {
namespace {

/// Below this magnitude (2^-100) a group counts as zero: 127 / amax would leave the range in which it is exact enough.
inline constexpr float smallest_amax = 0x1p-100F;

inline constexpr std::int32_t infinity_bits = 0x7F800000;

/// How far ahead activations are prefetched: into the rows behind, which those of the processor, that end with a page,
/// do not reach.
inline constexpr std::int64_t x_prefetch_bytes = 6144;

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

/// The codes of one group of columns, and their sum.
template <class V, FloatType Type>
[[gnu::always_inline]] inline std::int32_t quantize_columns(
    const std::uint8_t* x, RowGroups::Columns group, float inverse_scale, std::int8_t* codes) {
  const std::int64_t size = bytes_of(Type);
  const auto [columns, padded] = group;
  const std::int64_t rest = columns % V::lanes;
  const std::int64_t whole = columns - rest;
  const typename V::Float inverse = V::broadcast_f32(inverse_scale);
  typename V::LaneSum sum = V::broadcast_i32(0);
  for (std::int64_t k = 0; k < whole; k += V::lanes) {
    const typename V::LaneSum code = V::round_to_i32(V::multiply(V::load_float(x + k * size, Type), inverse));
    sum = V::add_i32(sum, code);
    V::store_as_i8(codes + k, code);
  }
  if (rest > 0) {
    const LastVector<V> last(x, columns, Type);
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
  return V::sum_i32(sum);
}

/// The codes and the scale of one group of activations, which meets groups [begin, end) of the weight, and the sum of
/// the codes of each of these.
template <class V, FloatType Type>
void quantize_group(
    const std::uint8_t* x, const RowGroups& groups, std::int64_t begin, std::int64_t end, std::int8_t* codes,
    float* scale, std::int32_t* sums) {
  const std::int64_t size = bytes_of(Type);
  const auto group = [&](std::int64_t g) { return g + 1 < groups.count ? groups.each : groups.last; };
  const std::int64_t before = (end - begin - 1) * groups.each.count;  // the last of them
  const std::int64_t columns = before + group(end - 1).count;
  const std::int64_t whole = columns / V::lanes * V::lanes;

  // For magnitudes the order of the bits is the order of the values, with infinity and NaN on top.
  typename V::LaneSum largest = V::broadcast_i32(0);
  for (std::int64_t k = 0; k < whole; k += V::lanes) {
    __builtin_prefetch(x + k * size + x_prefetch_bytes);
    largest = V::max_i32(largest, V::magnitude_bits(V::load_float(x + k * size, Type)));
  }
  if (whole < columns) largest = V::max_i32(largest, V::magnitude_bits(LastVector<V>(x, columns, Type).values()));
  const std::int32_t amax_bits = V::largest_i32(largest);
  float amax = 0.0F;
  __builtin_memcpy(&amax, &amax_bits, sizeof amax);
  const bool is_finite = amax_bits < infinity_bits;
  const bool is_zero = is_finite && amax < smallest_amax;
  const bool has_codes = is_finite && !is_zero;
  *scale = has_codes ? amax / 127.0F : (is_zero ? 0.0F : __builtin_nanf(""));
  const float inverse = 127.0F / amax;
  for (std::int64_t g = begin; g < end; ++g) {
    const RowGroups::Columns own = group(g);
    if (has_codes) {
      *sums++ = quantize_columns<V, Type>(x, own, inverse, codes);
    } else {
      __builtin_memset(codes, 0, static_cast<std::size_t>(own.padded));
      *sums++ = 0;
    }
    x += own.count * size;
    codes += own.padded;
  }
}

/// The same for some groups of activations, at most as many as a vector has lanes. Each meets `parts` groups of the
/// weight, of `columns` columns, which are whole vectors. Lanes are groups where there is one number for each:
/// divisions and sums across lanes take as long as the rest if each group has its own. False, and nothing is done, if a
/// value is not finite.
template <class V, FloatType Type>
bool quantize_groups(
    const std::uint8_t* x, std::int64_t groups, std::int64_t parts, std::int64_t columns, std::int8_t* codes,
    float* scales, std::int32_t* sums) {
  using Sum = typename V::LaneSum;
  using Float = typename V::Float;
  const std::int64_t step = V::lanes * bytes_of(Type);
  const std::int64_t part_bytes = columns * bytes_of(Type);
  const std::int64_t group_bytes = parts * part_bytes;
  Sum of_groups[V::lanes];
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::uint8_t* from = x + g * group_bytes;
    Sum largest = V::magnitude_bits(V::load_float(from, Type));
    __builtin_prefetch(from + x_prefetch_bytes);
    for (std::int64_t k = step; k < group_bytes; k += step) {
      __builtin_prefetch(from + k + x_prefetch_bytes);
      largest = V::max_i32(largest, V::magnitude_bits(V::load_float(from + k, Type)));
    }
    of_groups[g] = largest;
  }
  for (std::int64_t g = groups; g < V::lanes; ++g) of_groups[g] = V::broadcast_i32(0);
  const Sum amax_bits = V::across_lanes(of_groups, [](const Sum& a, const Sum& b) { return V::max_i32(a, b); });
  if (V::largest_i32(amax_bits) >= infinity_bits) return false;

  const Float amax = V::of_bits(amax_bits);
  const Float above = V::subtract_f32(amax, V::broadcast_f32(smallest_amax));
  const Float none = V::broadcast_f32(0.0F);
  const Float most = V::broadcast_f32(127.0F);
  alignas(64) float inverse[V::lanes];
  alignas(64) float scale[V::lanes];
  V::store_float(inverse, V::where_negative(above, none, V::divide(most, amax)));
  V::store_float(scale, V::where_negative(above, none, V::divide(amax, most)));
  __builtin_memcpy(scales, scale, static_cast<std::size_t>(groups) * sizeof(float));

  const float* own_inverse = inverse;
  std::int64_t part = 0;
  for (std::int64_t left = groups * parts; left > 0; left -= V::lanes) {
    const std::int64_t count = left < V::lanes ? left : V::lanes;
    for (std::int64_t i = 0; i < count; ++i) {
      const Float factor = V::broadcast_f32(*own_inverse);
      Sum sum = V::broadcast_i32(0);
      for (std::int64_t k = 0; k < part_bytes; k += step) {
        const Sum code = V::round_to_i32(V::multiply(V::load_float(x + k, Type), factor));
        sum = V::add_i32(sum, code);
        V::store_as_i8(codes, code);
        codes += V::lanes;
      }
      of_groups[i] = sum;
      x += part_bytes;
      if (++part == parts) {
        part = 0;
        ++own_inverse;
      }
    }
    const Sum code_sums = V::across_lanes(of_groups, [](const Sum& a, const Sum& b) { return V::add_i32(a, b); });
    __builtin_memcpy(sums, &code_sums, static_cast<std::size_t>(count) * sizeof(std::int32_t));
    sums += count;
  }
  return true;
}

template <class V, FloatType Type>
void quantize_row_of(
    const void* x, const PreparedLayout& layout, std::int8_t* codes, float* scales, std::int32_t* sums) {
  constexpr std::int64_t fewest_groups = V::lanes / 4;  // else most lanes are empty
  constexpr std::int64_t most_columns = 256;            // so that the values of all groups stay close
  const auto* bytes = static_cast<const std::uint8_t*>(x);
  const RowGroups groups(layout);
  const std::int64_t parts = layout.groups_together();
  const std::int64_t columns = groups.each.count;
  const std::int64_t group_bytes = parts * columns * bytes_of(Type);
  const std::int64_t group_codes = parts * groups.each.padded;
  const bool of_vectors = columns % V::lanes == 0 && columns == groups.each.padded && parts * columns <= most_columns;
  const std::int64_t equal_parts = groups.last.count == columns ? groups.count : groups.count - 1;
  const std::int64_t equal = parts == 1 ? equal_parts : equal_parts / static_cast<std::int32_t>(parts);
  for (std::int64_t g = 0; g * parts < groups.count;) {
    const std::int64_t left = equal - g < V::lanes ? equal - g : V::lanes;
    const std::int64_t together = of_vectors && left >= fewest_groups ? left : 1;
    if (together == 1 ||
        !quantize_groups<V, Type>(bytes, together, parts, columns, codes, scales + g, sums + g * parts)) {
      for (std::int64_t i = 0; i < together; ++i) {
        const std::int64_t begin = (g + i) * parts;
        const std::int64_t end = begin + parts < groups.count ? begin + parts : groups.count;
        quantize_group<V, Type>(
            bytes + i * group_bytes, groups, begin, end, codes + i * group_codes, scales + g + i, sums + begin);
      }
    }
    bytes += together * group_bytes;
    codes += together * group_codes;
    g += together;
  }
}

template <class V>
void quantize_row(
    const void* x, FloatType type, const PreparedLayout& layout, std::int8_t* codes, float* scales,
    std::int32_t* sums) {
  switch (type) {
    case FloatType::f32: return quantize_row_of<V, FloatType::f32>(x, layout, codes, scales, sums);
    case FloatType::f16: return quantize_row_of<V, FloatType::f16>(x, layout, codes, scales, sums);
    case FloatType::bf16: return quantize_row_of<V, FloatType::bf16>(x, layout, codes, scales, sums);
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
