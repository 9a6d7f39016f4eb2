#pragma once

/// From accumulators to results, written once for every instruction set V (a traits class).

#include <cstdint>

#include "bittensor/kernel_set.hpp"
#include "packing.hpp"

namespace bittensor {
namespace {

template <class V, int Bits>
void store_codes(const CodeEpilogue& row, std::int64_t columns, std::uint64_t* words) {
  std::uint8_t codes[block_columns];
  V::requantize(row, (1 << Bits) - 1, codes);
  pack_row<V, Bits>(codes, columns, words);
}

template <class V>
void store_sums(
    const std::int32_t* acc, const std::int32_t* column_add, std::int32_t row_add, std::int64_t columns,
    std::int32_t* out) {
  for (std::int64_t n = 0; n < columns; ++n) {
    // unsigned: the sums are exact modulo 2^32, and so may pass through values beyond int32
    out[n] = static_cast<std::int32_t>(
        static_cast<std::uint32_t>(acc[n]) + static_cast<std::uint32_t>(column_add[n]) +
        static_cast<std::uint32_t>(row_add));
  }
}

}  // namespace
}  // namespace bittensor
