// Sums of products of planes and packed weights, by every kernel.

#include <algorithm>

#include "check.hpp"
#include "guarded.hpp"
#include "kernels_under_test.hpp"

using bittensor::KernelSet;
using bittensor::WordFetch;

namespace {

struct Shape {
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t in_features;
};

std::string text(const Shape& shape) {
  return std::to_string(shape.rows) + " x " + std::to_string(shape.columns) + " x " + std::to_string(shape.in_features);
}

std::int64_t plane_bytes(std::int64_t in_features, int bits) {
  const std::int64_t block_codes = std::int64_t{512} / bits;
  return (in_features + block_codes - 1) / block_codes * block_codes;
}

/// Where the value of column k lies among the planes of a row.
std::int64_t plane_position(std::int64_t k, int bits) {
  const std::int64_t planes = 8 / bits;
  const std::int64_t in_block = k % (64 * planes);
  return k - in_block + in_block % planes * 64 + in_block / planes;
}

/// Compares a kernel with a triple loop. `x` is [rows, K] in -128..127, `weight` is [columns, K] codes.
void check_dot(
    const KernelSet& kernels, int bits, const Shape& shape, const std::vector<int>& x,
    const std::vector<std::uint8_t>& weight, std::int64_t extra_bytes = 0, std::int64_t extra_words = 0) {
  const auto [rows, columns, in_features] = shape;
  const std::int64_t row_words = bittensor::words_per_row(in_features, bits);
  const std::int64_t plane_stride = plane_bytes(in_features, bits) + extra_bytes;
  const std::int64_t word_stride = row_words + extra_words;
  std::vector<std::int8_t> planes(static_cast<std::size_t>(rows * plane_stride - extra_bytes), 0);
  std::vector<std::int32_t> expected(static_cast<std::size_t>(rows * columns));
  for (std::int64_t m = 0; m < rows; ++m) {
    for (std::int64_t k = 0; k < in_features; ++k) {
      const auto at = static_cast<std::size_t>(m * plane_stride + plane_position(k, bits));
      planes[at] = static_cast<std::int8_t>(x[static_cast<std::size_t>(m * in_features + k)]);
    }
    for (std::int64_t n = 0; n < columns; ++n) {
      std::int64_t sum = 0;
      for (std::int64_t k = 0; k < in_features; ++k) {
        sum += std::int64_t{x[static_cast<std::size_t>(m * in_features + k)]} *
               weight[static_cast<std::size_t>(n * in_features + k)];
      }
      expected[static_cast<std::size_t>(m * columns + n)] = static_cast<std::int32_t>(static_cast<std::uint32_t>(sum));
    }
  }
  // Unused bits of the weights are ones: they may not count.
  const std::vector<std::uint64_t> packed = packed_by_rule(weight, columns, in_features, bits, true);
  std::vector<std::uint64_t> words(static_cast<std::size_t>(columns * word_stride - extra_words), ~std::uint64_t{0});
  for (std::int64_t n = 0; n < columns; ++n) {
    std::copy_n(packed.begin() + n * row_words, row_words, words.begin() + n * word_stride);
  }
  constexpr std::int64_t acc_columns = bittensor::block_columns;
  for (const WordFetch fetch : {WordFetch::none, WordFetch::by_tiles, WordFetch::in_order}) {
    for (const Side side : sides) {
      CONTEXT(
          "%s, %d bits, %s, plane stride + %ld, word stride + %ld, guard at the %s, fetch %d", isa_name(kernels.isa),
          bits, text(shape).c_str(), long{extra_bytes}, long{extra_words}, name_of(side), static_cast<int>(fetch));
      Guarded<std::int8_t> plane_input(planes, side);
      Guarded<std::uint64_t> word_input(words, side);
      Guarded<std::int32_t> acc(rows * acc_columns, side);
      const std::int32_t untouched = acc.values().front();
      kernels.for_bits(bits).integer_dot(
          {.planes = plane_input.data(),
           .plane_stride = plane_stride,
           .rows = rows,
           .words = word_input.data(),
           .word_stride = word_stride,
           .row_words = row_words,
           .columns = columns,
           .fetch = fetch,
           .ahead = 64 * (in_features % 3),
           .acc = acc.data()});
      const std::vector<std::int32_t> got = acc.values();
      CHECK(acc.intact());
      for (std::int64_t m = 0; m < rows; ++m) {
        for (std::int64_t n = 0; n < acc_columns; ++n) {
          const std::int32_t value = got[static_cast<std::size_t>(m * acc_columns + n)];
          if (n >= columns && n < (columns + 15) / 16 * 16) continue;  // may be overwritten
          const std::int32_t wanted = n < columns ? expected[static_cast<std::size_t>(m * columns + n)] : untouched;
          if (value == wanted) continue;
          const std::string what = "acc[" + std::to_string(m) + ", " + std::to_string(n) + "]";
          check::equal(__FILE__, __LINE__, what, value, wanted);
        }
      }
    }
  }
}

/// Values as x - x_zero gives them: the kernels below 8 bits need no more than a code's magnitude.
std::vector<int> random_values(Random& random, std::int64_t count, int bits) {
  const int low = bits == 8 ? -128 : -bittensor::max_code(bits);
  const int high = bits == 8 ? 127 : bittensor::max_code(bits);
  std::vector<int> values(static_cast<std::size_t>(count));
  for (int& value : values) value = random_between(random, low, high);
  return values;
}

}  // namespace

