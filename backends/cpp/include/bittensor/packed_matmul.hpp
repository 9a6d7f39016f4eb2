#pragma once

/// The integer matrix product of packed codes (docs/numerics.md, section 2).

#include <cstdint>
#include <optional>

#include "bittensor/export.hpp"
#include "bittensor/isa.hpp"
#include "bittensor/pack.hpp"
#include "bittensor/parallel.hpp"

namespace bittensor {

/// Operands of `packed_matmul`. Rows follow each other without gaps. Exactly one of x_codes and x_words, and exactly
/// one of out_words and out_sums, is given.
struct PackedMatmul {
  std::int64_t rows = 0;          // M
  std::int64_t in_features = 0;   // K
  std::int64_t out_features = 0;  // N
  int bits = 4;

  const std::uint8_t* x_codes = nullptr;   // [M, K]
  const std::uint64_t* x_words = nullptr;  // [M, words_per_row(K, bits)]
  const std::uint64_t* weight = nullptr;   // [N, words_per_row(K, bits)]
  const std::int32_t* bias = nullptr;      // [N], or null
  int x_zero = 0;
  int weight_zero = 0;

  const float* scale = nullptr;  // [scale_count], or null
  std::int64_t scale_count = 0;  // 1 or N
  int out_zero = 0;

  std::uint64_t* out_words = nullptr;  // [M, words_per_row(N, bits)]
  std::int32_t* out_sums = nullptr;    // [M, N]
};

/// Largest magnitude an accumulator can reach; beyond int32 the product is refused.
constexpr std::int64_t largest_sum(
    std::int64_t in_features, int bits, int x_zero, int weight_zero, std::int64_t largest_bias) {
  const auto centered = [bits](int zero) {
    const int above = (1 << bits) - 1 - zero;
    return static_cast<std::int64_t>(zero > above ? zero : above);
  };
  return in_features * centered(x_zero) * centered(weight_zero) + largest_bias;
}

/// Computes the product. Returns the first x code above max_code(bits), if any; the result is then unspecified.
/// The caller has checked shapes, zero points (codes), scales (finite) and `largest_sum`.
[[nodiscard]] BITTENSOR_API std::optional<CodeOutOfRange> packed_matmul(
    const PackedMatmul& product, const KernelSet& kernels, const ParallelFor& parallel = {});

}  // namespace bittensor
