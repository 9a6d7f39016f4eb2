#pragma once

/// Traits of the AVX2 loops.

#include <immintrin.h>

#include "loops.hpp"

namespace bittensor {
namespace {

struct Avx2 {
  static constexpr Isa isa = Isa::avx2;
  static constexpr int bytes = 32;
  static constexpr int chains = 12;  // of 16 registers
  static constexpr int dot_products = 32;
  using Integers = __m256i;
  using Floats = __m256;

  static Integers integers(std::uint32_t value) { return _mm256_set1_epi32(static_cast<int>(value)); }
  static Integers dot(Integers sum, Integers a, Integers b) {
    const __m256i pairs = _mm256_maddubs_epi16(a, b);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static Integers load(const std::uint8_t* from) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(from)); }
  static Integers exclusive_or(Integers a, Integers b) { return _mm256_xor_si256(a, b); }
  static void forget(Integers& value) { __asm__ volatile("" : "+x"(value)); }
  static std::uint64_t fold(Integers value) {
    std::uint64_t words[4];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(words), value);
    return words[0] ^ words[1] ^ words[2] ^ words[3];
  }

  static Floats floats(float value) { return _mm256_set1_ps(value); }
  static Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static void forget(Floats& value) { __asm__ volatile("" : "+x"(value)); }
  static std::uint64_t fold(Floats value) { return fold(_mm256_castps_si256(value)); }
};

}  // namespace
}  // namespace bittensor
