// The matrix that owns its words, and the product of two.

#include <limits>
#include <utility>

#include "bittensor/bittensor.hpp"
#include "bittensor/packed_tensor.hpp"
#include "check.hpp"
#include "kernels_under_test.hpp"

using bittensor::PackedTensor;

namespace {

template <class F>
void for_each_width(const F& f) {
  f.template operator()<1>();
  f.template operator()<2>();
  f.template operator()<4>();
  f.template operator()<8>();
}

struct Shape {
  std::int64_t rows;
  std::int64_t columns;
};
constexpr Shape shapes[] = {{0, 0}, {0, 7}, {7, 0}, {1, 1}, {2, 16}, {3, 17}, {5, 63}, {4, 64}, {3, 65}, {9, 200}};

}  // namespace

TEST(codes_are_packed_by_the_rule) {
  Random random(1);
  for_each_width([&]<int Bits>() {
    for (const auto [rows, columns] : shapes) {
      CONTEXT("%d bits, %ld x %ld", Bits, long{rows}, long{columns});
      const std::vector<std::uint8_t> codes = random_codes(random, rows * columns, Bits);
      const PackedTensor<Bits> tensor(rows, columns, codes);
      CHECK_EQUAL(tensor.rows(), rows);
      CHECK_EQUAL(tensor.columns(), columns);
      CHECK_EQUAL(tensor.row_words(), (columns * Bits + 63) / 64);
      CHECK_EQUAL(tensor.words(), packed_by_rule(codes, rows, columns, Bits));
      CHECK_EQUAL(tensor.unpack(), codes);
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t k = 0; k < columns; ++k) {
          CHECK_EQUAL(tensor.at(r, k), codes[static_cast<std::size_t>(r * columns + k)]);
        }
      }
    }
  });
}

TEST(set_changes_one_code) {
  for_each_width([&]<int Bits>() {
    PackedTensor<Bits> tensor(3, 70);
    CHECK_EQUAL(tensor.unpack(), std::vector<std::uint8_t>(210, 0));
    std::vector<std::uint8_t> codes(210, 0);
    for (std::size_t i = 0; i < codes.size(); ++i) {
      const int code = static_cast<int>(i * 7 + 1) & bittensor::max_code(Bits);
      codes[i] = static_cast<std::uint8_t>(code);
      tensor.set(static_cast<std::int64_t>(i) / 70, static_cast<std::int64_t>(i) % 70, code);
      CHECK_EQUAL(tensor.unpack(), codes);
    }
    tensor.set(1, 69, 0);
    codes[139] = 0;
    CHECK(tensor == PackedTensor<Bits>(3, 70, codes));
  });
}

TEST(equality_looks_at_shape_and_codes) {
  const std::vector<std::uint8_t> codes = {1, 2, 3, 4, 5, 6};
  const PackedTensor<4> tensor(2, 3, codes);
  CHECK(tensor == PackedTensor<4>(2, 3, codes));
  CHECK(tensor != PackedTensor<4>(3, 2, codes));
  CHECK(tensor != PackedTensor<4>(2, 3));
  CHECK(PackedTensor<4>(2, 3) != PackedTensor<4>(2, 4));  // the same words
}

TEST(from_words_ignores_unused_bits) {
  const std::vector<std::uint8_t> codes = {1, 2, 3, 4, 5, 6};
  const auto tensor = PackedTensor<4>::from_words(2, 3, {0xFFFF'FFFF'FFFF'F321, 0xABCD'0000'0000'0654});
  CHECK(tensor == PackedTensor<4>(2, 3, codes));
  CHECK_EQUAL(PackedTensor<1>::from_words(1, 64, {~std::uint64_t{0}}).words()[0], ~std::uint64_t{0});
  CHECK_THROWS(
      std::invalid_argument, "words: expected 2 for 2 x 3 codes, got 1", PackedTensor<4>::from_words(2, 3, {0}));
}

