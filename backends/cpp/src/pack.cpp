// Packing and unpacking of matrices: rows are shared out to threads and handed to the row kernels.

#include "bittensor/pack.hpp"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>

#include "bittensor/codes.hpp"
#include "count_call.hpp"
#include "out_of_range.hpp"

namespace bittensor {
namespace {

/// Below this many codes a second thread costs more than it saves.
constexpr std::int64_t serial_codes = std::int64_t{1} << 16;

void check_width(int bits) {
  if (!is_code_width(bits)) throw std::invalid_argument("bits: expected 1, 2, 4 or 8, got " + std::to_string(bits));
}

/// A matrix as rows that the kernels and the threads can share out well. Where no row ends inside a word, the matrix
/// is one long row, and that is cut into pieces of whole words.
struct Rows {
  std::int64_t count;
  std::int64_t columns;  // of every row but the last
  std::int64_t last_columns;

  static Rows of(std::int64_t rows, std::int64_t columns, int bits) {
    if (columns % codes_per_word(bits) != 0) return {rows, columns, columns};
    constexpr std::int64_t piece = std::int64_t{1} << 14;
    const std::int64_t total = rows * columns;
    const std::int64_t pieces = (total + piece - 1) / piece;
    return {pieces, piece, total - (pieces - 1) * piece};
  }
  std::int64_t columns_of(std::int64_t row) const { return row + 1 == count ? last_columns : columns; }
};

}  // namespace

std::optional<CodeOutOfRange> pack(
    const std::uint8_t* codes, std::int64_t rows, std::int64_t columns, int bits, std::uint64_t* words,
    const KernelSet& kernels, const ParallelFor& parallel) {
  check_width(bits);
  count_call(KernelKind::pack_row, bits, kernels.isa);
  if (rows == 0 || columns == 0) return std::nullopt;
  const PackRow pack_row = kernels.for_bits(bits).pack_row;
  const Rows shared = Rows::of(rows, columns, bits);
  const std::int64_t row_words = words_per_row(shared.columns, bits);
  std::atomic<unsigned> seen{0};
  const auto pack_rows = [&](std::int64_t begin, std::int64_t end) {
    unsigned seen_here = 0;
    for (std::int64_t r = begin; r < end; ++r) {
      seen_here |= pack_row(codes + r * shared.columns, shared.columns_of(r), words + r * row_words);
    }
    seen.fetch_or(seen_here, std::memory_order_relaxed);
  };
  (rows * columns < serial_codes ? ParallelFor() : parallel)(shared.count, pack_rows);
  if ((seen.load() & ~static_cast<unsigned>(max_code(bits))) == 0) return std::nullopt;
  return first_out_of_range(codes, rows, columns, bits);
}

void unpack(
    const std::uint64_t* words, std::int64_t rows, std::int64_t columns, int bits, std::uint8_t* codes,
    const KernelSet& kernels, const ParallelFor& parallel) {
  check_width(bits);
  count_call(KernelKind::unpack_row, bits, kernels.isa);
  if (rows == 0 || columns == 0) return;
  const UnpackRow unpack_row = kernels.for_bits(bits).unpack_row;
  const Rows shared = Rows::of(rows, columns, bits);
  const std::int64_t row_words = words_per_row(shared.columns, bits);
  const auto unpack_rows = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      unpack_row(words + r * row_words, shared.columns_of(r), codes + r * shared.columns);
    }
  };
  (rows * columns < serial_codes ? ParallelFor() : parallel)(shared.count, unpack_rows);
}

std::optional<CodeOutOfRange> first_out_of_range(
    const std::uint8_t* codes, std::int64_t rows, std::int64_t columns, int bits) {
  const std::uint8_t* end = codes + rows * columns;
  const std::uint8_t* found = std::find_if(codes, end, [bits](std::uint8_t code) { return code > max_code(bits); });
  if (found == end) return std::nullopt;
  const std::int64_t index = found - codes;
  return CodeOutOfRange{index / columns, index % columns, *found};
}

}  // namespace bittensor
