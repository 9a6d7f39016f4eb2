#pragma once

/// Traits of the scalar kernels: a "vector" is eight bytes in a general register. Runs anywhere; little endian.

#include <cstddef>
#include <cstdint>

#include "bittensor/kernel_set.hpp"
#include "bittensor/linear_kernels.hpp"

namespace bittensor {
namespace {

/// A value for each row of a tile: the scalar kernels' "vector" in the linear.
template <class T>
struct Lanes {
  T at[tile_rows];
};

template <class F>
auto each(const F& f) {
  Lanes<decltype(f(0))> result;
  for (int i = 0; i < tile_rows; ++i) result.at[i] = f(i);
  return result;
}
inline std::uint32_t bits_of(float value) {
  std::uint32_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float float_of(std::uint32_t bits) {
  float value = 0;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
inline std::uint16_t round_to_bf16(std::uint32_t bits) {
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<std::uint16_t>(bits >> 16 | 0x40U);  // quiet NaN
  return static_cast<std::uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
}
inline std::uint16_t round_to_f16(std::uint32_t bits) {
  const std::uint32_t sign = bits >> 16 & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) return static_cast<std::uint16_t>(sign | 0x7E00U | (magnitude >> 13 & 0x3FFU));
  if (magnitude >= 0x47800000U) return static_cast<std::uint16_t>(sign | 0x7C00U);  // 2^16 and beyond
  if (magnitude < 0x38800000U) {  // below 2^-14: subnormal; adding 2^-1 lets the addition round at 2^-24
    return static_cast<std::uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5F) - 0x3F000000U));
  }
  // Half a unit less the lowest kept bit rounds ties to even; a carry into the exponent is right, up to infinity.
  return static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000U + 0xFFFU + (magnitude >> 13 & 1U)) >> 13));
}

/// The bits of a binary16 value as binary32; exact.
inline std::uint32_t widen_f16(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000U) << 16;
  const std::uint32_t exponent = half >> 10 & 0x1FU;
  const std::uint32_t fraction = half & 0x3FFU;
  if (exponent == 0x1F) return sign | 0x7F800000U | fraction << 13;
  if (exponent != 0) return sign | (exponent + 112) << 23 | fraction << 13;
  // subnormal: fraction * 2^-24
  return sign | bits_of(static_cast<float>(fraction) * 0x1p-24F);
}

struct Scalar {
  static constexpr Isa isa = Isa::scalar;
  static constexpr int bytes = 8;
  static constexpr int max_rows = 2;  // rows of the largest dot tile
  using Vector = std::uint64_t;
  using Sum = std::uint32_t;  // int32 modulo 2^32: overflow of the unsigned type is defined

  using LaneVector = Lanes<std::uint32_t>;  // 4 bytes of each lane
  using LaneSum = Lanes<Sum>;

  static Vector load(const void* from) {
    Vector v = 0;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
  }
  static Vector load_words(const std::uint64_t* words, std::int64_t count) { return count > 0 ? words[0] : 0; }
  static void store(void* to, Vector v) { __builtin_memcpy(to, &v, sizeof v); }
  static Vector zero() { return 0; }
  static Vector bit_or(Vector a, Vector b) { return a | b; }
  static std::uint8_t or_bytes(Vector v) {
    v |= v >> 32;
    v |= v >> 16;
    return static_cast<std::uint8_t>(v | v >> 8);
  }

  template <int Bits>
  static void pack(Vector codes, void* out) {
    std::uint64_t packed = 0;
    for (int i = 0; i < bytes; ++i) packed |= (codes >> (8 * i) & ((1U << Bits) - 1)) << (Bits * i);
    __builtin_memcpy(out, &packed, Bits);
  }
  template <int Bits>
  static Vector unpack(const void* in) {
    std::uint64_t packed = 0;
    __builtin_memcpy(&packed, in, Bits);
    Vector codes = 0;
    for (int i = 0; i < bytes; ++i) codes |= (packed >> (Bits * i) & ((1U << Bits) - 1)) << (8 * i);
    return codes;
  }

