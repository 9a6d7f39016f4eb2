// The loop nest of the integer product: prologue (rows of x to planes), blocks of sums, epilogue (sums to codes).

#include "bittensor/packed_matmul.hpp"

#include <algorithm>
#include <atomic>

#include "bittensor/codes.hpp"
#include "count_call.hpp"
#include "out_of_range.hpp"
#include "rounding.hpp"
#include "scratch.hpp"
#include "shares.hpp"

namespace bittensor {
namespace {

/// Below this many products a second thread costs more than it saves: waking it takes about a microsecond.
constexpr std::int64_t serial_products = std::int64_t{1} << 20;

/// Rows of x are prepared and multiplied in panels whose planes stay in the second-level cache.
constexpr std::int64_t panel_bytes = std::int64_t{1} << 20;

/// Rows that each thread needs to have rows of its own, where it also multiplies a row of ones.
constexpr std::int64_t least_rows_beside_ones = 8;

/// And where a weight is decoded once for all of them.
constexpr std::int64_t outputs_of_decoded_row = 48;
constexpr std::int64_t least_decoded_rows = 8;

/// Rows of sums that are computed before their epilogue runs: at most so many, or more where they share what is
/// decoded.
constexpr std::int64_t sum_rows = 32;
constexpr std::int64_t decoded_sum_rows = 128;

/// The product rewritten for the kernels. With values s = x - shift that fit a signed byte,
///   sum (x - x_zero)(w - weight_zero) = sum s w + (shift - x_zero) sum w - weight_zero (sum s + K (shift - x_zero)).
/// Below 8 bits shift = x_zero fits, and the sum of w is not needed. At 8 bits shift = 128; the sum of w then comes
/// from one more row of x that holds ones.
class Product {
 public:
  Product(const PackedMatmul& p, const KernelSet& kernels)
      : p_(p),
        kernels_(kernels),
        codes_(kernels.for_bits(p.bits)),
        row_words_(words_per_row(p.in_features, p.bits)),
        out_row_words_(words_per_row(p.out_features, p.bits)),
        shift_(p.bits == 8 ? 128 : p.x_zero),
        excess_(shift_ - p.x_zero) {
    const std::int64_t blocks = ceil_divide(row_words_ * 8, block_bytes);
    // 64 bytes more than needed keep rows from meeting in the same sets of the cache.
    plane_stride_ = blocks * block_bytes * (8 / p.bits) + 64;
    panel_rows_ = std::max<std::int64_t>(panel_bytes / plane_stride_ / 4 * 4, 4);
  }

  std::optional<CodeOutOfRange> run(const ParallelFor& parallel) {
    count_calls();
    const bool serial = p_.rows * p_.in_features * p_.out_features < serial_products;
    if (!multiply_all(serial ? ParallelFor() : parallel)) {
      return first_out_of_range(p_.x_codes, p_.rows, p_.in_features, p_.bits);
    }
    return std::nullopt;
  }

 private:
  std::int64_t weight_bytes() const { return p_.out_features * row_words_ * 8; }

  /// How so many rows, which are the first, meet the weight. In order the multipliers have more to do, so that only 4
  /// bits gain: 8 have the row of ones as well, and fewer have more codes in a byte.
  WordFetch first_fetch(std::int64_t rows) const {
    if (rows == 1 && p_.bits == 4 && weight_bytes() >= memory_weight_bytes) return WordFetch::in_order;
    return rows == 1 || weight_bytes() > cached_weight_bytes ? WordFetch::by_tiles : WordFetch::none;
  }

  /// Rows whose sums are computed at a time.
  std::int64_t sum_rows_of(std::int64_t rows) const {
    return codes_.decodes_once ? ceil_divide(rows, ceil_divide(rows, decoded_sum_rows)) : std::min(rows, sum_rows);
  }

  /// At most, of so many rows or less.
  std::int64_t most_sum_rows(std::int64_t rows) const {
    return std::min(rows, codes_.decodes_once ? decoded_sum_rows : sum_rows);
  }

  void count_calls() const {
    count_call(KernelKind::integer_dot, p_.bits, kernels_.isa);
    count_call(KernelKind::expand_planes, p_.bits, kernels_.isa);
    if (p_.x_codes != nullptr) count_call(KernelKind::pack_row, p_.bits, kernels_.isa);
    if (p_.out_words != nullptr) {
      count_call(KernelKind::store_codes, p_.bits, kernels_.isa);
    } else {
      count_call(KernelKind::store_sums, 0, kernels_.isa);
    }
  }

  /// Rows that each thread needs to have rows of its own.
  std::int64_t least_rows() const {
    if (codes_.decodes_once) {
      return own_rows_where_decoded(p_.out_features, outputs_of_decoded_row, least_decoded_rows);
    }
    return excess_ != 0 ? least_rows_beside_ones : least_own_rows;
  }

