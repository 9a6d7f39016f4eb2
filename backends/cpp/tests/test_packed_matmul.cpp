// The integer product of matrices against a triple loop.

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <thread>

#include "bittensor/packed_matmul.hpp"
#include "bittensor/thread_pool.hpp"
#include "check.hpp"
#include "guarded.hpp"
#include "kernels_under_test.hpp"

using bittensor::KernelSet;
using bittensor::ParallelFor;

namespace {

/// A product with everything it needs, and its result by the definition.
struct Problem {
  std::int64_t rows = 1;
  std::int64_t in_features = 1;
  std::int64_t out_features = 1;
  int bits = 4;
  std::vector<std::uint8_t> x = {};
  std::vector<std::uint8_t> weight = {};
  std::vector<std::int32_t> bias = {};  // empty: none
  std::vector<float> scale = {};        // empty: none
  int x_zero = 0;
  int weight_zero = 0;
  int out_zero = 0;

  std::vector<std::int32_t> sums() const {
    std::vector<std::int32_t> all;
    all.reserve(static_cast<std::size_t>(rows * out_features));
    for (std::int64_t m = 0; m < rows; ++m) {
      for (std::int64_t n = 0; n < out_features; ++n) {
        const std::uint8_t* x_row = x.data() + m * in_features;
        const std::uint8_t* weight_row = weight.data() + n * in_features;
        std::int64_t sum = bias.empty() ? 0 : bias[static_cast<std::size_t>(n)];
        for (std::int64_t k = 0; k < in_features; ++k)
          sum += std::int64_t{x_row[k] - x_zero} * (weight_row[k] - weight_zero);
        all.push_back(static_cast<std::int32_t>(sum));
      }
    }
    return all;
  }

  std::vector<std::uint64_t> words() const {
    std::vector<std::uint8_t> codes;
    const std::vector<std::int32_t> all = sums();
    codes.reserve(all.size());
    for (std::size_t i = 0; i < all.size(); ++i) {
      double value = all[i];
      if (!scale.empty()) {
        const float factor = scale[scale.size() == 1 ? 0 : i % static_cast<std::size_t>(out_features)];
        value = std::nearbyint(static_cast<double>(static_cast<float>(all[i]) * factor)) + out_zero;
      }
      codes.push_back(static_cast<std::uint8_t>(std::clamp<double>(value, 0, bittensor::max_code(bits))));
    }
    return packed_by_rule(codes, rows, out_features, bits);
  }
};

enum class Output : std::uint8_t { sums, codes };

/// Runs a problem on every instruction set and with every loop, with x as codes and as words that have noise in their
/// unused bits.
void check_problem(const Problem& p, Output output, std::span<const ParallelFor> loops) {
  const std::vector<std::uint64_t> x_words = packed_by_rule(p.x, p.rows, p.in_features, p.bits, true);
  const std::vector<std::uint64_t> weight = packed_by_rule(p.weight, p.out_features, p.in_features, p.bits, true);
  const std::vector<std::int32_t> sums = output == Output::sums ? p.sums() : std::vector<std::int32_t>();
  const std::vector<std::uint64_t> words = output == Output::codes ? p.words() : std::vector<std::uint64_t>();
  Guarded<std::uint8_t> x_codes(p.x, Side::back);
  Guarded<std::uint64_t> x_packed(x_words, Side::back);
  Guarded<std::uint64_t> weight_input(weight, Side::back);
  bittensor::PackedMatmul product;
  product.rows = p.rows;
  product.in_features = p.in_features;
  product.out_features = p.out_features;
  product.bits = p.bits;
  product.weight = weight_input.data();
  product.bias = p.bias.empty() ? nullptr : p.bias.data();
  product.x_zero = p.x_zero;
  product.weight_zero = p.weight_zero;
  product.scale = p.scale.empty() ? nullptr : p.scale.data();
  product.scale_count = static_cast<std::int64_t>(p.scale.size());
  product.out_zero = p.out_zero;
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const ParallelFor& loop : loops) {
      for (const bool packed : {false, true}) {
        CONTEXT(
            "%s, %d bits, %ld x %ld x %ld, x_zero %d, weight_zero %d, out_zero %d, bias %zu, scale %zu, x %s, to %s, "
            "%d threads",
            isa_name(kernels->isa), p.bits, long{p.rows}, long{p.out_features}, long{p.in_features}, p.x_zero,
            p.weight_zero, p.out_zero, p.bias.size(), p.scale.size(), packed ? "packed" : "codes",
            output == Output::sums ? "sums" : "codes", loop.thread_count());
        Guarded<std::int32_t> out_sums(static_cast<std::int64_t>(sums.size()), Side::back);
        Guarded<std::uint64_t> out_words(static_cast<std::int64_t>(words.size()), Side::back);
        product.x_codes = packed ? nullptr : x_codes.data();
        product.x_words = packed ? x_packed.data() : nullptr;
        product.out_sums = output == Output::sums ? out_sums.data() : nullptr;
        product.out_words = output == Output::codes ? out_words.data() : nullptr;
        CHECK(!bittensor::packed_matmul(product, *kernels, loop));
        CHECK_EQUAL(out_sums.values(), sums);
        CHECK_EQUAL(out_words.values(), words);
        CHECK(out_sums.intact() && out_words.intact());
      }
    }
  }
}

