#pragma once

/// A matrix of packed codes that owns its words, and the integer product of two.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bittensor/codes.hpp"
#include "bittensor/isa.hpp"
#include "bittensor/pack.hpp"
#include "bittensor/packed_matmul.hpp"
#include "bittensor/parallel.hpp"

namespace bittensor {

/// The kernels of `choose_isa()`, chosen once for the process. Throws what it throws.
inline const KernelSet& chosen_kernels() {
  static const KernelSet& chosen = kernels_for(choose_isa().isa);
  return chosen;
}

[[noreturn]] inline void throw_code_out_of_range(std::int64_t row, std::int64_t column, int code, int bits) {
  throw std::invalid_argument(
      "codes: expected 0 to " + std::to_string(max_code(bits)) + " (" + std::to_string(bits) + " bits), got " +
      std::to_string(code) + " in row " + std::to_string(row) + ", column " + std::to_string(column));
}

namespace detail {

/// Throws std::invalid_argument if a size of a matrix is negative, std::length_error if they are too large: nothing
/// that is computed from a shape that passes overflows.
inline void check_shape(std::int64_t rows, std::int64_t columns) {
  const auto shape = [&] { return std::to_string(rows) + " x " + std::to_string(columns); };
  if (rows < 0 || columns < 0) throw std::invalid_argument("shape: expected sizes of at least 0, got " + shape());
  constexpr std::int64_t max_codes = std::numeric_limits<std::int64_t>::max() / word_bits;
  if (columns > max_codes || (columns > 0 && rows > max_codes / columns)) {
    throw std::length_error("shape: too large: " + shape());
  }
}

}  // namespace detail

/// A matrix [rows, columns] of codes of `Bits` bits, packed along its rows (docs/numerics.md, section 1). The unused
/// high bits of a row's last word are always 0, so equal matrices have equal words.
template <int Bits>
class PackedTensor {
  static_assert(is_code_width(Bits), "a code has 1, 2, 4 or 8 bits");

 public:
  static constexpr int bits = Bits;

  /// Every code is 0. Throws std::invalid_argument if a size is negative, std::length_error if they are too large.
  PackedTensor(std::int64_t rows, std::int64_t columns)
      : rows_(rows), columns_(columns), words_(word_count(rows, columns)) {}

  ~PackedTensor() = default;
  PackedTensor(const PackedTensor&) = default;
  PackedTensor& operator=(const PackedTensor&) = default;

  /// What is moved from is 0 x 0.
  PackedTensor(PackedTensor&& other) noexcept
      : rows_(std::exchange(other.rows_, 0)),
        columns_(std::exchange(other.columns_, 0)),
        words_(std::exchange(other.words_, {})) {}
  PackedTensor& operator=(PackedTensor&& other) noexcept {
    rows_ = std::exchange(other.rows_, 0);
    columns_ = std::exchange(other.columns_, 0);
    words_ = std::exchange(other.words_, {});
    return *this;
  }

  /// Packs codes [rows, columns], row by row. Throws std::invalid_argument if their number differs from rows * columns
  /// or if one does not fit, naming the first.
  PackedTensor(
      std::int64_t rows, std::int64_t columns, std::span<const std::uint8_t> codes, const ParallelFor& parallel = {})
      : PackedTensor(rows, columns) {
    if (codes.size() != static_cast<std::size_t>(rows * columns)) {
      throw std::invalid_argument(
          "codes: expected " + std::to_string(rows) + " x " + std::to_string(columns) + ", got " +
          std::to_string(codes.size()));
    }
    const auto wrong = pack(codes.data(), rows, columns, Bits, words_.data(), chosen_kernels(), parallel);
    if (wrong) throw_code_out_of_range(wrong->row, wrong->column, wrong->code, Bits);
  }

