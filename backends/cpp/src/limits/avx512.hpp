#pragma once

/// Traits of the AVX-512 loops.

#include <immintrin.h>

#include "loops.hpp"

namespace bittensor {
namespace {

struct Avx512 {
  static constexpr Isa isa = Isa::avx512;
  static constexpr int bytes = 64;
  static constexpr int chains = 24;  // of 32 registers
  static constexpr int dot_products = 64;
  using Integers = __m512i;
  using Floats = __m512;

  static Integers integers(std::uint32_t value) { return _mm512_set1_epi32(static_cast<int>(value)); }
  static Integers dot(Integers sum, Integers a, Integers b) {
    const __m512i pairs = _mm512_maddubs_epi16(a, b);
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }
  static Integers load(const std::uint8_t* from) { return _mm512_load_si512(from); }
  static Integers exclusive_or(Integers a, Integers b) { return _mm512_xor_si512(a, b); }
  static void forget(Integers& value) { __asm__ volatile("" : "+v"(value)); }
  static std::uint64_t fold(Integers value) {
    std::uint64_t words[8];
    _mm512_storeu_si512(words, value);
    return words[0] ^ words[1] ^ words[2] ^ words[3] ^ words[4] ^ words[5] ^ words[6] ^ words[7];
  }

  static Floats floats(float value) { return _mm512_set1_ps(value); }
  static Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static void forget(Floats& value) { __asm__ volatile("" : "+v"(value)); }
  static std::uint64_t fold(Floats value) { return fold(_mm512_castps_si512(value)); }
};

}  // namespace
}  // namespace bittensor
