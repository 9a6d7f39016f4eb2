// What lies between the linears of a transformer: kernels and attention against their definitions, in guarded memory.

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "bittensor/attention.hpp"
#include "bittensor/thread_pool.hpp"
#include "check.hpp"
#include "guarded.hpp"
#include "kernels_under_test.hpp"

using bittensor::Attention;
using bittensor::FloatType;
using bittensor::KernelSet;

namespace {

constexpr std::array column_counts = {1, 2, 7, 8, 15, 16, 17, 31, 33, 64, 100};

std::vector<float> random_floats(std::int64_t count, Random& random) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  std::ranges::generate(values, [&] { return normal(random); });
  return values;
}

void check_near(float actual, double expected, double tolerance) {
  if (std::isnan(actual) || std::abs(static_cast<double>(actual) - expected) > tolerance) CHECK_EQUAL(actual, expected);
}

void check_bits(const std::vector<float>& actual, const std::vector<float>& expected) {
  CHECK_EQUAL(actual.size(), expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i) {
    if (std::bit_cast<std::uint32_t>(actual[i]) != std::bit_cast<std::uint32_t>(expected[i])) {
      CONTEXT("%s, value %zu", std::string(check::context).c_str(), i);
      CHECK_EQUAL(actual[i], expected[i]);
    }
  }
}

/// 16 partial sums of squares, then halves: section 8 of docs/numerics.md.
float sum_of_squares(const std::vector<float>& values) {
  std::array<float, 16> sums{};
  for (std::size_t i = 0; i < values.size(); ++i) sums[i % 16] = std::fma(values[i], values[i], sums[i % 16]);
  for (std::size_t half = 8; half > 0; half /= 2) {
    for (std::size_t i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

TEST(rows_are_normalized_to_the_bit) {
  Random random(1);
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const int columns : column_counts) {
      const std::vector<float> x = random_floats(columns, random);
      const std::vector<float> weight = random_floats(columns, random);
      const float inverse = 1.0F / std::sqrt(sum_of_squares(x) / static_cast<float>(columns) + 1e-5F);
      std::vector<float> expected(x.size());
      for (std::size_t i = 0; i < x.size(); ++i) expected[i] = x[i] * inverse * weight[i];
      for (const Side side : sides) {
        CONTEXT("%s, %d columns, %s", bittensor::isa_name(kernels->isa), columns, name_of(side));
        Guarded<float> input(x, side);
        Guarded<float> factors(weight, side);
        Guarded<float> out(columns, side);
        kernels->transformer.normalize_row(input.data(), FloatType::f32, columns, factors.data(), 1e-5F, out.data());
        check_bits({out.data(), out.data() + columns}, expected);
      }
    }
  }
}

TEST(gates_are_applied) {
  Random random(2);
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const int columns : column_counts) {
      const std::vector<float> x = random_floats(2 * columns, random);
      for (const Side side : sides) {
        CONTEXT("%s, %d columns, %s", bittensor::isa_name(kernels->isa), columns, name_of(side));
        Guarded<float> input(x, side);
        Guarded<float> out(columns, side);
        kernels->transformer.gate_row(input.data(), FloatType::f32, columns, out.data());
        for (std::size_t i = 0; i < static_cast<std::size_t>(columns); ++i) {
          const double gate = x[i];
          const double up = x[i + static_cast<std::size_t>(columns)];
          check_near(out.data()[i], gate / (1 + std::exp(-gate)) * up, 1e-6 * (1 + std::abs(gate * up)));
        }
      }
    }
  }
}

TEST(weights_of_scores_sum_to_one) {
  Random random(3);
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const int columns : column_counts) {
      const std::vector<float> scores = random_floats(columns, random);
      double sum = 0;
      for (const float score : scores) sum += std::exp(static_cast<double>(score));
      const std::int64_t padded = (columns + 15) / 16 * 16;
      for (const Side side : sides) {
        CONTEXT("%s, %d columns, %s", bittensor::isa_name(kernels->isa), columns, name_of(side));
        Guarded<float> row(padded, side);
        std::ranges::copy(scores, row.data());
        kernels->transformer.softmax_row(row.data(), columns);
        for (std::int64_t i = 0; i < padded; ++i) {
          const double expected =
              i < columns ? std::exp(static_cast<double>(scores[static_cast<std::size_t>(i)])) / sum : 0;
          check_near(row.data()[i], expected, i < columns ? 1e-6 : 0);
        }
      }
    }
  }
}

struct Sizes {
  std::int64_t heads;
  std::int64_t shared;  // heads of keys and values
  std::int64_t size;
  std::int64_t tokens;
  std::int64_t capacity;
};

struct Tokens {
  Sizes s;
  std::vector<float> projections;
  std::vector<float> cos;
  std::vector<float> sin;

  Tokens(const Sizes& sizes, Random& random)
      : s(sizes), projections(random_floats(s.tokens * (s.heads + 2 * s.shared) * s.size, random)) {
    for (const float angle : random_floats(s.tokens * s.size, random)) {
      cos.push_back(std::cos(angle));
      sin.push_back(std::sin(angle));
    }
  }

  std::int64_t stride() const { return (s.heads + 2 * s.shared) * s.size; }