TEST(every_length) {
  Random random(1);
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const int bits : widths) {
      for (const std::int64_t in_features : lengths(bits)) {
        for (const std::int64_t rows : {1, 2, 3, 4, 5}) {
          const Shape shape = {rows, 1 + in_features % 5, in_features};
          check_dot(
              *kernels, bits, shape, random_values(random, rows * in_features, bits),
              random_codes(random, shape.columns * in_features, bits));
        }
      }
    }
  }
}

TEST(every_count_of_rows_and_columns) {
  Random random(2);
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const int bits : widths) {
      for (const std::int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 32}) {
        for (const std::int64_t columns : {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 63, 64}) {
          const std::int64_t in_features = random_between(random, 1, 200);
          check_dot(
              *kernels, bits, {rows, columns, in_features}, random_values(random, rows * in_features, bits),
              random_codes(random, columns * in_features, bits), 64 * (columns % 2), columns % 3);
        }
      }
    }
  }
}

/// The tiles of AMX take 128 rows at a time and divide them into runs of one length, columns into chunks.
TEST(panels_of_rows_and_chunks_of_columns) {
  Random random(3);
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const int bits : widths) {
      for (const std::int64_t rows : {33, 47, 64, 65, 95, 97, 127, 128, 129, 257}) {
        const std::int64_t columns = random_between(random, 1, 40);
        const std::int64_t in_features = random_between(random, 400, 1600);
        check_dot(
            *kernels, bits, {rows, columns, in_features}, random_values(random, rows * in_features, bits),
            random_codes(random, columns * in_features, bits));
      }
    }
  }
}

/// Rows long enough for every partial sum to be widened more than once, where each product has the largest magnitude
/// that it can have. Lengths lie just beyond a multiple of the longest run of int16 sums, of one sum and of the four
/// among which words in order are shared out.
TEST(largest_products_do_not_saturate) {
  struct Long {
    int bits;
    std::int64_t in_features;
  };
  constexpr Long cases[] = {
      {1, 4096}, {1, 523'776}, {1, 530'001}, {2, 4096}, {2, 58'112}, {2, 58'369}, {2, 120'001}, {4, 2303}, {4, 2304},
      {4, 2432}, {4, 4608},    {4, 6001},    {4, 9345}, {4, 18'561}, {4, 40'001}, {8, 4096},    {8, 9001},
  };
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const auto& [bits, in_features] : cases) {
      const int max = bittensor::max_code(bits);
      const std::vector<std::uint8_t> weight(static_cast<std::size_t>(in_features), static_cast<std::uint8_t>(max));
      for (const int x : {bits == 8 ? 127 : max, bits == 8 ? -128 : -max}) {
        const std::vector<int> values(static_cast<std::size_t>(in_features), x);
        check_dot(*kernels, bits, {1, 1, in_features}, values, weight);
      }
    }
  }
}

TEST(signs_that_alternate_within_a_pair) {
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const int bits : widths) {
      constexpr std::int64_t in_features = 3001;
      const std::vector<std::uint8_t> weight(
          static_cast<std::size_t>(2 * in_features), static_cast<std::uint8_t>(bittensor::max_code(bits)));
      std::vector<int> values(static_cast<std::size_t>(3 * in_features));
      for (std::size_t i = 0; i < values.size(); ++i) {
        const int high = bits == 8 ? 127 : bittensor::max_code(bits);
        values[i] = i % 2 == 0 ? high : (bits == 8 ? -128 : -high);
      }
      check_dot(*kernels, bits, {3, 2, in_features}, values, weight);
    }
  }
}

/// The sums are exact modulo 2^32: the shifted 8-bit product passes through values beyond int32.
TEST(sums_beyond_int32_wrap) {
  constexpr std::int64_t in_features = 70'001;
  const std::vector<std::uint8_t> weight(static_cast<std::size_t>(in_features), 255);
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const int x : {127, -128}) {
      check_dot(*kernels, 8, {1, 1, in_features}, std::vector<int>(static_cast<std::size_t>(in_features), x), weight);
    }
  }
}