  /// Takes words [rows, row_words] as they are, but for the unused bits, which become 0. Throws std::invalid_argument
  /// if their number is another.
  static PackedTensor from_words(std::int64_t rows, std::int64_t columns, std::vector<std::uint64_t> words) {
    const std::size_t expected = word_count(rows, columns);
    if (words.size() != expected) {
      throw std::invalid_argument(
          "words: expected " + std::to_string(expected) + " for " + std::to_string(rows) + " x " +
          std::to_string(columns) + " codes, got " + std::to_string(words.size()));
    }
    PackedTensor tensor;
    tensor.rows_ = rows;
    tensor.columns_ = columns;
    tensor.words_ = std::move(words);
    tensor.clear_unused_bits();
    return tensor;
  }

  std::int64_t rows() const { return rows_; }
  std::int64_t columns() const { return columns_; }

  /// Words of one row.
  std::int64_t row_words() const { return words_per_row(columns_, Bits); }

  /// All words, [rows, row_words].
  std::span<const std::uint64_t> words() const { return words_; }

  /// Throws std::out_of_range.
  std::uint8_t at(std::int64_t row, std::int64_t column) const {
    check_position(row, column);
    return read_code(words_.data() + row * row_words(), column, Bits);
  }

  /// Throws std::out_of_range for the position, std::invalid_argument for the code.
  void set(std::int64_t row, std::int64_t column, int code) {
    check_position(row, column);
    if (code < 0 || code > max_code(Bits)) throw_code_out_of_range(row, column, code, Bits);
    write_code(words_.data() + row * row_words(), column, Bits, static_cast<std::uint8_t>(code));
  }

  /// The codes [rows, columns], row by row.
  std::vector<std::uint8_t> unpack(const ParallelFor& parallel = {}) const {
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows_ * columns_));
    bittensor::unpack(words_.data(), rows_, columns_, Bits, codes.data(), chosen_kernels(), parallel);
    return codes;
  }

  friend bool operator==(const PackedTensor&, const PackedTensor&) = default;

 private:
  PackedTensor() = default;

  static std::size_t word_count(std::int64_t rows, std::int64_t columns) {
    detail::check_shape(rows, columns);
    return static_cast<std::size_t>(rows * words_per_row(columns, Bits));
  }

  void check_position(std::int64_t row, std::int64_t column) const {
    if (row >= 0 && row < rows_ && column >= 0 && column < columns_) return;
    throw std::out_of_range(
        "position: expected row 0 to " + std::to_string(rows_ - 1) + " and column 0 to " +
        std::to_string(columns_ - 1) + ", got row " + std::to_string(row) + ", column " + std::to_string(column));
  }

  void clear_unused_bits() {
    const int used = bit_offset(columns_, Bits);
    if (used == 0) return;
    const std::uint64_t mask = (std::uint64_t{1} << used) - 1;
    for (std::int64_t row = 1; row <= rows_; ++row) words_[static_cast<std::size_t>(row * row_words() - 1)] &= mask;
  }

  std::int64_t rows_ = 0;
  std::int64_t columns_ = 0;
  std::vector<std::uint64_t> words_;
};

/// What an integer product takes beyond its operands (docs/numerics.md, section 2).
struct MatmulTerms {
  std::span<const std::int32_t> bias = {};  // one for each output, or none
  int x_zero = 0;
  int weight_zero = 0;
  std::span<const float> scale = {};  // none, one, or one for each output
  int out_zero = 0;                   // has a meaning with a scale only
};