  /// Returns false if a code of x is out of range.
  bool multiply_all(const ParallelFor& loop) const {
    if (!has_own_rows(loop, p_.rows, own_rows_of(weight_bytes(), least_rows(), panel_rows_))) {
      return Product(*this).multiply_rows(0, p_.rows, loop);
    }
    std::atomic<bool> in_range{true};
    loop(p_.rows, [&](std::int64_t begin, std::int64_t end) {
      if (!Product(*this).multiply_rows(begin, end, ParallelFor())) in_range.store(false, std::memory_order_relaxed);
    });
    return in_range.load();
  }

  bool multiply_rows(std::int64_t begin, std::int64_t end, const ParallelFor& loop) {
    panel_rows_ = std::min(panel_rows_, end - begin);
    const Scratch panel(ScratchUse::operation, memory());
    take_memory(panel.bytes());
    if (excess_ != 0) expand_ones();
    for (std::int64_t first = begin; first < end; first += panel_rows_) {
      const std::int64_t rows = std::min(panel_rows_, end - first);
      if (!prepare(first, rows, loop)) return false;
      multiply(first, rows, loop);
    }
    return true;
  }

  std::int64_t plane_bytes() const { return (panel_rows_ + 1) * plane_stride_; }
  std::int64_t word_bytes() const { return (p_.x_codes != nullptr ? panel_rows_ + 1 : 1) * row_words_ * 8; }

  /// Bytes for a panel: planes of its rows and of the row of ones, packed rows, row sums.
  std::int64_t memory() const { return plane_bytes() + word_bytes() + panel_rows_ * 4; }
  void take_memory(std::byte* memory) {
    planes_ = reinterpret_cast<std::int8_t*>(memory);
    ones_ = planes_ + panel_rows_ * plane_stride_;
    packed_ = reinterpret_cast<std::uint64_t*>(memory + plane_bytes());
    row_sums_ = reinterpret_cast<std::int32_t*>(memory + plane_bytes() + word_bytes());
  }

  void expand_ones() {
    // Only 8 bits come here, where a word of ones is eight bytes of 1.
    std::fill_n(packed_, row_words_, 0x0101010101010101U);
    codes_.expand_planes(packed_, p_.in_features, 0, ones_);
  }

  /// Prologue. Returns false if a code of x is out of range.
  bool prepare(std::int64_t first, std::int64_t rows, const ParallelFor& loop) const {
    std::atomic<unsigned> seen{0};
    const auto prepare_rows = [&](std::int64_t begin, std::int64_t end) {
      unsigned seen_here = 0;
      for (std::int64_t m = begin; m < end; ++m) {
        const std::uint64_t* words = nullptr;
        if (p_.x_codes != nullptr) {
          std::uint64_t* packed = packed_ + m * row_words_;
          seen_here |= codes_.pack_row(p_.x_codes + (first + m) * p_.in_features, p_.in_features, packed);
          words = packed;
        } else {
          words = p_.x_words + (first + m) * row_words_;
        }
        row_sums_[m] = codes_.expand_planes(words, p_.in_features, shift_, planes_ + m * plane_stride_);
      }
      seen.fetch_or(seen_here, std::memory_order_relaxed);
    };
    constexpr std::int64_t serial_values = std::int64_t{1} << 16;
    (rows * p_.in_features < serial_values ? ParallelFor() : loop)(rows, prepare_rows);
    return (seen.load() & ~static_cast<unsigned>(max_code(p_.bits))) == 0;
  }

  /// Work is shared out in blocks of columns, and in ranges of rows as well where there are too few blocks.
  void multiply(std::int64_t first, std::int64_t rows, const ParallelFor& loop) const {
    const std::int64_t column_blocks = ceil_divide(p_.out_features, block_columns);
    const std::int64_t wanted = 4 * loop.thread_count();
    const std::int64_t most_ranges = ceil_divide(rows, codes_.decodes_once ? 16 : 8);
    const std::int64_t row_ranges =
        column_blocks >= wanted ? 1 : std::clamp<std::int64_t>(ceil_divide(wanted, column_blocks), 1, most_ranges);
    const std::int64_t range_rows = ceil_divide(ceil_divide(rows, row_ranges), 4) * 4;
    const std::int64_t ranges = ceil_divide(rows, range_rows);
    const bool helps = help_pays(loop, rows * p_.in_features * p_.out_features);
    share_out(loop, column_blocks * ranges, helps ? 1 : 0, [&](const auto& next) {
      const Scratch sums(ScratchUse::task, most_sum_rows(std::min(range_rows, rows)) * block_columns * 4);
      auto* acc = reinterpret_cast<std::int32_t*>(sums.bytes());
      for (Taken taken; next(taken);) {
        for (std::int64_t task = taken.begin; task < taken.end; ++task) {
          const std::int64_t m = task % ranges * range_rows;
          multiply_block(first, m, std::min(range_rows, rows - m), task / ranges * block_columns, acc);
        }
      }
    });
  }