  /// Plane `Plane` of packed bytes: bits [Bits * Plane, Bits * (Plane + 1)) of each byte.
  template <int Bits, int Plane>
  static Vector plane(Vector packed) {
    constexpr std::uint64_t mask = 0x0101010101010101U * ((1U << Bits) - 1);
    return packed >> (Bits * Plane) & mask;
  }
  template <int Bits, int Plane>
  static LaneVector plane(const LaneVector& packed) {
    return each([&](int i) { return static_cast<std::uint32_t>(plane<Bits, Plane>(Vector{packed.at[i]})); });
  }
  static Vector subtract(Vector v, std::int8_t shift) {
    Vector result = 0;
    for (int i = 0; i < bytes; ++i) {
      result |=
          static_cast<std::uint64_t>(static_cast<std::uint8_t>((v >> (8 * i)) - static_cast<std::uint64_t>(shift)))
          << (8 * i);
    }
    return result;
  }
  static Sum add_signed_bytes(Sum sum, Vector v) {
    for (int i = 0; i < bytes; ++i) sum += static_cast<Sum>(static_cast<std::int8_t>(v >> (8 * i)));
    return sum;
  }
  static std::int32_t total(Sum sum) { return static_cast<std::int32_t>(sum); }

  template <class Any>
  static void settle(Any& sum) {
    static_cast<void>(sum);
  }

  /// Sums of products of unsigned weight codes and signed values of magnitude up to MaxX.
  template <int Bits, int MaxX>
  struct Dot {
    using Partial = Sum;
    static constexpr int max_steps = 0;  // partial sums never need widening
    static Partial zero() { return 0; }
    static Partial step(Partial sum, Vector weight, Vector x) {
      for (int i = 0; i < 8; ++i) sum += product(weight >> (8 * i), x >> (8 * i));
      return sum;
    }
    static LaneSum step(const LaneSum& sums, const LaneVector& weight, const LaneVector& x) {
      LaneSum result = sums;
      for (int lane = 0; lane < lanes; ++lane) {
        for (int i = 0; i < 4; ++i) result.at[lane] += product(weight.at[lane] >> (8 * i), x.at[lane] >> (8 * i));
      }
      return result;
    }
    static Sum product(std::uint64_t weight, std::uint64_t x) {
      return static_cast<Sum>(static_cast<std::uint8_t>(weight)) * static_cast<Sum>(static_cast<std::int8_t>(x));
    }
    static Sum widen(Sum sum, Partial partial) { return sum + partial; }
  };
  static Sum zero_sum() { return 0; }
  static void store_totals(const Sum (&sums)[4], std::int32_t* out) {
    for (int i = 0; i < 4; ++i) out[i] = static_cast<std::int32_t>(sums[i]);
  }

  static void requantize(const CodeEpilogue& row, int max, std::uint8_t* codes) {
    for (int n = 0; n < block_columns; ++n) {
      const auto acc = static_cast<std::int32_t>(
          static_cast<Sum>(row.acc[n]) + static_cast<Sum>(row.column_add[n]) + static_cast<Sum>(row.row_add));
      std::int32_t code = acc;
      if (row.scale != nullptr) {
        // Clamping first (to whole numbers) changes nothing and keeps the value where adding 1.5 * 2^23 rounds it to
        // a whole number, ties to even.
        float value = static_cast<float>(acc) * row.scale[n];
        const auto low = static_cast<float>(-row.out_zero);
        const auto high = static_cast<float>(max - row.out_zero);
        value = value < low ? low : value;
        value = value > high ? high : value;
        constexpr float whole = 12582912.0F;
        code = static_cast<std::int32_t>((value + whole) - whole) + row.out_zero;
      }
      code = code < 0 ? 0 : code;
      codes[n] = static_cast<std::uint8_t>(code > max ? max : code);
    }
  }

  // The linear: lanes run over weight rows. A "vector" is an array of the 16 rows of a tile, in plain loops.
  static constexpr int lanes = tile_rows;
  static constexpr int int8_rows = 2;
  static constexpr int int8_tiles = 1;
  static constexpr int decoded_rows = 0;  // never: a "plane" is not what takes its time
  static constexpr int panel_rows = 2;
  static constexpr int panel_tiles = 1;
  static constexpr int panel_tiles_single_row = 1;
  static constexpr int codes_product_rows = 2;
  static constexpr int codes_product_sums = 1;
  static constexpr int table_bits = 0;
  using Float = Lanes<float>;