constexpr ParallelFor one_thread[1] = {};

struct Shape {
  std::int64_t rows, out_features, in_features;
};

Problem random_problem(
    Random& random, std::int64_t rows, std::int64_t out_features, std::int64_t in_features, int bits) {
  const int max = bittensor::max_code(bits);
  Problem p{.rows = rows, .in_features = in_features, .out_features = out_features, .bits = bits};
  p.x = random_codes(random, rows * in_features, bits);
  p.weight = random_codes(random, out_features * in_features, bits);
  const auto zero = [&] { return std::array{0, max, random_between(random, 0, max)}[random() % 3]; };
  p.x_zero = zero();
  p.weight_zero = zero();
  if (random() % 2 == 0) {
    for (std::int64_t n = 0; n < out_features; ++n) p.bias.push_back(random_between(random, -5000, 5000));
  }
  return p;
}

/// Scales that bring typical sums into the range of the codes; multiples of a power of two make ties frequent.
void add_scale(Problem& p, Random& random) {
  const std::int64_t count = random() % 2 == 0 ? 1 : p.out_features;
  const auto spread =
      static_cast<float>(bittensor::max_code(p.bits)) * std::sqrt(static_cast<float>(p.in_features + 1));
  const float unit = std::exp2(-std::ceil(std::log2(spread)));
  for (std::int64_t n = 0; n < count; ++n)
    p.scale.push_back(unit * static_cast<float>(random_between(random, -3, 6)) / 2);
  p.out_zero = random_between(random, 0, bittensor::max_code(p.bits));
}

void check_all(Problem p, Random& random) {
  check_problem(p, Output::sums, one_thread);
  check_problem(p, Output::codes, one_thread);
  add_scale(p, random);
  check_problem(p, Output::codes, one_thread);
}

}  // namespace

TEST(every_count_of_rows) {
  Random random(1);
  std::vector<std::int64_t> counts = {33, 65, 129};
  for (std::int64_t rows = 0; rows <= 17; ++rows) counts.push_back(rows);
  constexpr std::int64_t out_features[] = {0, 1, 3, 15, 16, 17, 31, 33, 63, 64, 65, 130};
  for (const int bits : widths) {
    const std::vector<std::int64_t> in_features = lengths(bits);
    for (const std::int64_t rows : counts) {
      for (int i = 0; i < 4; ++i) {
        const std::int64_t n = out_features[random() % std::size(out_features)];
        const std::int64_t k = in_features[random() % in_features.size()];
        check_all(random_problem(random, rows, n, k, bits), random);
      }
    }
  }
}

