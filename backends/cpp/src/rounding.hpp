#pragma once

#include <cstdint>

namespace bittensor {

/// The quotient of non-negative numbers, rounded up.
constexpr std::int64_t ceil_divide(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

/// The least multiple of `unit` that is not below `value`.
constexpr std::int64_t round_up(std::int64_t value, std::int64_t unit) {
  return ceil_divide(value, unit) * unit;
}

}  // namespace bittensor
