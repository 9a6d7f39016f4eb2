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
  return (columns + codes_per_word(bits) - 1) / codes_per_word(bits);
}

constexpr int max_code(int bits) {
  return (1 << bits) - 1;
}

}  // namespace bittensor