  static LaneVector load_lanes(const void* from) {
    LaneVector v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
  }
  /// Lanes run over columns: four bytes to each of the lanes that a block of that row fills.
  template <int Blocks>
  static LaneVector broadcast_blocks(const std::uint8_t* row, const std::int64_t (&offset)[Blocks]) {
    std::uint32_t four[Blocks];
    for (int i = 0; i < Blocks; ++i) __builtin_memcpy(&four[i], row + offset[i], sizeof four[i]);
    return each([&](int i) { return four[i / (lanes / Blocks)]; });
  }
  template <int Bits>
  static LaneVector shift_down(const LaneVector& v) {
    return each([&](int i) { return v.at[i] >> Bits; });
  }
  /// Lane i of vector j becomes lane j of vector i.
  static void transpose(const void* const (&from)[lanes], std::uint32_t* to) {
    for (int j = 0; j < lanes; ++j) {
      const LaneVector v = load_lanes(from[j]);
      for (int i = 0; i < lanes; ++i) to[i * lanes + j] = v.at[i];
    }
  }
  static LaneVector shift_right(const LaneVector& v, const LaneVector& bits) {
    return each([&](int i) { return v.at[i] >> bits.at[i]; });
  }
  static LaneVector broadcast4(const std::int8_t* from) {
    std::uint32_t four = 0;
    __builtin_memcpy(&four, from, sizeof four);
    return each([four](int) { return four; });
  }
  static LaneSum broadcast_i32(std::int32_t value) {
    return each([value](int) { return static_cast<Sum>(value); });
  }
  static LaneSum add_i32(const LaneSum& a, const LaneSum& b) {
    return each([&](int i) { return a.at[i] + b.at[i]; });
  }
  static LaneSum multiply_i32(const LaneSum& a, const LaneSum& b) {
    return each([&](int i) { return a.at[i] * b.at[i]; });
  }
  static LaneSum max_i32(const LaneSum& a, const LaneSum& b) {
    return each([&](int i) {
      return static_cast<std::int32_t>(a.at[i]) > static_cast<std::int32_t>(b.at[i]) ? a.at[i] : b.at[i];
    });
  }
  /// Byte `Index` of each lane, the lowest first, with its sign.
  template <int Index>
  static LaneSum signed_byte(const LaneSum& v) {
    return each([&](int i) {
      return static_cast<Sum>(static_cast<std::int32_t>(static_cast<std::int8_t>(v.at[i] >> (8 * Index))));
    });
  }
  static std::int32_t largest_i32(const LaneSum& v) {
    auto largest = static_cast<std::int32_t>(v.at[0]);
    for (const Sum value : v.at) {
      if (static_cast<std::int32_t>(value) > largest) largest = static_cast<std::int32_t>(value);
    }
    return largest;
  }
  static std::int32_t sum_i32(const LaneSum& v) {
    Sum sum = 0;
    for (const Sum value : v.at) sum += value;
    return static_cast<std::int32_t>(sum);
  }
  /// In lane i, all lanes of vector i, combined by `op`.
  template <class Op>
  static LaneSum across_lanes(const LaneSum (&v)[lanes], const Op& op) {
    LaneSum combined = each([&](int i) { return v[i].at[0]; });
    for (int lane = 1; lane < lanes; ++lane) {
      combined = op(combined, each([&](int i) { return v[i].at[lane]; }));
    }
    return combined;
  }
  static LaneSum load_u8_as_i32(const std::uint8_t* from) {
    return each([from](int i) { return Sum{from[i]}; });
  }
  static void store_as_i8(std::int8_t* to, const LaneSum& v) {
    for (int i = 0; i < lanes; ++i) to[i] = static_cast<std::int8_t>(v.at[i]);
  }

