#pragma once

/// Traits of the AVX-VNNI kernels: those of AVX2, with products by the 256-bit VPDPBUSD.

#include "avx2.hpp"

namespace bittensor {
namespace {

struct AvxVnni : Avx2 {
  static constexpr Isa isa = Isa::avxvnni;
  static constexpr int int8_rows = 6;  // 6 rows x 1 tile: 12 sums and 2 weight planes of 16 registers
  static constexpr int decoded_rows = 96;

  static Sum add_signed_bytes(Sum sum, Vector v) { return _mm256_dpbusd_avx_epi32(sum, _mm256_set1_epi8(1), v); }

  static void settle(Vector& sum) { static_cast<void>(sum); }  // a step is one instruction

  template <int Bits, int MaxX>
  struct Dot {
    using Partial = __m256i;
    static constexpr int max_steps = 0;  // sums in int32: they never need widening
    static Partial zero() { return _mm256_setzero_si256(); }
    static Partial step(Partial sum, Vector weight, Vector x) { return _mm256_dpbusd_avx_epi32(sum, weight, x); }
    static Sum widen(Sum sum, Partial partial) { return _mm256_add_epi32(sum, partial); }
  };
};

}  // namespace
}  // namespace bittensor