TEST(what_does_not_fit_is_refused) {
  const std::vector<std::uint8_t> codes = {0, 1, 2, 3, 16, 200};
  CHECK_THROWS(
      std::invalid_argument, "codes: expected 0 to 15 (4 bits), got 16 in row 1, column 1",
      PackedTensor<4>(2, 3, codes));
  CHECK_THROWS(std::invalid_argument, "got 2 in row 0, column 2", PackedTensor<1>(2, 3, codes));
  CHECK_THROWS(std::invalid_argument, "codes: expected 2 x 4, got 6", PackedTensor<8>(2, 4, codes));
  CHECK_THROWS(std::invalid_argument, "codes: expected 0 x 4, got 6", PackedTensor<8>(0, 4, codes));
  CHECK_THROWS(std::invalid_argument, "shape: expected sizes of at least 0, got -1 x 4", PackedTensor<8>(-1, 4));
  constexpr std::int64_t huge = std::numeric_limits<std::int64_t>::max();
  CHECK_THROWS(std::length_error, "shape: too large", PackedTensor<8>(huge, huge));
  CHECK_THROWS(std::length_error, "shape: too large", PackedTensor<1>(0, huge));
  PackedTensor<2> tensor(2, 3);
  CHECK_THROWS(std::out_of_range, "got row 2, column 0", tensor.at(2, 0));
  CHECK_THROWS(std::out_of_range, "got row 0, column 3", tensor.at(0, 3));
  CHECK_THROWS(std::out_of_range, "got row -1, column 0", tensor.set(-1, 0, 0));
  CHECK_THROWS(std::out_of_range, "got row 0, column -1", tensor.set(0, -1, 0));
  CHECK_THROWS(std::invalid_argument, "expected 0 to 3 (2 bits), got 4 in row 1, column 2", tensor.set(1, 2, 4));
  CHECK_THROWS(std::invalid_argument, "got -1", tensor.set(1, 2, -1));
  CHECK(tensor == PackedTensor<2>(2, 3));
}

TEST(matmul_multiplies_codes) {
  // [1 2 3] with [1 1 1] and [0 2 1]: 6 and 7; [15 15 15] saturates.
  const PackedTensor<4> x(2, 3, std::vector<std::uint8_t>{1, 2, 3, 15, 15, 15});
  const PackedTensor<4> weight(2, 3, std::vector<std::uint8_t>{1, 1, 1, 0, 2, 1});
  CHECK_EQUAL(matmul(x, weight).unpack(), std::vector<std::uint8_t>({6, 7, 15, 15}));
  CHECK_EQUAL(matmul_sums(x, weight), std::vector<std::int32_t>({6, 7, 45, 45}));
  const std::vector<std::int32_t> bias = {-50, 1};
  CHECK_EQUAL(matmul_sums(x, weight, {.bias = bias}), std::vector<std::int32_t>({-44, 8, -5, 46}));
  CHECK_EQUAL(matmul_sums(x, weight, {.x_zero = 1, .weight_zero = 2}), std::vector<std::int32_t>({-3, -2, -42, -42}));
  const std::vector<float> scale = {0.25F};
  CHECK_EQUAL(matmul(x, weight, {.scale = scale, .out_zero = 1}).unpack(), std::vector<std::uint8_t>({3, 3, 12, 12}));
}

TEST(matmul_runs_on_every_instruction_set_and_thread_count) {
  Random random(2);
  bittensor::ThreadPool pool(2);
  for_each_width([&]<int Bits>() {
    const PackedTensor<Bits> x(33, 300, random_codes(random, 33 * 300, Bits));
    const PackedTensor<Bits> weight(130, 300, random_codes(random, 130 * 300, Bits));
    const auto expected = matmul_sums(x, weight);
    const std::vector<std::uint8_t> x_codes = x.unpack();
    const std::vector<std::uint8_t> weight_codes = weight.unpack();
    int sum = 0;
    for (std::size_t k = 0; k < 300; ++k) sum += x_codes[32 * 300 + k] * weight_codes[129 * 300 + k];
    CHECK_EQUAL(expected.back(), sum);
    for (const bittensor::KernelSet* kernels : kernels_under_test()) {
      CONTEXT("%s, %d bits", isa_name(kernels->isa), Bits);
      CHECK_EQUAL(matmul_sums(x, weight, {}, {}, *kernels), expected);
      CHECK_EQUAL(matmul_sums(x, weight, {}, pool.parallel_for(), *kernels), expected);
      CHECK(matmul(x, weight, {}, pool.parallel_for(), *kernels) == matmul(x, weight));
    }
  });
}

