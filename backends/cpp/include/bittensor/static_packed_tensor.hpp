#pragma once

/// A matrix of packed codes whose shape is part of its type. It can be packed by the compiler, which then also refuses
/// codes that do not fit.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "bittensor/codes.hpp"
#include "bittensor/packed_tensor.hpp"

namespace bittensor {

/// A matrix [Rows, Columns] of codes of `Bits` bits, packed along its rows (docs/numerics.md, section 1).
template <int Bits, std::int64_t Rows, std::int64_t Columns>
class StaticPackedTensor {
  static_assert(is_code_width(Bits), "a code has 1, 2, 4 or 8 bits");
  static_assert(Rows >= 0 && Columns >= 0, "sizes are not negative");

 public:
  static constexpr int bits = Bits;
  static constexpr std::int64_t row_words = words_per_row(Columns, Bits);
  static constexpr auto word_count = static_cast<std::size_t>(Rows * row_words);
  static constexpr auto code_count = static_cast<std::size_t>(Rows * Columns);

  /// Every code is 0.
  constexpr StaticPackedTensor() = default;

  /// Packs codes [Rows, Columns], row by row. A code that does not fit throws std::invalid_argument, and in constant
  /// evaluation does not compile.
  static constexpr StaticPackedTensor from_codes(std::span<const std::uint8_t, code_count> codes) {
    StaticPackedTensor tensor;
    for (std::size_t i = 0; i < code_count; ++i) {
      const auto row = static_cast<std::int64_t>(i) / Columns;
      const auto column = static_cast<std::int64_t>(i) % Columns;
      if (codes[i] > max_code(Bits)) throw_code_out_of_range(row, column, codes[i], Bits);
      write_code(tensor.words_.data() + row * row_words, column, Bits, codes[i]);
    }
    return tensor;
  }

  static constexpr std::int64_t rows() { return Rows; }
  static constexpr std::int64_t columns() { return Columns; }

  /// Throws std::out_of_range.
  constexpr std::uint8_t code(std::int64_t row, std::int64_t column) const {
    if (row < 0 || row >= Rows || column < 0 || column >= Columns) {
      throw std::out_of_range(
          "position: no row " + std::to_string(row) + ", column " + std::to_string(column) + " in " +
          std::to_string(Rows) + " x " + std::to_string(Columns));
    }
    return read_code(words_.data() + row * row_words, column, Bits);
  }

  /// The codes [Rows, Columns], row by row.
  constexpr std::array<std::uint8_t, code_count> unpack() const {
    std::array<std::uint8_t, code_count> codes{};
    for (std::size_t i = 0; i < code_count; ++i) {
      const auto row = static_cast<std::int64_t>(i) / Columns;
      codes[i] = read_code(words_.data() + row * row_words, static_cast<std::int64_t>(i) % Columns, Bits);
    }
    return codes;
  }

  /// All words, [Rows, row_words].
  constexpr const std::array<std::uint64_t, word_count>& words() const { return words_; }

  /// The same matrix with its shape known at run time.
  PackedTensor<Bits> to_packed_tensor() const {
    return PackedTensor<Bits>::from_words(Rows, Columns, std::vector<std::uint64_t>(words_.begin(), words_.end()));
  }

  friend constexpr bool operator==(const StaticPackedTensor&, const StaticPackedTensor&) = default;

 private:
  std::array<std::uint64_t, word_count> words_{};
};

}  // namespace bittensor
