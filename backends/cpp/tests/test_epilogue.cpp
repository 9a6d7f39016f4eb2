// From sums to codes and to int32 results, by every kernel.

#include <cmath>
#include <limits>

#include "check.hpp"
#include "guarded.hpp"
#include "kernels_under_test.hpp"

using bittensor::KernelSet;

namespace {

constexpr std::size_t block = bittensor::block_columns;

struct Sums {
  std::vector<std::int32_t> acc = std::vector<std::int32_t>(block);
  std::vector<std::int32_t> column_add = std::vector<std::int32_t>(block);
  std::int32_t row_add = 0;
  std::vector<float> scale;  // empty: none
  int out_zero = 0;

  std::int32_t total(std::size_t n) const {
    const std::int64_t sum = std::int64_t{acc[n]} + column_add[n] + row_add;
    return static_cast<std::int32_t>(static_cast<std::uint32_t>(sum));
  }
};

/// In double precision, where rounding half to even and the clamp are those of the standard library.
std::uint8_t code_by_rule(const Sums& sums, std::size_t n, int max) {
  double value = sums.total(n);
  if (!sums.scale.empty()) {
    const float product = static_cast<float>(sums.total(n)) * sums.scale[n];
    value = std::nearbyint(static_cast<double>(product)) + sums.out_zero;
  }
  return static_cast<std::uint8_t>(value < 0 ? 0 : value > max ? max : value);
}

void check_codes(const KernelSet& kernels, int bits, const Sums& sums, std::int64_t columns) {
  std::vector<std::uint8_t> codes;
  codes.reserve(static_cast<std::size_t>(columns));
  for (std::int64_t n = 0; n < columns; ++n) {
    codes.push_back(code_by_rule(sums, static_cast<std::size_t>(n), bittensor::max_code(bits)));
  }
  const std::vector<std::uint64_t> expected = packed_by_rule(codes, 1, columns, bits);
  for (const Side side : sides) {
    CONTEXT(
        "%s, %d bits, %ld columns, scale %g, out_zero %d, sum %d, guard at the %s", isa_name(kernels.isa), bits,
        long{columns}, sums.scale.empty() ? 0.0 : static_cast<double>(sums.scale[0]), sums.out_zero, sums.total(0),
        name_of(side));
    Guarded<std::int32_t> acc(sums.acc, side);
    Guarded<std::int32_t> column_add(sums.column_add, side);
    Guarded<float> scale(sums.scale, side);
    Guarded<std::uint64_t> words(bittensor::words_per_row(columns, bits), side);
    kernels.for_bits(bits).store_codes(
        {.acc = acc.data(),
         .column_add = column_add.data(),
         .row_add = sums.row_add,
         .scale = sums.scale.empty() ? nullptr : scale.data(),
         .out_zero = sums.out_zero},
        columns, words.data());
    CHECK_EQUAL(words.values(), expected);
    CHECK(words.intact());
  }
}

Sums random_sums(Random& random, int largest) {
  Sums sums;
  for (std::size_t n = 0; n < block; ++n) {
    sums.acc[n] = random_between(random, -largest, largest);
    sums.column_add[n] = random_between(random, -largest / 4, largest / 4);
  }
  sums.row_add = random_between(random, -largest / 4, largest / 4);
  return sums;
}

TEST(gelu_and_silu_are_near_and_have_the_same_bits_everywhere) {
  std::vector<float> values;
  for (int i = -1200; i <= 1200; ++i) values.push_back(static_cast<float>(i) / 100);
  const auto count = static_cast<std::int64_t>(values.size());
  const auto gelu = [](double v) { return 0.5 * v * std::erfc(-v / std::sqrt(2.0)); };
  const auto silu = [](double v) { return v / (1 + std::exp(-v)); };
  for (const bittensor::Activation activation : {bittensor::Activation::gelu, bittensor::Activation::silu}) {
    std::vector<float> first;
    for (const bittensor::KernelSet* kernels : kernels_under_test()) {
      Guarded<float> out(count, Side::back);
      kernels->linear.store_outputs(
          values.data(), count, nullptr, activation, nullptr, bittensor::FloatType::f32, out.data());
      CHECK(out.intact());
      const std::vector<float> results = out.values();
      for (std::size_t i = 0; i < values.size(); ++i) {
        CONTEXT(
            "%s of %g, %s", activation == bittensor::Activation::gelu ? "gelu" : "silu", static_cast<double>(values[i]),
            bittensor::isa_name(kernels->isa));
        const double expected = activation == bittensor::Activation::gelu ? gelu(values[i]) : silu(values[i]);
        CHECK(std::fabs(results[i] - expected) <= 4.3 * 0x1p-24 * std::fabs(static_cast<double>(values[i])));
      }
      if (first.empty()) first = results;
      CONTEXT("%s", bittensor::isa_name(kernels->isa));
      CHECK_EQUAL(results, first);
    }
  }
}

TEST(gelu_and_silu_of_zeros_nan_and_large_values) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  constexpr float large = std::numeric_limits<float>::max();
  const std::vector<float> values = {0.0F, -0.0F, large, -large, 100.0F, -100.0F, infinity, -infinity, nan, -nan};
  const std::vector<float> expected = {0.0F, -0.0F, large, -0.0F, 100.0F, -0.0F, infinity, nan, nan, nan};
  const auto count = static_cast<std::int64_t>(values.size());
  for (const bittensor::Activation activation : {bittensor::Activation::gelu, bittensor::Activation::silu}) {
    for (const bittensor::KernelSet* kernels : kernels_under_test()) {
      std::vector<float> out(values.size());
      kernels->linear.store_outputs(
          values.data(), count, nullptr, activation, nullptr, bittensor::FloatType::f32, out.data());
      for (std::size_t i = 0; i < values.size(); ++i) {
        CONTEXT(
            "%s of %g is %g, %s", activation == bittensor::Activation::gelu ? "gelu" : "silu",
            static_cast<double>(values[i]), static_cast<double>(out[i]), bittensor::isa_name(kernels->isa));
        CHECK_EQUAL(std::isnan(out[i]), std::isnan(expected[i]));
        if (std::isnan(expected[i])) continue;
        CHECK_EQUAL(out[i], expected[i]);
        CHECK_EQUAL(std::signbit(out[i]), std::signbit(expected[i]));
      }
    }
  }
}

}  // namespace