TEST(matmul_of_nothing) {
  const std::vector<std::int32_t> bias = {3, -1};
  CHECK_EQUAL(
      matmul_sums(PackedTensor<4>(2, 0), PackedTensor<4>(2, 0), {.bias = bias}),
      std::vector<std::int32_t>({3, -1, 3, -1}));
  CHECK_EQUAL(matmul(PackedTensor<8>(0, 5), PackedTensor<8>(3, 5)).rows(), 0);
  CHECK_EQUAL(matmul(PackedTensor<8>(3, 5), PackedTensor<8>(0, 5)).columns(), 0);
}

TEST(matmul_refuses_what_does_not_fit_together) {
  const PackedTensor<4> x(2, 3);
  const PackedTensor<4> weight(4, 3);
  const std::vector<std::int32_t> short_bias = {1, 2};
  const std::vector<float> short_scale = {1, 2};
  const std::vector<float> infinite = {std::numeric_limits<float>::infinity()};
  const std::vector<float> one = {1};
  const auto product = [&](const bittensor::MatmulTerms& terms) { return matmul(x, weight, terms); };
  CHECK_THROWS(std::invalid_argument, "weight: expected 3 columns, as x has, got 5", matmul(x, PackedTensor<4>(4, 5)));
  CHECK_THROWS(std::invalid_argument, "bias: expected 4 values, got 2", product({.bias = short_bias}));
  CHECK_THROWS(std::invalid_argument, "scale: expected 1 or 4 values, got 2", product({.scale = short_scale}));
  CHECK_THROWS(std::invalid_argument, "scale: expected finite values", product({.scale = infinite}));
  CHECK_THROWS(std::invalid_argument, "scale: has no meaning", matmul_sums(x, weight, {.scale = one}));
  CHECK_THROWS(std::invalid_argument, "x_zero: expected 0 to 15, got 16", product({.x_zero = 16}));
  CHECK_THROWS(std::invalid_argument, "weight_zero: expected 0 to 15, got -1", product({.weight_zero = -1}));
  CHECK_THROWS(std::invalid_argument, "out_zero: has no meaning without scale", product({.out_zero = 1}));
  CHECK_THROWS(std::invalid_argument, "out_zero: expected 0 to 15, got 20", product({.scale = one, .out_zero = 20}));
  CHECK_THROWS(std::invalid_argument, "beyond int32", matmul(PackedTensor<8>(1, 40'000), PackedTensor<8>(1, 40'000)));
}

TEST(matmul_refuses_results_that_are_too_large) {
  const PackedTensor<4> x(std::int64_t{1} << 32, 0);  // without columns there are no words
  const PackedTensor<4> weight(std::int64_t{1} << 32, 0);
  CHECK_THROWS(std::length_error, "shape: too large: 4294967296 x 4294967296", matmul(x, weight));
  CHECK_THROWS(std::length_error, "shape: too large: 4294967296 x 4294967296", matmul_sums(x, weight));
}

TEST(what_is_moved_from_is_empty) {
  PackedTensor<4> first(2, 3, std::vector<std::uint8_t>{1, 2, 3, 4, 5, 6});
  const PackedTensor<4> copy = first;
  PackedTensor<4> second = std::move(first);
  CHECK(second == copy);
  CHECK(first == PackedTensor<4>(0, 0));  // NOLINT(bugprone-use-after-move)
  CHECK_THROWS(std::out_of_range, "position", first.at(1, 1));
  first = std::move(second);
  CHECK(first == copy);
  CHECK(second == PackedTensor<4>(0, 0));  // NOLINT(bugprone-use-after-move)
  PackedTensor<4>& same = first;
  first = std::move(same);
  CHECK(first == copy);
}
