#pragma once

/// Codes and words: the arithmetic of the packed format (docs/numerics.md, section 1).

#include <cstdint>

namespace bittensor {

inline constexpr int word_bits = 64;

/// A width whose codes never straddle two words.
constexpr bool is_code_width(int bits) {
  return bits == 1 || bits == 2 || bits == 4 || bits == 8;
}

constexpr int codes_per_word(int bits) {
  return word_bits / bits;
}

/// Words that hold a row of `columns` codes; every row starts a new word.
constexpr std::int64_t words_per_row(std::int64_t columns, int bits) {
  // Not rounded up by an addition before: columns may be next to 2^63, in a matrix without rows.
  return columns / codes_per_word(bits) + (columns % codes_per_word(bits) > 0 ? 1 : 0);
}

constexpr int max_code(int bits) {
  return (1 << bits) - 1;
}

/// Word of a row that holds the code of `column`.
constexpr std::int64_t word_index(std::int64_t column, int bits) {
  return column / codes_per_word(bits);
}

/// Lowest bit of that code in its word.
constexpr int bit_offset(std::int64_t column, int bits) {
  return static_cast<int>(column % codes_per_word(bits)) * bits;
}

/// One code of a packed row.
constexpr std::uint8_t read_code(const std::uint64_t* row, std::int64_t column, int bits) {
  const auto mask = static_cast<std::uint64_t>(max_code(bits));
  return static_cast<std::uint8_t>(row[word_index(column, bits)] >> bit_offset(column, bits) & mask);
}

/// Replaces one code of a packed row by `code`, which fits the width.
constexpr void write_code(std::uint64_t* row, std::int64_t column, int bits, std::uint8_t code) {
  const auto mask = static_cast<std::uint64_t>(max_code(bits));
  const int offset = bit_offset(column, bits);
  std::uint64_t& word = row[word_index(column, bits)];
  word = (word & ~(mask << offset)) | std::uint64_t{code} << offset;
}

}  // namespace bittensor
