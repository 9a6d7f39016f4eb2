#pragma once

/// Traits of the AVX-512 kernels (F, BW, DQ, VL; no VNNI): 64 bytes to a vector, products by VPMADDUBSW.

#include <immintrin.h>

#include <cstdint>

#include "bittensor/kernel_set.hpp"
#include "bittensor/linear_kernels.hpp"

namespace bittensor {
namespace {

struct Avx512 {
  static constexpr Isa isa = Isa::avx512;
  static constexpr int bytes = 64;
  static constexpr int max_rows = 4;  // 4 rows x 4 columns: 16 accumulators and 4 weight planes of 32 registers
  using Vector = __m512i;
  using Sum = __m512i;

  static Vector load(const void* from) { return _mm512_loadu_si512(from); }
  static Vector load_words(const std::uint64_t* words, std::int64_t count) {
    return _mm512_maskz_loadu_epi64(static_cast<__mmask8>((1U << count) - 1), words);
  }
  static void store(void* to, Vector v) { _mm512_storeu_si512(to, v); }
  static Vector zero() { return _mm512_setzero_si512(); }
  static Vector bit_or(Vector a, Vector b) { return _mm512_or_si512(a, b); }
  static std::uint8_t or_bytes(Vector v) {
    auto word = static_cast<std::uint64_t>(_mm512_reduce_or_epi64(v));
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
      const __m512i pairs = _mm512_maddubs_epi16(codes, _mm512_set1_epi16(0x1001));
      _mm256_storeu_si256(static_cast<__m256i*>(out), _mm512_cvtepi16_epi8(pairs));
    } else if constexpr (Bits == 2) {
      const __m512i pairs = _mm512_maddubs_epi16(codes, _mm512_set1_epi16(0x0401));
      const __m512i quads = _mm512_madd_epi16(pairs, _mm512_set1_epi32(0x00100001));
      _mm_storeu_si128(static_cast<__m128i*>(out), _mm512_cvtepi32_epi8(quads));
    } else {
      const std::uint64_t packed = _mm512_test_epi8_mask(codes, _mm512_set1_epi8(1));
      __builtin_memcpy(out, &packed, 8);
    }
  }
  template <int Bits>
  static Vector unpack(const void* in) {
    if constexpr (Bits == 8) {
      return load(in);
    } else if constexpr (Bits == 4) {
      const __m512i bytes16 = _mm512_cvtepu8_epi16(_mm256_loadu_si256(static_cast<const __m256i*>(in)));
      return _mm512_and_si512(_mm512_or_si512(bytes16, _mm512_slli_epi16(bytes16, 4)), _mm512_set1_epi8(15));
    } else if constexpr (Bits == 2) {
      const __m512i bytes32 = _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(in)));
      const __m512i halves = _mm512_or_si512(bytes32, _mm512_slli_epi32(bytes32, 12));
      return _mm512_and_si512(_mm512_or_si512(halves, _mm512_slli_epi32(halves, 6)), _mm512_set1_epi8(3));
    } else {
      std::uint64_t packed = 0;
      __builtin_memcpy(&packed, in, 8);
      return _mm512_maskz_set1_epi8(packed, 1);
    }
  }

  template <int Bits, int Plane>
  static Vector plane(Vector packed) {
    if constexpr (Bits == 8) {
      return packed;
    } else {
      const __m512i shifted = Plane == 0 ? packed : _mm512_srli_epi16(packed, Bits * Plane);
      return _mm512_and_si512(shifted, _mm512_set1_epi8((1 << Bits) - 1));
    }
  }
  static Vector subtract(Vector v, std::int8_t shift) { return _mm512_sub_epi8(v, _mm512_set1_epi8(shift)); }
  static Sum zero_sum() { return _mm512_setzero_si512(); }
  static Sum add_signed_bytes(Sum sum, Vector v) {
    const __m512i pairs = _mm512_maddubs_epi16(_mm512_set1_epi8(1), v);
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }
  static std::int32_t total(Sum sum) { return _mm512_reduce_add_epi32(sum); }

  /// Holds the compiler to the order in which sums grow. Of a loop of VPMADDUBSW and VPADDW gcc 12 takes many products
  /// before it adds the first, and has no registers for them.
  static void settle(Vector& sum) { asm volatile("" : "+v"(sum)); }

  /// Sums of products of unsigned weight codes and signed values of magnitude up to MaxX.
  template <int Bits, int MaxX>
  struct Dot {
    // Below 8 bits two products fit int16 with room to spare, and sums of them stay there for max_steps steps.
    using Partial = __m512i;
    static constexpr int max_steps = 32767 / (2 * ((1 << Bits) - 1) * MaxX);
    static Partial zero() { return _mm512_setzero_si512(); }
    static Partial step(Partial sum, Vector weight, Vector x) {
      return _mm512_add_epi16(sum, _mm512_maddubs_epi16(weight, x));
    }
    static Sum widen(Sum sum, Partial partial) {
      return _mm512_add_epi32(sum, _mm512_madd_epi16(partial, _mm512_set1_epi16(1)));
    }
  };
  /// At 8 bits VPMADDUBSW would saturate (2 * 255 * 127 > 32767), so both operands are widened to int16 first. The sum
  /// over a lane's four bytes must stay in the lane: even and odd bytes are multiplied apart.
  template <int MaxX>
  struct Dot<8, MaxX> {
    using Partial = __m512i;
    static constexpr int max_steps = 0;
    static Partial zero() { return _mm512_setzero_si512(); }
    static Partial step(Partial sum, Vector weight, Vector x) {
      const __m512i even = _mm512_madd_epi16(
          _mm512_and_si512(weight, _mm512_set1_epi16(255)), _mm512_srai_epi16(_mm512_slli_epi16(x, 8), 8));
      const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(weight, 8), _mm512_srai_epi16(x, 8));
      return _mm512_add_epi32(sum, _mm512_add_epi32(even, odd));
    }
    static Sum widen(Sum sum, Partial partial) { return _mm512_add_epi32(sum, partial); }
  };

  /// Each 128-bit lane of the sum of four transposed vectors holds one partial total of every vector.
  static void store_totals(const Sum (&sums)[4], std::int32_t* out) {
    const __m512i s01 =
        _mm512_add_epi32(_mm512_unpacklo_epi32(sums[0], sums[1]), _mm512_unpackhi_epi32(sums[0], sums[1]));
    const __m512i s23 =
        _mm512_add_epi32(_mm512_unpacklo_epi32(sums[2], sums[3]), _mm512_unpackhi_epi32(sums[2], sums[3]));
    const __m512i lanes = _mm512_add_epi32(_mm512_unpacklo_epi64(s01, s23), _mm512_unpackhi_epi64(s01, s23));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(lanes), _mm512_extracti64x4_epi64(lanes, 1));
    const __m128i totals = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), totals);
  }

  static __m512i requantize16(const CodeEpilogue& row, int max, int n) {
    __m512i code = _mm512_add_epi32(
        _mm512_add_epi32(_mm512_loadu_si512(row.acc + n), _mm512_loadu_si512(row.column_add + n)),
        _mm512_set1_epi32(row.row_add));
    if (row.scale != nullptr) {
      // Clamping before the rounding (to whole numbers) changes nothing and keeps the conversion in range.
      __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(code), _mm512_loadu_ps(row.scale + n));
      value = _mm512_max_ps(value, _mm512_set1_ps(static_cast<float>(-row.out_zero)));
      value = _mm512_min_ps(value, _mm512_set1_ps(static_cast<float>(max - row.out_zero)));
      code = _mm512_cvt_roundps_epi32(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      code = _mm512_add_epi32(code, _mm512_set1_epi32(row.out_zero));
    }
    code = _mm512_max_epi32(code, _mm512_setzero_si512());
    return _mm512_min_epi32(code, _mm512_set1_epi32(max));
  }
  /// The codes leave in one piece, so that who reads them next need not wait for a memory of four.
  static void requantize(const CodeEpilogue& row, int max, std::uint8_t* codes) {
    static_assert(block_columns == 64);
    const __m512i low = _mm512_packus_epi32(requantize16(row, max, 0), requantize16(row, max, 16));
    const __m512i high = _mm512_packus_epi32(requantize16(row, max, 32), requantize16(row, max, 48));
    const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    store(codes, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high)));
  }

  // The linear: lanes run over weight rows.
  using LaneSum = Sum;
  using LaneVector = __m512i;
  using Float = __m512;
  static constexpr int lanes = 16;
  static constexpr int int8_rows = 5;  // 5 rows x 2 tiles: 10 partial sums, 10 sums and 4 weight planes of 32 registers
  static constexpr int int8_tiles = 2;
  static constexpr int decoded_rows = 20;  // from so many on codes are decoded once
  static constexpr int panel_rows = 6;     // 6 rows x 4 tiles: 24 sums and 4 weights of 32 registers
  static constexpr int panel_tiles = 4;
  static constexpr int panel_tiles_single_row = 8;
  static constexpr int codes_product_rows = 4;
  static constexpr int codes_product_sums = 16;
  static constexpr int table_bits = 4;  // a register holds the values of 16 codes

  static LaneVector load_lanes(const void* from) { return load(from); }
  /// Lanes run over columns: four bytes to each of the lanes that a block of that row fills.
  template <int Blocks>
  static LaneVector broadcast_blocks(const std::uint8_t* row, const std::int64_t (&offset)[Blocks]) {
    std::int32_t four[Blocks];
    for (int i = 0; i < Blocks; ++i) __builtin_memcpy(&four[i], row + offset[i], sizeof four[i]);
    __m512i v = _mm512_set1_epi32(four[0]);
    if constexpr (Blocks == 2) v = _mm512_mask_set1_epi32(v, 0xFF00, four[1]);
    if constexpr (Blocks == 4) {
      v = _mm512_mask_set1_epi32(v, 0x00F0, four[1]);
      v = _mm512_mask_set1_epi32(v, 0x0F00, four[2]);
      v = _mm512_mask_set1_epi32(v, 0xF000, four[3]);
    }
    return v;
  }
  template <int Bits>
  static LaneVector shift_down(LaneVector v) {
    return _mm512_srli_epi32(v, Bits);
  }
  /// Lane i of vector j becomes lane j of vector i.
  [[gnu::always_inline]] static void transpose(LaneVector (&v)[lanes]) {
    __m512i pairs[16];
    __m512i fours[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
      pairs[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
      pairs[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) {
      fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
      fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
      fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
      fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    // Each 128-bit lane of fours[4 * j + i] has four values of row 4 * lane + i.
#pragma GCC unroll 16
    for (int i = 0; i < 4; ++i) {
      const __m512i low = _mm512_shuffle_i32x4(fours[i], fours[4 + i], 0x88);
      const __m512i low_odd = _mm512_shuffle_i32x4(fours[i], fours[4 + i], 0xDD);
      const __m512i high = _mm512_shuffle_i32x4(fours[8 + i], fours[12 + i], 0x88);
      const __m512i high_odd = _mm512_shuffle_i32x4(fours[8 + i], fours[12 + i], 0xDD);
      v[i] = _mm512_shuffle_i32x4(low, high, 0x88);
      v[4 + i] = _mm512_shuffle_i32x4(low_odd, high_odd, 0x88);
      v[8 + i] = _mm512_shuffle_i32x4(low, high, 0xDD);
      v[12 + i] = _mm512_shuffle_i32x4(low_odd, high_odd, 0xDD);
    }
  }
  static void transpose(const void* const (&from)[lanes], std::uint32_t* to) {
    __m512i v[lanes];
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) v[i] = load(from[i]);
    transpose(v);
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) store(to + i * lanes, v[i]);
  }
  static LaneVector shift_right(LaneVector v, LaneVector bits) { return _mm512_srlv_epi32(v, bits); }
  /// The entry that the low 4 bits of each lane name.
  static Float lookup(Float table, LaneVector index) { return _mm512_permutexvar_ps(index, table); }
  static LaneVector broadcast4(const std::int8_t* from) {
    std::int32_t four = 0;
    __builtin_memcpy(&four, from, sizeof four);
    return _mm512_set1_epi32(four);
  }
  static Sum broadcast_i32(std::int32_t value) { return _mm512_set1_epi32(value); }
  static Sum add_i32(Sum a, Sum b) { return _mm512_add_epi32(a, b); }
  static Sum multiply_i32(Sum a, Sum b) { return _mm512_mullo_epi32(a, b); }
  static Sum max_i32(Sum a, Sum b) { return _mm512_max_epi32(a, b); }
  /// Byte `Index` of each lane, the lowest first, with its sign.
  template <int Index>
  static Sum signed_byte(Sum v) {
    return _mm512_srai_epi32(_mm512_slli_epi32(v, 24 - 8 * Index), 24);
  }
  static std::int32_t largest_i32(Sum v) { return _mm512_reduce_max_epi32(v); }
  /// In lane i, all lanes of vector i, combined by `op`.
  template <class Op>
  static Sum across_lanes(const Sum (&v)[lanes], const Op& op) {
    Sum fours[4];  // in each 128 bits a part of what is left of four vectors
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Sum* const four = v + 4 * i;
      const Sum low = op(_mm512_unpacklo_epi32(four[0], four[1]), _mm512_unpackhi_epi32(four[0], four[1]));
      const Sum high = op(_mm512_unpacklo_epi32(four[2], four[3]), _mm512_unpackhi_epi32(four[2], four[3]));
      fours[i] = op(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
    }
    const auto join = [&op](Sum a, Sum b) {
      return op(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xDD));
    };
    return join(join(fours[0], fours[1]), join(fours[2], fours[3]));
  }
  static std::int32_t sum_i32(Sum v) { return _mm512_reduce_add_epi32(v); }
  static Sum load_u8_as_i32(const std::uint8_t* from) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static void store_as_i8(std::int8_t* to, Sum v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(v));
  }

  static Float broadcast_f32(float value) { return _mm512_set1_ps(value); }
  static Float multiply(Float a, Float b) { return _mm512_mul_ps(a, b); }
  /// NaN stays NaN.
  static Float min(Float v, Float high) { return _mm512_min_ps(high, v); }
  static Float divide(Float a, Float b) { return _mm512_div_ps(a, b); }
  static Float magnitude(Float v) { return _mm512_abs_ps(v); }
  /// `yes` where the sign bit of v is set, else `no`.
  static Float where_negative(Float v, Float yes, Float no) {
    return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(v)), no, yes);
  }
  /// 2^n for n in [-126, 127], 0 for n = -127.
  static Float power_of_two(LaneSum n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
  }
  static Float subtract_f32(Float a, Float b) { return _mm512_sub_ps(a, b); }
  template <int Bits>
  static Float code_in_fraction(LaneVector packed) {
    constexpr int and_or = 0xEA;  // (a & b) | c
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(packed, _mm512_set1_epi32((1 << Bits) - 1), _mm512_set1_epi32(150 << 23), and_or));
  }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float to_float(Sum v) { return _mm512_cvtepi32_ps(v); }
  static Float of_bits(Sum v) { return _mm512_castsi512_ps(v); }
  static Sum round_to_i32(Float v) {
    return _mm512_cvt_roundps_epi32(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static Sum magnitude_bits(Float v) { return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7FFFFFFF)); }
  static Float load_float(const void* from, FloatType type) {
    if (type == FloatType::f32) return _mm512_loadu_ps(from);
    const __m256i half = _mm256_loadu_si256(static_cast<const __m256i*>(from));
    if (type == FloatType::f16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static void store_float(float* to, Float v) { _mm512_storeu_ps(to, v); }
  /// NaN stays NaN: VMAXPS returns its second operand if one is NaN.
  static Float max(Float v, Float low) { return _mm512_max_ps(low, v); }
  /// The largest lane, if none is NaN.
  static float largest_f32(Float v) { return _mm512_reduce_max_ps(v); }
  /// Adds lane i and lane i + 8, then i + 4, then i + 2, then i + 1.
  static float sum_of_halves(Float v) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }
  static void store_rounded(void* to, FloatType type, Float v) {
    if (type == FloatType::f32) {
      _mm512_storeu_ps(to, v);
      return;
    }
    __m256i half;
    if (type == FloatType::f16) {
      half = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    } else {
      const __m512i bits = _mm512_castps_si512(v);
      const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
      const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
      const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
      const __m512i kept = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
      half = _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
    }
    _mm256_storeu_si256(static_cast<__m256i*>(to), half);
  }
};

}  // namespace
}  // namespace bittensor