TEST(clamped_sums_of_every_length) {
  Random random(1);
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const int bits : widths) {
      for (std::int64_t columns = 0; columns <= bittensor::block_columns; ++columns) {
        check_codes(*kernels, bits, random_sums(random, 2 * bittensor::max_code(bits)), columns);
      }
    }
  }
}

TEST(scaled_sums) {
  Random random(2);
  constexpr float scales[] = {0.5F,   0.25F,  1.0F,   0.1F,    0.0123F, 1.0F / 3, 7.5F,  0.0F,   -0.0F, -0.5F,
                              -0.01F, 1e-30F, 1e-42F, -1e-45F, 1e30F,   -1e30F,   3e38F, -3e38F, 1e-9F};
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const int bits : widths) {
      const int max = bittensor::max_code(bits);
      for (const float scale : scales) {
        for (const int out_zero : {0, max / 2, max}) {
          for (const int largest : {3, 4 * max, 2000, 1 << 30}) {
            Sums sums = random_sums(random, largest);
            sums.scale.assign(block, scale);
            sums.out_zero = out_zero;
            check_codes(*kernels, bits, sums, 1 + random_between(random, 0, bittensor::block_columns - 1));
          }
        }
      }
    }
  }
}

TEST(every_column_has_its_own_scale) {
  Random random(3);
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const int bits : widths) {
      for (int i = 0; i < 50; ++i) {
        Sums sums = random_sums(random, 4000);
        sums.out_zero = random_between(random, 0, bittensor::max_code(bits));
        for (std::size_t n = 0; n < block; ++n) {
          sums.scale.push_back(std::ldexp(static_cast<float>(random_between(random, -999, 999)), -16));
        }
        check_codes(*kernels, bits, sums, bittensor::block_columns);
      }
    }
  }
}

