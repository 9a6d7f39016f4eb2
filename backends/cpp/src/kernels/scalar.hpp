#pragma once

/// Traits of the scalar kernels: a "vector" is eight bytes in a general register. Runs anywhere; little endian.

#include <cstdint>

#include "bittensor/kernel_set.hpp"

namespace bittensor {
namespace {

struct Scalar {
  static constexpr Isa isa = Isa::scalar;
  static constexpr int bytes = 8;
  static constexpr int max_rows = 2;  // rows of the largest dot tile
  using Vector = std::uint64_t;
  using Sum = std::uint32_t;  // int32 modulo 2^32: overflow of the unsigned type is defined

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

  /// Sums of products of unsigned weight codes and signed input values.
  template <int Bits>
  struct Dot {
    using Partial = Sum;
    static constexpr int max_blocks = 0;  // partial sums never need widening
    static Partial zero() { return 0; }
    static Partial step(Partial sum, Vector weight, Vector x) {
      for (int i = 0; i < bytes; ++i) {
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
};

}  // namespace
}  // namespace bittensor
