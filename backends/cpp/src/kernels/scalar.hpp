#pragma once

/// Traits of the scalar kernels: a "vector" is eight bytes in a general register. Runs anywhere; little endian.

#include <cstddef>
#include <cstdint>

#include "bittensor/kernel_set.hpp"
#include "bittensor/linear_kernels.hpp"

namespace bittensor {
namespace {

struct Scalar {
  static constexpr Isa isa = Isa::scalar;
  static constexpr int bytes = 8;
  static constexpr int max_rows = 2;  // rows of the largest dot tile
  using Vector = std::uint64_t;
  using LaneVector = std::uint32_t;  // 4 bytes of each lane
  using Sum = std::uint32_t;         // int32 modulo 2^32: overflow of the unsigned type is defined

  static Vector load(const void* from) {
    Vector v;
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
  static LaneVector plane(LaneVector packed) {
    return static_cast<LaneVector>(plane<Bits, Plane>(Vector{packed}));
  }
  static Vector subtract(Vector v, std::int8_t shift) {
    Vector result = 0;
    for (int i = 0; i < bytes; ++i) {
      result |= static_cast<std::uint64_t>(static_cast<std::uint8_t>((v >> (8 * i)) - static_cast<std::uint64_t>(shift)))
                << (8 * i);
    }
    return result;
  }
  static Sum add_signed_bytes(Sum sum, Vector v) {
    for (int i = 0; i < bytes; ++i) sum += static_cast<Sum>(static_cast<std::int8_t>(v >> (8 * i)));
    return sum;
  }
  static std::int32_t total(Sum sum) { return static_cast<std::int32_t>(sum); }

  /// Sums of products of unsigned weight codes and signed values of magnitude up to MaxX.
  template <int Bits, int MaxX>
  struct Dot {
    using Partial = Sum;
    static constexpr int max_steps = 0;  // partial sums never need widening
    static Partial zero() { return 0; }
    template <class Bytes>
    static Partial step(Partial sum, Bytes weight, Bytes x) {
      for (std::size_t i = 0; i < sizeof(Bytes); ++i) {
        sum += static_cast<Sum>(static_cast<std::uint8_t>(weight >> (8 * i))) *
               static_cast<Sum>(static_cast<std::int8_t>(x >> (8 * i)));
      }
      return sum;
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

  // The linear: lanes run over weight rows.
  static constexpr int lanes = 1;
  static constexpr int linear_rows = 2;
  static constexpr int linear_tiles(int /*rows*/) { return 1; }
  using Float = float;

  static LaneVector load_lanes(const void* from) {
    LaneVector v = 0;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
  }
  static LaneVector broadcast4(const std::int8_t* from) { return load_lanes(from); }
  static Sum broadcast_i32(std::int32_t value) { return static_cast<Sum>(value); }
  static Sum add_i32(Sum a, Sum b) { return a + b; }
  static Sum multiply_i32(Sum a, Sum b) { return a * b; }
  static Sum max_i32(Sum a, Sum b) { return static_cast<std::int32_t>(a) > static_cast<std::int32_t>(b) ? a : b; }
  static std::int32_t largest_i32(Sum v) { return static_cast<std::int32_t>(v); }
  static std::int32_t sum_i32(Sum v) { return static_cast<std::int32_t>(v); }
  static Sum load_u8_as_i32(const std::uint8_t* from) { return *from; }
  static void store_as_i8(std::int8_t* to, Sum v) { *to = static_cast<std::int8_t>(v); }

  static Float broadcast_f32(float value) { return value; }
  static Float multiply(Float a, Float b) { return a * b; }
  static Float add(Float a, Float b) { return a + b; }
  static Float fma(Float a, Float b, Float c) { return __builtin_fmaf(a, b, c); }
  static Float to_float(Sum v) { return static_cast<Float>(static_cast<std::int32_t>(v)); }
  static Sum round_to_i32(Float v) {
    constexpr float whole = 12582912.0F;  // 1.5 * 2^23: adding it rounds |v| <= 127 to a whole number, ties to even
    return static_cast<Sum>(static_cast<std::int32_t>((v + whole) - whole));
  }
  static Sum magnitude_bits(Float v) {
    Sum bits = 0;
    __builtin_memcpy(&bits, &v, sizeof bits);
    return bits & 0x7FFFFFFFU;
  }
  static Float load_float(const void* from, FloatType type) {
    std::uint32_t bits = 0;
    if (type == FloatType::f32) {
      __builtin_memcpy(&bits, from, 4);
    } else {
      std::uint16_t half = 0;
      __builtin_memcpy(&half, from, 2);
      bits = type == FloatType::bf16 ? static_cast<std::uint32_t>(half) << 16 : widen_f16(half);
    }
    Float value = 0;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
  }
  static void store_float(float* to, Float v) { *to = v; }

  /// The bits of a binary16 value as binary32; exact.
  static std::uint32_t widen_f16(std::uint16_t half) {
    const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000U) << 16;
    const std::uint32_t exponent = half >> 10 & 0x1FU;
    const std::uint32_t fraction = half & 0x3FFU;
    if (exponent == 0x1F) return sign | 0x7F800000U | fraction << 13;
    if (exponent != 0) return sign | (exponent + 112) << 23 | fraction << 13;
    // subnormal: fraction * 2^-24
    const float value = static_cast<float>(fraction) * 0x1p-24F;
    std::uint32_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return sign | bits;
  }
};

}  // namespace
}  // namespace bittensor