namespace detail {

inline void check_zero(const char* name, int zero, int bits) {
  if (zero >= 0 && zero <= max_code(bits)) return;
  throw std::invalid_argument(
      std::string(name) + ": expected 0 to " + std::to_string(max_code(bits)) + ", got " + std::to_string(zero));
}

inline void check_terms(const MatmulTerms& terms, std::int64_t in_features, std::int64_t out_features, int bits) {
  check_zero("x_zero", terms.x_zero, bits);
  check_zero("weight_zero", terms.weight_zero, bits);
  check_zero("out_zero", terms.out_zero, bits);
  const auto outputs = static_cast<std::size_t>(out_features);
  if (!terms.bias.empty() && terms.bias.size() != outputs) {
    throw std::invalid_argument(
        "bias: expected " + std::to_string(outputs) + " values, got " + std::to_string(terms.bias.size()));
  }
  if (terms.scale.size() > 1 && terms.scale.size() != outputs) {
    throw std::invalid_argument(
        "scale: expected 1 or " + std::to_string(outputs) + " values, got " + std::to_string(terms.scale.size()));
  }
  for (const float scale : terms.scale) {
    if (!std::isfinite(scale)) throw std::invalid_argument("scale: expected finite values, got NaN or infinity");
  }
  if (terms.scale.empty() && terms.out_zero != 0) throw std::invalid_argument("out_zero: has no meaning without scale");
  std::int64_t largest_bias = 0;
  for (const std::int64_t bias : terms.bias) largest_bias = std::max(largest_bias, bias < 0 ? -bias : bias);
  constexpr std::int64_t limit = std::numeric_limits<std::int32_t>::max();
  if (in_features > limit || largest_sum(in_features, bits, terms.x_zero, terms.weight_zero, largest_bias) > limit) {
    throw std::invalid_argument("accumulator: the sums may reach beyond int32; split in_features or use smaller codes");
  }
}

/// The product without its result. Throws std::invalid_argument for whatever does not fit together, std::length_error
/// if the result is too large.
template <int Bits>
PackedMatmul checked_product(const PackedTensor<Bits>& x, const PackedTensor<Bits>& weight, const MatmulTerms& terms) {
  if (x.columns() != weight.columns()) {
    throw std::invalid_argument(
        "weight: expected " + std::to_string(x.columns()) + " columns, as x has, got " +
        std::to_string(weight.columns()));
  }
  check_terms(terms, x.columns(), weight.rows(), Bits);
  check_shape(x.rows(), weight.rows());
  PackedMatmul product;
  product.rows = x.rows();
  product.in_features = x.columns();
  product.out_features = weight.rows();
  product.bits = Bits;
  product.x_words = x.words().data();
  product.weight = weight.words().data();
  product.bias = terms.bias.empty() ? nullptr : terms.bias.data();
  product.x_zero = terms.x_zero;
  product.weight_zero = terms.weight_zero;
  product.scale = terms.scale.empty() ? nullptr : terms.scale.data();
  product.scale_count = static_cast<std::int64_t>(terms.scale.size());
  product.out_zero = terms.out_zero;
  return product;
}

}  // namespace detail

/// x [M, K] times weight [N, K] transposed, as codes [M, N]. Throws std::invalid_argument if shapes, zero points, bias
/// or scale do not fit, and if the sums could reach beyond int32; std::length_error if [M, N] is too large.
template <int Bits>
PackedTensor<Bits> matmul(
    const PackedTensor<Bits>& x, const PackedTensor<Bits>& weight, const MatmulTerms& terms = {},
    const ParallelFor& parallel = {}, const KernelSet& kernels = chosen_kernels()) {
  PackedMatmul product = detail::checked_product(x, weight, terms);
  std::vector<std::uint64_t> words(static_cast<std::size_t>(x.rows() * words_per_row(weight.rows(), Bits)));
  product.out_words = words.data();
  // Packed codes always fit, so there is none to report.
  static_cast<void>(packed_matmul(product, kernels, parallel));
  return PackedTensor<Bits>::from_words(x.rows(), weight.rows(), std::move(words));
}

/// The sums themselves, int32 [M, N] row by row. Throws as `matmul` does, and if there is a scale.
template <int Bits>
std::vector<std::int32_t> matmul_sums(
    const PackedTensor<Bits>& x, const PackedTensor<Bits>& weight, const MatmulTerms& terms = {},
    const ParallelFor& parallel = {}, const KernelSet& kernels = chosen_kernels()) {
  PackedMatmul product = detail::checked_product(x, weight, terms);
  if (product.scale != nullptr) throw std::invalid_argument("scale: has no meaning with the sums as the result");
  std::vector<std::int32_t> sums(static_cast<std::size_t>(x.rows() * weight.rows()));
  product.out_sums = sums.data();
  static_cast<void>(packed_matmul(product, kernels, parallel));
  return sums;
}

}  // namespace bittensor
