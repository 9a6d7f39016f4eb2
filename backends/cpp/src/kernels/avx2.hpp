#pragma once

/// Traits of the AVX2 kernels: 32 bytes to a vector, products by VPMADDUBSW.

#include <immintrin.h>

#include <cstdint>

#include "bittensor/kernel_set.hpp"
#include "bittensor/linear_kernels.hpp"

namespace bittensor {
namespace {

struct Avx2 {
  static constexpr Isa isa = Isa::avx2;
  static constexpr int bytes = 32;
  static constexpr int max_rows = 2;  // 2 rows x 4 columns: 8 accumulators, 4 weight planes and 2 spare of 16 registers
  using Vector = __m256i;
  using Sum = __m256i;

  static Vector load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
  static Vector load_words(const std::uint64_t* words, std::int64_t count) {
    const __m256i lane = _mm256_set_epi64x(3, 2, 1, 0);
    const __m256i mask = _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), lane);
    return _mm256_maskload_epi64(reinterpret_cast<const long long*>(words), mask);
  }
  static void store(void* to, Vector v) { _mm256_storeu_si256(static_cast<__m256i*>(to), v); }
  static Vector zero() { return _mm256_setzero_si256(); }
  static Vector bit_or(Vector a, Vector b) { return _mm256_or_si256(a, b); }
  static std::uint8_t or_bytes(Vector v) {
    __m128i half = _mm_or_si128(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    half = _mm_or_si128(half, _mm_srli_si128(half, 8));
    auto word = static_cast<std::uint64_t>(_mm_cvtsi128_si64(half));
    word |= word >> 32;
    word |= word >> 16;
    return static_cast<std::uint8_t>(word | word >> 8);
  }

  template <int Bits>
  static void pack(Vector codes, void* out) {
    if constexpr (Bits == 8) {
      store(out, codes);
    } else if constexpr (Bits == 4) {
      // low + 16 * high of each pair, in 16 bits
      const __m256i pairs = _mm256_maddubs_epi16(codes, _mm256_set1_epi16(0x1001));
      const __m256i packed = _mm256_packus_epi16(pairs, pairs);
      const __m256i ordered = _mm256_permute4x64_epi64(packed, 0b1000);
      _mm_storeu_si128(static_cast<__m128i*>(out), _mm256_castsi256_si128(ordered));
    } else if constexpr (Bits == 2) {
      const __m256i pairs = _mm256_maddubs_epi16(codes, _mm256_set1_epi16(0x0401));
      const __m256i quads = _mm256_madd_epi16(pairs, _mm256_set1_epi32(0x00100001));
      const __m256i first_bytes = _mm256_shuffle_epi8(quads, _mm256_set1_epi32(0x0C080400));
      const __m256i ordered = _mm256_permutevar8x32_epi32(first_bytes, _mm256_set_epi32(0, 0, 0, 0, 0, 0, 4, 0));
      _mm_storel_epi64(static_cast<__m128i*>(out), _mm256_castsi256_si128(ordered));
    } else {
      const int packed = _mm256_movemask_epi8(_mm256_slli_epi16(codes, 7));
      __builtin_memcpy(out, &packed, 4);
    }
  }
  template <int Bits>
  static Vector unpack(const void* in) {
    if constexpr (Bits == 8) {
      return load(in);
    } else if constexpr (Bits == 4) {
      const __m256i bytes16 = _mm256_cvtepu8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(in)));
      return _mm256_and_si256(_mm256_or_si256(bytes16, _mm256_slli_epi16(bytes16, 4)), _mm256_set1_epi8(15));
    } else if constexpr (Bits == 2) {
      const __m256i bytes32 = _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(in)));
      const __m256i halves = _mm256_or_si256(bytes32, _mm256_slli_epi32(bytes32, 12));
      return _mm256_and_si256(_mm256_or_si256(halves, _mm256_slli_epi32(halves, 6)), _mm256_set1_epi8(3));
    } else {
      int packed = 0;
      __builtin_memcpy(&packed, in, 4);
      // byte i of the vector takes byte i / 8 of the input, then tests bit i % 8
      const __m256i spread = _mm256_shuffle_epi8(
          _mm256_set1_epi32(packed), _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0));
      const __m256i bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201U));
      const __m256i is_set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
      return _mm256_and_si256(is_set, _mm256_set1_epi8(1));
    }
  }

  template <int Bits, int Plane>
  static Vector plane(Vector packed) {
    if constexpr (Bits == 8) {
      return packed;
    } else {
      const __m256i shifted = Plane == 0 ? packed : _mm256_srli_epi16(packed, Bits * Plane);
      return _mm256_and_si256(shifted, _mm256_set1_epi8((1 << Bits) - 1));
    }
  }
  static Vector subtract(Vector v, std::int8_t shift) { return _mm256_sub_epi8(v, _mm256_set1_epi8(shift)); }
  static Sum zero_sum() { return _mm256_setzero_si256(); }
  static Sum add_signed_bytes(Sum sum, Vector v) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), v);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static std::int32_t total(Sum sum) {
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    half = _mm_add_epi32(half, _mm_srli_si128(half, 8));
    half = _mm_add_epi32(half, _mm_srli_si128(half, 4));
    return _mm_cvtsi128_si32(half);
  }

  /// Holds the compiler to the order in which sums grow. Of a loop of VPMADDUBSW and VPADDW gcc 12 takes many products
  /// before it adds the first, and has no registers for them.
  static void settle(Vector& sum) { asm volatile("" : "+x"(sum)); }

  /// Sums of products of unsigned weight codes and signed values of magnitude up to MaxX.
  template <int Bits, int MaxX>
  struct Dot {
    // Below 8 bits two products fit int16 with room to spare, and sums of them stay there for max_steps steps.
    using Partial = __m256i;
    static constexpr int max_steps = 32767 / (2 * ((1 << Bits) - 1) * MaxX);
    static Partial zero() { return _mm256_setzero_si256(); }
    static Partial step(Partial sum, Vector weight, Vector x) {
      return _mm256_add_epi16(sum, _mm256_maddubs_epi16(weight, x));
    }
    static Sum widen(Sum sum, Partial partial) {
      return _mm256_add_epi32(sum, _mm256_madd_epi16(partial, _mm256_set1_epi16(1)));
    }
  };
  /// At 8 bits VPMADDUBSW would saturate (2 * 255 * 127 > 32767), so both operands are widened to int16 first. The sum
  /// over a lane's four bytes must stay in the lane: even and odd bytes are multiplied apart.
  template <int MaxX>
  struct Dot<8, MaxX> {
    using Partial = __m256i;
    static constexpr int max_steps = 0;
    static Partial zero() { return _mm256_setzero_si256(); }
    static Partial step(Partial sum, Vector weight, Vector x) {
      const __m256i even = _mm256_madd_epi16(
          _mm256_and_si256(weight, _mm256_set1_epi16(255)), _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8));
      const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(weight, 8), _mm256_srai_epi16(x, 8));
      return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
    }
    static Sum widen(Sum sum, Partial partial) { return _mm256_add_epi32(sum, partial); }
  };

  /// Each 128-bit lane of the sum of four transposed vectors holds one partial total of every vector.
  static void store_totals(const Sum (&sums)[4], std::int32_t* out) {
    const __m256i s01 =
        _mm256_add_epi32(_mm256_unpacklo_epi32(sums[0], sums[1]), _mm256_unpackhi_epi32(sums[0], sums[1]));
    const __m256i s23 =
        _mm256_add_epi32(_mm256_unpacklo_epi32(sums[2], sums[3]), _mm256_unpackhi_epi32(sums[2], sums[3]));
    const __m256i lanes = _mm256_add_epi32(_mm256_unpacklo_epi64(s01, s23), _mm256_unpackhi_epi64(s01, s23));
    const __m128i totals = _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), totals);
  }

  static __m256i requantize8(const CodeEpilogue& row, int max, int n) {
    const auto at = [n](const std::int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + n)); };
    __m256i code = _mm256_add_epi32(_mm256_add_epi32(at(row.acc), at(row.column_add)), _mm256_set1_epi32(row.row_add));
    if (row.scale != nullptr) {
      // Clamping before the rounding (to whole numbers) changes nothing and keeps the conversion in range.
      __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(code), _mm256_loadu_ps(row.scale + n));
      value = _mm256_max_ps(value, _mm256_set1_ps(static_cast<float>(-row.out_zero)));
      value = _mm256_min_ps(value, _mm256_set1_ps(static_cast<float>(max - row.out_zero)));
      value = _mm256_round_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      code = _mm256_add_epi32(_mm256_cvtps_epi32(value), _mm256_set1_epi32(row.out_zero));
    }
    code = _mm256_max_epi32(code, _mm256_setzero_si256());
    return _mm256_min_epi32(code, _mm256_set1_epi32(max));
  }
  static void requantize(const CodeEpilogue& row, int max, std::uint8_t* codes) {
    for (int n = 0; n < block_columns; n += 32) {
      const __m256i low = _mm256_packus_epi32(requantize8(row, max, n), requantize8(row, max, n + 8));
      const __m256i high = _mm256_packus_epi32(requantize8(row, max, n + 16), requantize8(row, max, n + 24));
      const __m256i mixed = _mm256_packus_epi16(low, high);
      store(codes + n, _mm256_permutevar8x32_epi32(mixed, _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0)));
    }
  }

  // The linear: lanes run over weight rows.
  using LaneSum = Sum;
  using LaneVector = __m256i;
  using Float = __m256;
  static constexpr int lanes = 8;
  static constexpr int int8_rows = 4;  // 4 rows x 1 tile: 8 partial sums of 16 registers
  static constexpr int int8_tiles = 1;
  static constexpr int decoded_rows = 24;  // from so many on codes are decoded once
  static constexpr int panel_rows = 6;     // 6 rows x 1 tile: 12 sums and 2 weights of 16 registers
  static constexpr int panel_tiles = 1;
  static constexpr int panel_tiles_single_row = 4;
  static constexpr int codes_product_rows = 4;
  static constexpr int codes_product_sums = 8;
  static constexpr int table_bits = 2;  // a register holds the values of 8 codes

  static LaneVector load_lanes(const void* from) { return load(from); }
  /// Lanes run over columns: four bytes to each of the lanes that a block of that row fills.
  template <int Blocks>
  static LaneVector broadcast_blocks(const std::uint8_t* row, const std::int64_t (&offset)[Blocks]) {
    std::int32_t four[Blocks];
    for (int i = 0; i < Blocks; ++i) __builtin_memcpy(&four[i], row + offset[i], sizeof four[i]);
    __m256i v = _mm256_set1_epi32(four[0]);
    if constexpr (Blocks == 2) v = _mm256_blend_epi32(v, _mm256_set1_epi32(four[1]), 0xF0);
    return v;
  }
  template <int Bits>
  static LaneVector shift_down(LaneVector v) {
    return _mm256_srli_epi32(v, Bits);
  }
  /// Lane i of vector j becomes lane j of vector i.
  static void transpose(const void* const (&from)[lanes], std::uint32_t* to) {
    __m256i pairs[8];
    __m256i fours[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 2) {
      const __m256i even = load(from[i]);
      const __m256i odd = load(from[i + 1]);
      pairs[i] = _mm256_unpacklo_epi32(even, odd);
      pairs[i + 1] = _mm256_unpackhi_epi32(even, odd);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 4) {
      fours[i] = _mm256_unpacklo_epi64(pairs[i], pairs[i + 2]);
      fours[i + 1] = _mm256_unpackhi_epi64(pairs[i], pairs[i + 2]);
      fours[i + 2] = _mm256_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
      fours[i + 3] = _mm256_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 4; ++i) {
      store(to + i * 8, _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x20));
      store(to + (i + 4) * 8, _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x31));
    }
  }
  static LaneVector shift_right(LaneVector v, LaneVector bits) { return _mm256_srlv_epi32(v, bits); }
  /// The entry that the low 3 bits of each lane name.
  static Float lookup(Float table, LaneVector index) { return _mm256_permutevar8x32_ps(table, index); }
  static LaneVector broadcast4(const std::int8_t* from) {
    std::int32_t four = 0;
    __builtin_memcpy(&four, from, sizeof four);
    return _mm256_set1_epi32(four);
  }
  static Sum broadcast_i32(std::int32_t value) { return _mm256_set1_epi32(value); }
  static Sum add_i32(Sum a, Sum b) { return _mm256_add_epi32(a, b); }
  static Sum multiply_i32(Sum a, Sum b) { return _mm256_mullo_epi32(a, b); }
  static Sum max_i32(Sum a, Sum b) { return _mm256_max_epi32(a, b); }
  /// Byte `Index` of each lane, the lowest first, with its sign.
  template <int Index>
  static Sum signed_byte(Sum v) {
    return _mm256_srai_epi32(_mm256_slli_epi32(v, 24 - 8 * Index), 24);
  }
  static std::int32_t largest_i32(Sum v) {
    __m128i half = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    half = _mm_max_epi32(half, _mm_srli_si128(half, 8));
    half = _mm_max_epi32(half, _mm_srli_si128(half, 4));
    return _mm_cvtsi128_si32(half);
  }
  static std::int32_t sum_i32(Sum v) { return total(v); }
  /// In lane i, all lanes of vector i, combined by `op`.
  template <class Op>
  static Sum across_lanes(const Sum (&v)[lanes], const Op& op) {
    const auto four = [&](const Sum* from) {  // in each 128 bits a half of what is left of four vectors
      const Sum low = op(_mm256_unpacklo_epi32(from[0], from[1]), _mm256_unpackhi_epi32(from[0], from[1]));
      const Sum high = op(_mm256_unpacklo_epi32(from[2], from[3]), _mm256_unpackhi_epi32(from[2], from[3]));
      return op(_mm256_unpacklo_epi64(low, high), _mm256_unpackhi_epi64(low, high));
    };
    const Sum a = four(v);
    const Sum b = four(v + 4);
    return op(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
  }
  static Sum load_u8_as_i32(const std::uint8_t* from) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  }
  static void store_as_i8(std::int8_t* to, Sum v) {
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(words, words));
  }

  static Float broadcast_f32(float value) { return _mm256_set1_ps(value); }
  static Float multiply(Float a, Float b) { return _mm256_mul_ps(a, b); }
  /// NaN stays NaN.
  static Float min(Float v, Float high) { return _mm256_min_ps(high, v); }
  static Float divide(Float a, Float b) { return _mm256_div_ps(a, b); }
  static Float magnitude(Float v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0F), v); }
  /// `yes` where the sign bit of v is set, else `no`.
  static Float where_negative(Float v, Float yes, Float no) { return _mm256_blendv_ps(no, yes, v); }
  /// 2^n for n in [-126, 127], 0 for n = -127.
  static Float power_of_two(LaneSum n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  }
  static Float subtract_f32(Float a, Float b) { return _mm256_sub_ps(a, b); }
  template <int Bits>
  static Float code_in_fraction(LaneVector packed) {
    const __m256i code = _mm256_and_si256(packed, _mm256_set1_epi32((1 << Bits) - 1));
    return _mm256_castsi256_ps(_mm256_or_si256(code, _mm256_set1_epi32(150 << 23)));
  }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float to_float(Sum v) { return _mm256_cvtepi32_ps(v); }
  static Float of_bits(Sum v) { return _mm256_castsi256_ps(v); }
  static Sum round_to_i32(Float v) {
    return _mm256_cvtps_epi32(_mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static Sum magnitude_bits(Float v) { return _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7FFFFFFF)); }
  static Float load_float(const void* from, FloatType type) {
    if (type == FloatType::f32) return _mm256_loadu_ps(static_cast<const float*>(from));
    const __m128i half = _mm_loadu_si128(static_cast<const __m128i*>(from));
    if (type == FloatType::f16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static void store_float(float* to, Float v) { _mm256_storeu_ps(to, v); }
  /// NaN stays NaN: VMAXPS returns its second operand if one is NaN.
  static Float max(Float v, Float low) { return _mm256_max_ps(low, v); }
  /// The largest lane, if none is NaN.
  static float largest_f32(Float v) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
  }
  /// Adds lane i and lane i + 4, then i + 2, then i + 1.
  static float sum_of_halves(Float v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }
  static void store_rounded(void* to, FloatType type, Float v) {
    if (type == FloatType::f32) {
      _mm256_storeu_ps(static_cast<float*>(to), v);
      return;
    }
    __m128i half;
    if (type == FloatType::f16) {
      half = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    } else {
      const __m256i bits = _mm256_castps_si256(v);
      const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
      const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
      const __m256i nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
      const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
      const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, nan, is_nan), 16);
      half = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    }
    _mm_storeu_si128(static_cast<__m128i*>(to), half);
  }
};

}  // namespace
}  // namespace bittensor