TEST(every_length_and_tail_of_columns) {
  Random random(2);
  for (const int bits : widths) {
    for (const std::int64_t k : lengths(bits)) check_all(random_problem(random, 3, 5, k, bits), random);
    for (std::int64_t n = 1; n <= 66; ++n) check_all(random_problem(random, 5, n, 40, bits), random);
  }
}

TEST(threads_share_columns_and_rows) {
  Random random(3);
  // Few columns and many rows, the reverse, and both; all with more products than one thread is given. Threads have
  // rows of their own where these suffice and divide well: 25 rows do not among eight.
  constexpr Shape shapes[] = {{257, 3, 2000}, {1, 1100, 1000}, {65, 130, 200}, {33, 700, 65},
                              {600, 64, 40},  {7, 500, 400},   {25, 130, 400}, {25, 21, 2100}};
  bittensor::ThreadPool two(2);
  bittensor::ThreadPool three(3);
  bittensor::ThreadPool eight(8);
  const ParallelFor loops[] = {{}, two.parallel_for(), three.parallel_for(), eight.parallel_for()};
  for (const int bits : widths) {
    for (const auto [rows, out_features, in_features] : shapes) {
      const Problem p = random_problem(random, rows, out_features, in_features, bits);
      check_problem(p, Output::sums, loops);
      check_problem(p, Output::codes, std::span(loops).last(1));
    }
  }
}