  /// Value i of vector `head` (queries, then keys, then values) of token t, turned if it is no value.
  double at(std::int64_t t, std::int64_t head, std::int64_t i) const {
    const float* from = projections.data() + t * stride() + head * s.size;
    if (head >= s.heads + s.shared) return from[i];
    const std::int64_t half = s.size / 2;
    const auto angle = static_cast<std::size_t>(t * s.size + i);
    const double other = i < half ? -from[i + half] : from[i - half];
    return static_cast<double>(from[i]) * cos[angle] + other * sin[angle];
  }

  /// The result in double, by the formula.
  std::vector<double> expected() const {
    std::vector<double> out;
    for (std::int64_t t = 0; t < s.tokens; ++t) {
      for (std::int64_t head = 0; head < s.heads; ++head) {
        const std::int64_t key = s.heads + head / (s.heads / s.shared);
        std::vector<double> weights;
        double sum = 0;
        for (std::int64_t j = 0; j <= t; ++j) {
          double score = 0;
          for (std::int64_t i = 0; i < s.size; ++i) score += at(t, head, i) * at(j, key, i);
          weights.push_back(std::exp(score / std::sqrt(static_cast<double>(s.size))));
          sum += weights.back();
        }
        for (std::int64_t i = 0; i < s.size; ++i) {
          double mixed = 0;
          for (std::int64_t j = 0; j <= t; ++j)
            mixed += weights[static_cast<std::size_t>(j)] * at(j, key + s.shared, i);
          out.push_back(mixed / sum);
        }
      }
    }
    return out;
  }

  /// The result if the tokens come `piece` at a time; every buffer ends at a guard page.
  std::vector<float> attend(const KernelSet& kernels, std::int64_t piece, const bittensor::ParallelFor& loop) const {
    const std::int64_t panels = (s.capacity + bittensor::key_panel - 1) / bittensor::key_panel;
    const std::int64_t padded = (s.size + bittensor::value_unit - 1) / bittensor::value_unit * bittensor::value_unit;
    const std::vector<float> no_keys(static_cast<std::size_t>(s.shared * panels * s.size * bittensor::key_panel));
    const std::vector<float> no_values(static_cast<std::size_t>(s.shared * s.capacity * padded));
    Guarded<float> keys(no_keys, Side::back);
    Guarded<float> values(no_values, Side::back);
    std::vector<float> result;
    for (std::int64_t t = 0; t < s.tokens; t += piece) {
      const std::int64_t count = std::min(piece, s.tokens - t);
      const auto part = [&](const std::vector<float>& all, std::int64_t width) {
        return std::vector<float>(all.begin() + t * width, all.begin() + (t + count) * width);
      };
      Guarded<float> rows(part(projections, stride()), Side::back);
      Guarded<float> cosines(part(cos, s.size), Side::back);
      Guarded<float> sines(part(sin, s.size), Side::back);
      Guarded<float> out(count * s.heads * s.size, Side::back);
      Attention attention;
      attention.projections = rows.data();
      attention.projection_stride = stride();
      attention.cos = cosines.data();
      attention.sin = sines.data();
      attention.keys = keys.data();
      attention.values = values.data();
      attention.heads = s.heads;
      attention.key_value_heads = s.shared;
      attention.head_size = s.size;
      attention.capacity = s.capacity;
      attention.position = t;
      attention.tokens = count;
      attention.out = out.data();
      bittensor::attend(attention, kernels, loop);
      result.insert(result.end(), out.data(), out.data() + count * s.heads * s.size);
    }
    return result;
  }
};

TEST(attention_is_its_formula_with_the_same_bits_everywhere) {
  Random random(4);
  bittensor::ThreadPool pool(3);
  for (const Sizes& sizes :
       {Sizes{1, 1, 2, 1, 1}, Sizes{6, 2, 24, 17, 17}, Sizes{9, 3, 64, 66, 70}, Sizes{2, 2, 18, 33, 64}}) {
    const Tokens tokens(sizes, random);
    const std::vector<double> expected = tokens.expected();
    const std::vector<float> scalar = tokens.attend(bittensor::kernels_for(bittensor::Isa::scalar), sizes.tokens, {});
    for (std::size_t i = 0; i < scalar.size(); ++i) check_near(scalar[i], expected[i], 2e-6);
    for (const KernelSet* kernels : kernels_under_test()) {
      for (const std::int64_t piece : {sizes.tokens, std::int64_t{1}, std::int64_t{5}}) {
        CONTEXT(
            "%s, %lld heads of %lld, pieces of %lld", bittensor::isa_name(kernels->isa),
            static_cast<long long>(sizes.heads), static_cast<long long>(sizes.size), static_cast<long long>(piece));
        check_bits(tokens.attend(*kernels, piece, {}), scalar);
        check_bits(tokens.attend(*kernels, piece, pool.parallel_for()), scalar);
      }
    }
  }
}

TEST(a_broken_key_reaches_those_that_see_it_only) {
  Random random(5);
  Tokens tokens({2, 1, 16, 20, 32}, random);
  tokens.projections[static_cast<std::size_t>(9 * tokens.stride() + 2 * 16)] = std::numeric_limits<float>::quiet_NaN();
  for (const KernelSet* kernels : kernels_under_test()) {
    CONTEXT("%s", bittensor::isa_name(kernels->isa));
    const std::vector<float> out = tokens.attend(*kernels, 20, {});
    for (std::size_t i = 0; i < out.size(); ++i) CHECK_EQUAL(std::isnan(out[i]), i / 32 >= 9);
  }
}

}  // namespace