  static Float broadcast_f32(float value) {
    return each([value](int) { return value; });
  }
  static Float multiply(const Float& a, const Float& b) {
    return each([&](int i) { return a.at[i] * b.at[i]; });
  }
  static Float min(const Float& v, const Float& high) {
    return each([&](int i) { return v.at[i] > high.at[i] ? high.at[i] : v.at[i]; });
  }
  static Float divide(const Float& a, const Float& b) {
    return each([&](int i) { return a.at[i] / b.at[i]; });
  }
  static Float magnitude(const Float& v) {
    return each([&](int i) { return float_of(bits_of(v.at[i]) & 0x7FFFFFFFU); });
  }
  /// `yes` where the sign bit of v is set, else `no`.
  static Float where_negative(const Float& v, const Float& yes, const Float& no) {
    return each([&](int i) { return bits_of(v.at[i]) >> 31 != 0 ? yes.at[i] : no.at[i]; });
  }
  /// 2^n for n in [-126, 127], 0 for n = -127.
  static Float power_of_two(const LaneSum& n) {
    return each([&](int i) { return float_of((n.at[i] + 127U) << 23); });
  }
  static Float subtract_f32(const Float& a, const Float& b) {
    return each([&](int i) { return a.at[i] - b.at[i]; });
  }
  template <int Bits>
  static Float code_in_fraction(const LaneVector& packed) {
    constexpr std::uint32_t mask = (1U << Bits) - 1;
    return each([&](int i) { return float_of((packed.at[i] & mask) | 150U << 23); });
  }
  static Float add(const Float& a, const Float& b) {
    return each([&](int i) { return a.at[i] + b.at[i]; });
  }
  static Float fma(const Float& a, const Float& b, const Float& c) {
    return each([&](int i) { return __builtin_fmaf(a.at[i], b.at[i], c.at[i]); });
  }
  /// NaN stays NaN.
  static Float max(const Float& v, const Float& low) {
    return each([&](int i) { return v.at[i] < low.at[i] ? low.at[i] : v.at[i]; });
  }
  /// The largest lane, if none is NaN.
  static float largest_f32(const Float& v) {
    float largest = v.at[0];
    for (const float value : v.at) largest = value > largest ? value : largest;
    return largest;
  }
  /// Adds lane i and lane i + 8, then i + 4, then i + 2, then i + 1.
  static float sum_of_halves(const Float& v) {
    Float sum = v;
    for (int half = lanes / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) sum.at[i] += sum.at[i + half];
    }
    return sum.at[0];
  }
  static Float to_float(const LaneSum& v) {
    return each([&](int i) { return static_cast<float>(static_cast<std::int32_t>(v.at[i])); });
  }
  static Float of_bits(const LaneSum& v) {
    return each([&](int i) { return float_of(v.at[i]); });
  }
  static LaneSum round_to_i32(const Float& v) {
    return each([&](int i) {  // adding 2^23 with the sign of v rounds |v| <= 2^23 to a whole number, ties to even
      const float whole = float_of((bits_of(v.at[i]) & 0x80000000U) | 0x4B000000U);
      return static_cast<Sum>(static_cast<std::int32_t>((v.at[i] + whole) - whole));
    });
  }
  static LaneSum magnitude_bits(const Float& v) {
    return each([&](int i) { return bits_of(v.at[i]) & 0x7FFFFFFFU; });
  }
  static Float load_float(const void* from, FloatType type) {
    const auto* bytes = static_cast<const std::uint8_t*>(from);
    return each([bytes, type](int i) {
      if (type == FloatType::f32) {
        float value = 0;
        __builtin_memcpy(&value, bytes + 4 * i, sizeof value);
        return value;
      }
      std::uint16_t half = 0;
      __builtin_memcpy(&half, bytes + 2 * i, sizeof half);
      return float_of(type == FloatType::bf16 ? static_cast<std::uint32_t>(half) << 16 : widen_f16(half));
    });
  }
  static void store_float(float* to, const Float& v) { __builtin_memcpy(to, &v, sizeof v); }
  static void store_rounded(void* to, FloatType type, const Float& v) {
    if (type == FloatType::f32) {
      __builtin_memcpy(to, &v, sizeof v);
      return;
    }
    for (int i = 0; i < lanes; ++i) {
      const std::uint16_t half =
          type == FloatType::bf16 ? round_to_bf16(bits_of(v.at[i])) : round_to_f16(bits_of(v.at[i]));
      __builtin_memcpy(static_cast<std::uint8_t*>(to) + 2 * i, &half, 2);
    }
  }
};

}  // namespace
}  // namespace bittensor