/// From some size on one row meets the words in the order of memory, where the processor gains by it.
TEST(one_row_and_a_weight_larger_than_caches) {
  Random random(7);
  bittensor::ThreadPool two(2);
  const ParallelFor loops[] = {{}, two.parallel_for()};
  check_problem(random_problem(random, 1, 130, 70'001, 4), Output::codes, loops);
  check_problem(random_problem(random, 1, 2051, 4099, 4), Output::sums, loops);
}

/// The rows of x are prepared in panels of about a megabyte: long rows need several.
TEST(several_panels_of_rows) {
  Random random(4);
  bittensor::ThreadPool three(3);
  const ParallelFor loops[] = {{}, three.parallel_for()};
  const auto check_panels = [&](int bits, const Shape& shape) {
    check_problem(random_problem(random, shape.rows, shape.out_features, shape.in_features, bits), Output::sums, loops);
  };
  check_panels(1, {11, 3, 300'001});
  check_panels(2, {14, 3, 150'017});
  check_panels(4, {33, 3, 70'001});
  check_panels(4, {60, 2, 70'001});  // for each thread
  check_panels(4, {8, 2, 300'000});  // shared
  check_panels(8, {70, 2, 33'000});
}

/// The longest rows that are not refused, every term at an extreme: int16 sums and shifted operands would break here.
TEST(extremes) {
  for (const int bits : widths) {
    const int max = bittensor::max_code(bits);
    constexpr std::int64_t limit = std::numeric_limits<std::int32_t>::max();
    const std::int64_t in_features = std::min<std::int64_t>(limit / (std::int64_t{max} * max), 60'001);
    for (int corner = 0; corner < 16; ++corner) {
      const auto extreme = [&](int term) { return (corner >> term & 1) != 0 ? max : 0; };
      Problem p{.rows = 5, .in_features = in_features, .out_features = 1, .bits = bits};
      const int x = extreme(0);
      const int weight = extreme(1);
      p.x.assign(static_cast<std::size_t>(p.rows * in_features), static_cast<std::uint8_t>(x));
      p.weight.assign(static_cast<std::size_t>(in_features), static_cast<std::uint8_t>(weight));
      p.x_zero = extreme(2);
      p.weight_zero = extreme(3);
      // A bias that brings the sum to the last int32.
      const std::int64_t sum = in_features * (x - p.x_zero) * (weight - p.weight_zero);
      p.bias = {static_cast<std::int32_t>(sum < 0 ? -limit - sum : limit - sum)};
      check_problem(p, Output::sums, one_thread);
      check_problem(p, Output::codes, one_thread);
    }
  }
}

TEST(the_first_code_of_x_that_does_not_fit_is_named) {
  bittensor::ThreadPool three(3);
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const int bits : {1, 2, 4}) {
      // The second shape has several panels and the wrong codes in the second.
      for (const std::int64_t in_features : {std::int64_t{77}, std::int64_t{150'001}}) {
        constexpr std::int64_t rows = 30;
        std::vector<std::uint8_t> x(static_cast<std::size_t>(rows * in_features), 1);
        x[static_cast<std::size_t>(25 * in_features)] = 255;
        x[static_cast<std::size_t>(24 * in_features + in_features - 1)] = 16;
        x[static_cast<std::size_t>(29 * in_features + 7)] = 128;
        const std::vector<std::uint64_t> weight(static_cast<std::size_t>(bittensor::words_per_row(in_features, bits)));
        std::vector<std::int32_t> sums(rows);
        bittensor::PackedMatmul product;
        product.rows = rows;
        product.in_features = in_features;
        product.bits = bits;
        product.x_codes = x.data();
        product.weight = weight.data();
        product.out_sums = sums.data();
        for (const ParallelFor& loop : {ParallelFor(), three.parallel_for()}) {
          for (const std::int64_t out_features : {1, 0}) {
            CONTEXT(
                "%s, %d bits, %ld columns, %ld outputs, %d threads", isa_name(kernels->isa), bits, long{in_features},
                long{out_features}, loop.thread_count());
            product.out_features = out_features;
            const auto wrong = bittensor::packed_matmul(product, *kernels, loop);
            CHECK(wrong.has_value());
            CHECK_EQUAL(wrong->row, 24);
            CHECK_EQUAL(wrong->column, in_features - 1);
            CHECK_EQUAL(wrong->code, 16);
          }
        }
      }
    }
  }
}

TEST(largest_sum_bounds_every_sum) {
  CHECK_EQUAL(bittensor::largest_sum(10, 4, 0, 0, 7), 10 * 15 * 15 + 7);
  CHECK_EQUAL(bittensor::largest_sum(10, 4, 8, 5, 0), 10 * 8 * 10);
  CHECK_EQUAL(bittensor::largest_sum(3, 8, 255, 100, 1), 3 * 255 * 155 + 1);
  CHECK_EQUAL(bittensor::largest_sum(0, 1, 1, 1, 0), 0);
}

/// Each thread that multiplies has working memory of its own; the pool they share takes turns.
TEST(several_threads_multiply_at_once) {
  Random random(5);
  const KernelSet& kernels = bittensor::kernels_for(bittensor::choose_isa().isa);
  const Problem p = random_problem(random, 40, 130, 300, 4);
  const std::vector<std::int32_t> expected = p.sums();
  const std::vector<std::uint64_t> weight = packed_by_rule(p.weight, p.out_features, p.in_features, p.bits);
  bittensor::ThreadPool pool(2);
  std::vector<std::vector<std::int32_t>> results(4);
  {
    std::vector<std::jthread> threads;
    threads.reserve(results.size());
    for (std::vector<std::int32_t>& result : results) {
      threads.emplace_back([&] {
        result.resize(expected.size());
        bittensor::PackedMatmul product;
        product.rows = p.rows;
        product.in_features = p.in_features;
        product.out_features = p.out_features;
        product.bits = p.bits;
        product.x_codes = p.x.data();
        product.weight = weight.data();
        product.bias = p.bias.empty() ? nullptr : p.bias.data();
        product.x_zero = p.x_zero;
        product.weight_zero = p.weight_zero;
        product.out_sums = result.data();
        for (int i = 0; i < 10; ++i) static_cast<void>(bittensor::packed_matmul(product, kernels, pool.parallel_for()));
      });
    }
  }
  for (const std::vector<std::int32_t>& result : results) CHECK_EQUAL(result, expected);
}