  /// Rows [m, m + rows) of the panel that starts at `first`, and one block of columns.
  void multiply_block(
      std::int64_t first, std::int64_t m, std::int64_t rows, std::int64_t column, std::int32_t* acc) const {
    const std::int64_t sum_rows_at_once = sum_rows_of(rows);
    alignas(64) std::int32_t column_add[block_columns] = {};
    alignas(64) float scale[block_columns] = {};
    IntegerDotBlock block{};
    block.plane_stride = plane_stride_;
    block.words = p_.weight + column * row_words_;
    block.word_stride = row_words_;
    block.row_words = row_words_;
    block.columns = std::min<std::int64_t>(block_columns, p_.out_features - column);
    block.acc = acc;
    if (block.columns < block_columns) {
      // The epilogue reads whole blocks; sums of absent columns are zero.
      std::fill_n(acc, sum_rows_at_once * block_columns, 0);
    }
    block.fetch = first_fetch(rows);
    block.ahead = tuning().words_ahead;
    fill_columns(block, column, column_add, scale);
    if (excess_ != 0) block.fetch = WordFetch::none;  // the row of ones has met the weight
    for (std::int64_t done = 0; done < rows; done += sum_rows_at_once) {
      const std::int64_t row = m + done;
      block.rows = std::min(sum_rows_at_once, rows - done);
      block.planes = planes_ + row * plane_stride_;
      codes_.integer_dot(block);
      block.fetch = WordFetch::none;
      for (std::int64_t i = 0; i < block.rows; ++i) {
        store(
            first + row + i, column, block.columns,
            {acc + i * block_columns, column_add, row_add(row + i), p_.scale != nullptr ? scale : nullptr,
             p_.out_zero});
      }
    }
  }

  void fill_columns(IntegerDotBlock block, std::int64_t column, std::int32_t* column_add, float* scale) const {
    if (excess_ != 0) {
      block.rows = 1;
      block.planes = ones_;
      codes_.integer_dot(block);
    }
    for (std::int64_t n = 0; n < block.columns; ++n) {
      std::uint32_t add = p_.bias != nullptr ? static_cast<std::uint32_t>(p_.bias[column + n]) : 0;
      if (excess_ != 0) add += static_cast<std::uint32_t>(excess_) * static_cast<std::uint32_t>(block.acc[n]);
      column_add[n] = static_cast<std::int32_t>(add);
      if (p_.scale != nullptr) scale[n] = p_.scale[p_.scale_count == 1 ? 0 : column + n];
    }
  }

  std::int32_t row_add(std::int64_t row) const {
    const std::int64_t centered = row_sums_[row] + p_.in_features * excess_;
    return static_cast<std::int32_t>(static_cast<std::uint32_t>(-centered * p_.weight_zero));
  }

  void store(std::int64_t row, std::int64_t column, std::int64_t columns, const CodeEpilogue& sums) const {
    if (p_.out_words != nullptr) {
      std::uint64_t* words = p_.out_words + row * out_row_words_ + column / codes_per_word(p_.bits);
      codes_.store_codes(sums, columns, words);
    } else {
      kernels_.store_sums(
          sums.acc, sums.column_add, sums.row_add, columns, p_.out_sums + row * p_.out_features + column);
    }
  }

  const PackedMatmul& p_;
  const KernelSet& kernels_;
  const CodeKernels& codes_;
  std::int64_t row_words_;
  std::int64_t out_row_words_;
  std::int32_t shift_;
  std::int32_t excess_;
  std::int64_t plane_stride_ = 0;
  std::int64_t panel_rows_ = 0;
  std::int8_t* planes_ = nullptr;
  std::int8_t* ones_ = nullptr;
  std::uint64_t* packed_ = nullptr;
  std::int32_t* row_sums_ = nullptr;
};

}  // namespace

std::optional<CodeOutOfRange> packed_matmul(
    const PackedMatmul& product, const KernelSet& kernels, const ParallelFor& parallel) {
  if (product.out_features == 0 && product.x_codes != nullptr) {  // nothing to compute, but codes to refuse
    return first_out_of_range(product.x_codes, product.rows, product.in_features, product.bits);
  }
  if (product.rows == 0 || product.out_features == 0) return std::nullopt;
  return Product(product, kernels).run(parallel);
}

}  // namespace bittensor