/// Half of an odd number is a tie, which goes to the even neighbour, also below zero and next to both clamps.
TEST(ties_go_to_even) {
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const int bits : widths) {
      const int max = bittensor::max_code(bits);
      for (const int out_zero : {0, 1, max / 2, max}) {
        for (int first = -2 * max - 5; first <= 2 * max + 5; first += bittensor::block_columns) {
          Sums sums;
          for (std::size_t n = 0; n < block; ++n) sums.acc[n] = first + static_cast<int>(n);
          sums.scale.assign(block, 0.5F);
          sums.out_zero = out_zero;
          check_codes(*kernels, bits, sums, bittensor::block_columns);
        }
      }
    }
  }
  // and the rule itself
  Sums sums;
  sums.scale.assign(block, 0.5F);
  sums.acc = {1, 3, 5, 7};
  sums.acc.resize(block);
  CHECK_EQUAL(int{code_by_rule(sums, 0, 15)}, 0);
  CHECK_EQUAL(int{code_by_rule(sums, 1, 15)}, 2);
  CHECK_EQUAL(int{code_by_rule(sums, 2, 15)}, 2);
  CHECK_EQUAL(int{code_by_rule(sums, 3, 15)}, 4);
}

TEST(sums_at_the_limits_of_int32) {
  constexpr std::int32_t low = std::numeric_limits<std::int32_t>::min();
  constexpr std::int32_t high = std::numeric_limits<std::int32_t>::max();
  struct Terms {
    std::int32_t acc, column_add, row_add;
  };
  // The parts may wrap around as long as the total is right.
  constexpr Terms cases[] = {{high, 0, 0},  {low, 0, 0},    {high, high, 2},     {low, low, 0},
                             {low, low, 3}, {high, 1, low}, {low, -1, high - 5}, {0, high, 1}};
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const int bits : widths) {
      for (const auto [acc, column_add, row_add] : cases) {
        Sums sums;
        sums.acc.assign(block, acc);
        sums.column_add.assign(block, column_add);
        sums.row_add = row_add;
        check_codes(*kernels, bits, sums, 17);
        for (const float scale : {1.0F, 1e-9F, -1e-9F, 1e30F}) {
          sums.scale.assign(block, scale);
          check_codes(*kernels, bits, sums, bittensor::block_columns);
        }
      }
    }
  }
}

TEST(stored_sums_of_every_length) {
  Random random(4);
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const int largest : {1000, std::numeric_limits<std::int32_t>::max()}) {
      for (std::int64_t columns = 0; columns <= bittensor::block_columns; ++columns) {
        Sums sums = random_sums(random, largest);
        sums.acc.resize(static_cast<std::size_t>(columns));
        sums.column_add.resize(static_cast<std::size_t>(columns));
        std::vector<std::int32_t> expected;
        expected.reserve(sums.acc.size());
        for (std::size_t n = 0; n < sums.acc.size(); ++n) expected.push_back(sums.total(n));
        for (const Side side : sides) {
          CONTEXT("%s, %ld columns, guard at the %s", isa_name(kernels->isa), long{columns}, name_of(side));
          Guarded<std::int32_t> acc(sums.acc, side);
          Guarded<std::int32_t> column_add(sums.column_add, side);
          Guarded<std::int32_t> out(columns, side);
          kernels->store_sums(acc.data(), column_add.data(), sums.row_add, columns, out.data());
          CHECK_EQUAL(out.values(), expected);
          CHECK(out.intact());
        }
      }
    }
  }
}
