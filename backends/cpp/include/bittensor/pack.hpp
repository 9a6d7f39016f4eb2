#pragma once

/// Packing and unpacking of matrices of codes (docs/numerics.md, section 1).

#include <cstdint>
#include <optional>

#include "bittensor/export.hpp"
#include "bittensor/isa.hpp"
#include "bittensor/parallel.hpp"

namespace bittensor {

/// A code that does not fit the bit width: the first one in row-major order.
struct CodeOutOfRange {
  std::int64_t row;
  std::int64_t column;
  int code;
};

/// Packs codes [rows, columns] into words [rows, words_per_row(columns, bits)], both without gaps between rows.
/// Returns the first code above max_code(bits), if any; the words are then unspecified. Throws std::invalid_argument
/// unless `bits` is 1, 2, 4 or 8.
[[nodiscard]] BITTENSOR_API std::optional<CodeOutOfRange> pack(
    const std::uint8_t* codes, std::int64_t rows, std::int64_t columns, int bits, std::uint64_t* words,
    const KernelSet& kernels, const ParallelFor& parallel = {});

/// Unpacks words [rows, words_per_row(columns, bits)] into codes [rows, columns], both without gaps between rows.
/// Throws std::invalid_argument unless `bits` is 1, 2, 4 or 8.
BITTENSOR_API void unpack(
    const std::uint64_t* words, std::int64_t rows, std::int64_t columns, int bits, std::uint8_t* codes,
    const KernelSet& kernels, const ParallelFor& parallel = {});

}  // namespace bittensor
