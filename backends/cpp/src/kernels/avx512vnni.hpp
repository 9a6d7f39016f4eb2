#pragma once

/// Traits of the AVX512-VNNI kernels: those of AVX-512, with products by VPDPBUSD.

#include "avx512.hpp"

namespace bittensor {
namespace {

struct Avx512Vnni : Avx512 {
  static constexpr Isa isa = Isa::avx512vnni;
  static constexpr int int8_rows = 4;  // 4 rows x 3 tiles: 12 sums, 12 results and 6 weight planes of 32 registers
  static constexpr int int8_tiles = 3;
  static constexpr int decoded_rows = 32;

  static Sum add_signed_bytes(Sum sum, Vector v) { return _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), v); }

  static void settle(Vector& sum) { static_cast<void>(sum); }  // a step is one instruction

  template <int Bits, int MaxX>
  struct Dot {
    using Partial = __m512i;
    static constexpr int max_steps = 0;  // sums in int32: they never need widening
    static Partial zero() { return _mm512_setzero_si512(); }
    static Partial step(Partial sum, Vector weight, Vector x) { return _mm512_dpbusd_epi32(sum, weight, x); }
    static Sum widen(Sum sum, Partial partial) { return _mm512_add_epi32(sum, partial); }
  };
};

}  // namespace
}  // namespace bittensor
