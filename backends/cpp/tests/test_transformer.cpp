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
using bittensor::BidirectionalAttention;
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

TEST(a_broken_key_or_value_reaches_those_that_see_it_only) {
  Random random(5);
  const Tokens sound({2, 1, 16, 20, 32}, random);
  for (const std::int64_t vector : {2, 3}) {
    Tokens tokens = sound;
    tokens.projections[static_cast<std::size_t>(9 * tokens.stride() + vector * 16)] =
        std::numeric_limits<float>::quiet_NaN();
    for (const KernelSet* kernels : kernels_under_test()) {
      CONTEXT("%s, vector %lld", bittensor::isa_name(kernels->isa), static_cast<long long>(vector));
      const std::vector<float> out = tokens.attend(*kernels, 20, {});
      // A key makes all values of its queries NaN, a value only its own component.
      for (std::size_t i = 0; i < out.size(); ++i) {
        CHECK_EQUAL(std::isnan(out[i]), i / 32 >= 9 && (vector == 2 || i % 16 == 0));
      }
      check_bits({out.begin(), out.begin() + 9 * 32}, [&] {
        const std::vector<float> expected = sound.attend(*kernels, 20, {});
        return std::vector<float>(expected.begin(), expected.begin() + 9 * 32);
      }());
    }
  }
}

struct SequenceSizes {
  std::int64_t sequences;
  std::int64_t heads;
  std::int64_t shared;  // heads of keys and values
  std::int64_t size;
  std::int64_t queries;
  std::int64_t keys;
};

/// Whole sequences: [sequences, tokens, heads, size], as projections leave them, and which keys are seen.
struct Sequences {
  SequenceSizes s;
  std::vector<float> query;
  std::vector<float> key;
  std::vector<float> value;
  std::vector<std::uint8_t> mask;
  float scale = 0.3F;

  Sequences(const SequenceSizes& sizes, Random& random)
      : s(sizes),
        query(random_floats(s.sequences * s.queries * s.heads * s.size, random)),
        key(random_floats(s.sequences * s.keys * s.shared * s.size, random)),
        value(random_floats(s.sequences * s.keys * s.shared * s.size, random)) {
    // The first sequence sees all, the second nothing, the others some.
    for (std::int64_t i = 0; i < s.sequences * s.keys; ++i) {
      const std::int64_t sequence = i / s.keys;
      mask.push_back(static_cast<std::uint8_t>(sequence == 0 || (sequence > 1 && random() % 3 != 0)));
    }
  }

  bool sees(std::int64_t sequence, std::int64_t j) const {
    return mask[static_cast<std::size_t>(sequence * s.keys + j)] != 0;
  }

  /// The result in double, by the formula.
  std::vector<double> expected() const {
    std::vector<double> out;
    for (std::int64_t b = 0; b < s.sequences; ++b) {
      for (std::int64_t t = 0; t < s.queries; ++t) {
        for (std::int64_t h = 0; h < s.heads; ++h) append(b, t, h, out);
      }
    }
    return out;
  }

  std::vector<float> attend(
      const KernelSet& kernels, const bittensor::ParallelFor& loop, Side side = Side::back) const {
    Guarded<float> queries(query, side);
    Guarded<float> keys(key, side);
    Guarded<float> values(value, side);
    Guarded<std::uint8_t> seen(mask, side);
    Guarded<float> out(s.sequences * s.queries * s.heads * s.size, side);
    BidirectionalAttention attention;
    attention.query = {queries.data(), s.queries * s.heads * s.size, s.size, s.heads * s.size};
    attention.key = {keys.data(), s.keys * s.shared * s.size, s.size, s.shared * s.size};
    attention.value = {values.data(), s.keys * s.shared * s.size, s.size, s.shared * s.size};
    attention.key_mask = seen.data();
    attention.scale = scale;
    attention.sequences = s.sequences;
    attention.heads = s.heads;
    attention.key_value_heads = s.shared;
    attention.head_size = s.size;
    attention.queries = s.queries;
    attention.keys = s.keys;
    attention.out = out.data();
    bittensor::attend_bidirectional(attention, kernels, loop);
    return {out.data(), out.data() + s.sequences * s.queries * s.heads * s.size};
  }

 private:
  void append(std::int64_t b, std::int64_t t, std::int64_t h, std::vector<double>& out) const {
    const std::int64_t shared = h / (s.heads / s.shared);
    const float* q = query.data() + ((b * s.queries + t) * s.heads + h) * s.size;
    std::vector<double> mixed(static_cast<std::size_t>(s.size));
    double sum = 0;
    for (std::int64_t j = 0; j < s.keys; ++j) {
      if (!sees(b, j)) continue;
      const std::int64_t at = ((b * s.keys + j) * s.shared + shared) * s.size;
      double score = 0;
      for (std::int64_t i = 0; i < s.size; ++i)
        score += static_cast<double>(q[i]) * key[static_cast<std::size_t>(at + i)];
      const double weight = std::exp(score * scale);
      sum += weight;
      for (std::int64_t i = 0; i < s.size; ++i) {
        mixed[static_cast<std::size_t>(i)] += weight * value[static_cast<std::size_t>(at + i)];
      }
    }
    for (const double each : mixed) out.push_back(sum == 0 ? 0 : each / sum);
  }
};

constexpr SequenceSizes sequence_sizes[] = {
    {1, 1, 1, 1, 1, 1},     {3, 4, 4, 32, 55, 55}, {4, 6, 2, 24, 7, 17},
    {3, 2, 1, 64, 130, 65}, {2, 3, 3, 16, 1, 129}, {4, 2, 2, 33, 64, 64},
};

TEST(bidirectional_attention_is_its_formula_with_the_same_bits_everywhere) {
  Random random(6);
  bittensor::ThreadPool pool(3);
  for (const SequenceSizes& sizes : sequence_sizes) {
    const Sequences sequences(sizes, random);
    const std::vector<double> expected = sequences.expected();
    const std::vector<float> scalar = sequences.attend(bittensor::kernels_for(bittensor::Isa::scalar), {});
    for (std::size_t i = 0; i < scalar.size(); ++i) check_near(scalar[i], expected[i], 4e-6);
    for (const KernelSet* kernels : kernels_under_test()) {
      CONTEXT(
          "%s, %lld heads of %lld", bittensor::isa_name(kernels->isa), static_cast<long long>(sizes.heads),
          static_cast<long long>(sizes.size));
      for (const Side side : sides) check_bits(sequences.attend(*kernels, {}, side), scalar);
      check_bits(sequences.attend(*kernels, pool.parallel_for(), Side::back), scalar);
    }
  }
}

TEST(keys_that_are_not_seen_leave_no_trace) {
  Random random(7);
  for (const SequenceSizes& sizes : sequence_sizes) {
    const Sequences sequences(sizes, random);
    for (const KernelSet* kernels : kernels_under_test()) {
      CONTEXT("%s", bittensor::isa_name(kernels->isa));
      const std::vector<float> expected = sequences.attend(*kernels, {});
      Sequences broken = sequences;
      const std::int64_t width = sizes.shared * sizes.size;
      for (std::int64_t i = 0; i < sizes.sequences * sizes.keys; ++i) {
        if (broken.mask[static_cast<std::size_t>(i)] != 0) continue;
        std::fill_n(broken.key.begin() + i * width, width, std::numeric_limits<float>::quiet_NaN());
        std::fill_n(broken.value.begin() + i * width, width, std::numeric_limits<float>::infinity());
      }
      check_bits(broken.attend(*kernels, {}), expected);
    }
  }
}

}  // namespace
