#pragma once

/// Preparation of activations, to int8 codes, to digits or to float32, written once for every instruction set V (a
/// traits class).

#include <cstddef>
#include <cstdint>

#include "bittensor/linear_kernels.hpp"
#include "planes.hpp"

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

/// Digit `Index` of whole numbers of so many digits, of which one may be -128.
template <class V, int Digits, int Index>
typename V::LaneSum digit(const typename V::LaneSum& whole) {
  constexpr std::int32_t carry = (1 << (8 * Index)) / 255 * 0x80;  // of the digits below: 0, 0x80 or 0x8080
  if constexpr (Digits == 1) return whole;
  return V::template signed_byte<Index>(Index == 0 ? whole : V::add_i32(whole, V::broadcast_i32(carry)));
}

/// Whole numbers of `Digits` digits for one group of columns, and for each digit the sum.
template <class V, FloatType Type, int Digits>
[[gnu::always_inline]] inline void quantize_columns(
    const std::uint8_t* x, RowGroups::Columns group, float inverse_scale, std::int8_t* codes, std::int64_t stride,
    std::int32_t* sums, std::int64_t sum_stride) {
  const std::int64_t size = bytes_of(Type);
  const auto [columns, padded] = group;
  const std::int64_t rest = columns % V::lanes;
  const std::int64_t whole = columns - rest;
  const typename V::Float inverse = V::broadcast_f32(inverse_scale);
  typename V::LaneSum sum[Digits];
#pragma GCC unroll 4
  for (int d = 0; d < Digits; ++d) sum[d] = V::broadcast_i32(0);
  for (std::int64_t k = 0; k < whole; k += V::lanes) {
    const typename V::LaneSum number = V::round_to_i32(V::multiply(V::load_float(x + k * size, Type), inverse));
    for_each_plane<Digits>([&]<int D>() {
      const typename V::LaneSum code = digit<V, Digits, D>(number);
      sum[D] = V::add_i32(sum[D], code);
      V::store_as_i8(codes + D * stride + k, code);
    });
  }
  if (rest > 0) {
    const LastVector<V> last(x, columns, Type);
    const typename V::LaneSum number = V::round_to_i32(V::multiply(last.values(), inverse));
    for_each_plane<Digits>([&]<int D>() {
      const typename V::LaneSum code = digit<V, Digits, D>(number);
      if (whole > 0) {  // the lanes before the rest are written again, and counted once
        V::store_as_i8(codes + D * stride + columns - V::lanes, code);
        sum[D] = V::add_i32(sum[D], V::multiply_i32(code, last_lanes<V>(rest)));
      } else {
        std::int8_t only[V::lanes];
        V::store_as_i8(only, code);
        __builtin_memcpy(codes + D * stride, only, static_cast<std::size_t>(rest));
        sum[D] = code;
      }
    });
  }
#pragma GCC unroll 4
  for (int d = 0; d < Digits; ++d) {
    for (std::int64_t k = columns; k < padded; ++k) codes[d * stride + k] = 0;
    sums[d * sum_stride] = V::sum_i32(sum[d]);
  }
}

/// The scale of the lowest digit, and its inverse: a power of two, the smallest that leaves room for amax, which is
/// 127 * (2^16 + 2^8 + 1) times it at most.
struct DigitScale {
  explicit DigitScale(std::int32_t amax_bits) : exponent_((amax_bits + 0x10101) >> 23) {}
  float of(int digit) const { return power(exponent_ - 22 + 8 * digit); }
  float inverse() const { return power(276 - exponent_); }

 private:
  static float power(std::int32_t biased_exponent) {
    const std::int32_t bits = biased_exponent << 23;
    float value = 0.0F;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
  }
  std::int32_t exponent_;  // of 2^22 times the scale, with the bias of float32
};

/// One group of activations, which meets groups [begin, end) of the weight: for each of its digits the codes and the
/// scale, and the sum of the codes of each of these. With one digit the scale is amax / 127, with more it is a power of
/// two.
template <class V, FloatType Type, int Digits>
void quantize_group(
    const std::uint8_t* x, const RowGroups& groups, std::int64_t begin, std::int64_t end, DigitRows to) {
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
  const DigitScale digit_scale(has_codes ? amax_bits : 0);
  const float inverse = Digits == 1 ? 127.0F / amax : digit_scale.inverse();
  for (int d = 0; d < Digits; ++d) {
    const float scale = Digits == 1 ? amax / 127.0F : digit_scale.of(d);
    to.scales[d * to.scale_stride] = has_codes ? scale : (is_zero ? 0.0F : __builtin_nanf(""));
  }
  for (std::int64_t g = begin; g < end; ++g) {
    const RowGroups::Columns own = group(g);
    if (has_codes) {
      quantize_columns<V, Type, Digits>(x, own, inverse, to.codes, to.code_stride, to.sums, to.sum_stride);
    } else {
      for (int d = 0; d < Digits; ++d) {
        __builtin_memset(to.codes + d * to.code_stride, 0, static_cast<std::size_t>(own.padded));
        to.sums[d * to.sum_stride] = 0;
      }
    }
    x += own.count * size;
    to.codes += own.padded;
    to.sums += 1;
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
        quantize_group<V, Type, 1>(
            bytes + i * group_bytes, groups, begin, end,
            {codes + i * group_codes, 0, scales + g + i, 0, sums + begin, 0});
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

template <class V, FloatType Type>
void split_row_of(const void* x, const PreparedLayout& layout, DigitRows to) {
  const auto* bytes = static_cast<const std::uint8_t*>(x);
  const RowGroups groups(layout);
  const std::int64_t parts = layout.groups_together();
  for (std::int64_t begin = 0; begin < groups.count; begin += parts) {
    const std::int64_t end = begin + parts < groups.count ? begin + parts : groups.count;
    quantize_group<V, Type, activation_digits>(bytes, groups, begin, end, to);
    bytes += parts * groups.each.count * bytes_of(Type);
    to.codes += parts * groups.each.padded;
    to.scales += 1;
    to.sums += parts;
  }
}

template <class V>
void split_row(const void* x, FloatType type, const PreparedLayout& layout, const DigitRows& to) {
  switch (type) {
    case FloatType::f32: return split_row_of<V, FloatType::f32>(x, layout, to);
    case FloatType::f16: return split_row_of<V, FloatType::f16>(x, layout, to);
    case FloatType::bf16: return split_row_of<V, FloatType::bf16>(x, layout, to);
  }
}

template <class V>
void add_digits(float* y, std::int64_t rows, std::int64_t columns, std::int64_t stride) {
  static_assert(activation_digits == 3);
  for (std::int64_t m = 0; m < rows; ++m) {
    const float* from = y + m * activation_digits * stride;
    for (std::int64_t n = 0; n < columns; n += V::lanes) {
      const auto at = [&](int d) { return V::load_float(from + d * stride + n, FloatType::f32); };
      V::store_float(y + m * stride + n, V::add(V::add(at(0), at(1)), at(2)));
    }
  }
}

template <class V>
void widen_row(const void* x, FloatType type, const PreparedLayout& layout, float* values) {
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
    bytes += columns * size;
    values += padded;
  }
}

}  // namespace
}  // namespace bittensor
