// The gradient of the group-quantized linear: its kernels and the operation against the definition, in guarded memory.

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "bittensor/linear_gradient.hpp"
#include "bittensor/prepare.hpp"
#include "bittensor/thread_pool.hpp"
#include "check.hpp"
#include "guarded.hpp"
#include "kernels_under_test.hpp"

using bittensor::FloatType;
using bittensor::KernelSet;
using bittensor::PreparedLayout;
using bittensor::ZeroKind;

namespace {

/// A weight as floats, and prepared.
struct Weight {
  PreparedLayout layout{};
  std::vector<float> values;  // [N, K], by docs/numerics.md, section 3
  std::vector<std::uint8_t> prepared;

  Weight(const PreparedLayout& form, Random& random) : layout(form) {
    const auto groups = static_cast<std::size_t>(layout.out_features * layout.groups());
    const std::vector<std::uint8_t> codes = random_codes(random, layout.out_features * layout.in_features, layout.bits);
    const std::vector<std::uint8_t> zeros = random_codes(random, static_cast<std::int64_t>(groups), layout.bits);
    std::uniform_real_distribution<float> uniform(-1, 1);
    std::vector<float> scales(groups);
    std::vector<float> offsets(groups);
    std::ranges::generate(scales, [&] { return uniform(random); });
    std::ranges::generate(offsets, [&] { return uniform(random); });
    for (std::size_t i = 0; i < codes.size(); ++i) {
      const std::size_t row = i / static_cast<std::size_t>(layout.in_features);
      const std::size_t column = i % static_cast<std::size_t>(layout.in_features);
      const std::size_t group =
          row * static_cast<std::size_t>(layout.groups()) + column / static_cast<std::size_t>(layout.group_size);
      int zero = layout.zero_kind == ZeroKind::symmetric ? 1 << (layout.bits - 1) : 0;
      if (layout.zero_kind == ZeroKind::integer) zero = zeros[group];
      const float product = scales[group] * static_cast<float>(codes[i] - zero);
      values.push_back(layout.zero_kind == ZeroKind::offset ? product + offsets[group] : product);
    }
    const std::vector<std::uint64_t> words =
        packed_by_rule(codes, layout.out_features, layout.in_features, layout.bits);
    prepared.resize(static_cast<std::size_t>(layout.bytes()));
    bittensor::prepare(
        {words.data(), scales.data(), zeros.data(), offsets.data()}, layout, prepared.data(),
        bittensor::kernels_for(bittensor::Isa::scalar));
  }

  float at(std::int64_t n, std::int64_t k) const {
    return values[static_cast<std::size_t>(n * layout.in_features + k)];
  }
};

/// One chain of multiply-adds for each result (docs/numerics.md, section 6).
std::vector<float> by_definition(const Weight& w, const std::vector<float>& dy, std::int64_t rows) {
  const PreparedLayout& l = w.layout;
  std::vector<float> dx(static_cast<std::size_t>(rows * l.in_features));
  for (std::int64_t m = 0; m < rows; ++m) {
    for (std::int64_t n = 0; n < l.out_features; ++n) {
      const float value = dy[static_cast<std::size_t>(m * l.out_features + n)];
      for (std::int64_t k = 0; k < l.in_features; ++k) {
        float& sum = dx[static_cast<std::size_t>(m * l.in_features + k)];
        sum = std::fma(value, w.at(n, k), sum);
      }
    }
  }
  return dx;
}

/// Equal bits, except that a NaN is a NaN.
void check_same(const std::vector<float>& actual, const std::vector<float>& expected) {
  CHECK_EQUAL(actual.size(), expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i) {
    if (std::isnan(actual[i]) && std::isnan(expected[i])) continue;
    if (std::bit_cast<std::uint32_t>(actual[i]) != std::bit_cast<std::uint32_t>(expected[i])) {
      CONTEXT("%s, value %zu", std::string(check::context).c_str(), i);
      CHECK_EQUAL(actual[i], expected[i]);
      check::fail(__FILE__, __LINE__, "zeros of different signs");
    }
  }
}

/// Shapes around tiles of 16 rows, panels, blocks, vectors and spans; groups whole, ragged, of a single column.
std::vector<PreparedLayout> layouts() {
  std::vector<PreparedLayout> all;
  for (const int bits : {2, 4, 8}) {
    for (const ZeroKind kind : {ZeroKind::symmetric, ZeroKind::integer, ZeroKind::offset}) {
      for (const auto& [n, k, size] :
           {std::array{1, 1, 1}, std::array{15, 7, 7}, std::array{16, 24, 8}, std::array{17, 31, 16},
            std::array{49, 129, 64}, std::array{130, 65, 24}, std::array{97, 40, 32}, std::array{20, 600, 40},
            std::array{33, 700, 320}}) {
        all.push_back({n, k, size, bits, FloatType::f32, kind});
      }
    }
  }
  return all;
}

void set_context(const KernelSet& kernels, const PreparedLayout& l, std::int64_t rows, bool threads) {
  CONTEXT(
      "%s, %lld x %lld, groups of %lld, %d bits, zero kind %d, %lld rows, threads %d", bittensor::isa_name(kernels.isa),
      static_cast<long long>(l.out_features), static_cast<long long>(l.in_features),
      static_cast<long long>(l.group_size), l.bits, static_cast<int>(l.zero_kind), static_cast<long long>(rows),
      static_cast<int>(threads));
}

void check_gradient(const Weight& w, const std::vector<float>& dy, std::int64_t rows, bittensor::ThreadPool& pool) {
  const PreparedLayout& l = w.layout;
  const std::vector<float> expected = by_definition(w, dy, rows);
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const bool threads : {false, true}) {
      set_context(*kernels, l, rows, threads);
      Guarded<std::uint8_t> prepared(w.prepared, Side::back);
      Guarded<float> input(dy, Side::back);
      Guarded<float> out(rows * l.in_features, Side::back);
      bittensor::LinearInputGrad gradient;
      gradient.dy = input.data();
      gradient.dy_row_bytes = l.out_features * 4;
      gradient.rows = rows;
      gradient.prepared = prepared.data();
      gradient.layout = l;
      gradient.out = out.data();
      bittensor::linear_input_grad(gradient, *kernels, threads ? pool.parallel_for() : bittensor::ParallelFor());
      check_same(out.values(), expected);
      CHECK(out.intact());
    }
  }
}

std::vector<float> normal_values(Random& random, std::int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  std::ranges::generate(values, [&] { return normal(random); });
  return values;
}

TEST(gradient_follows_its_definition) {
  Random random(1);
  bittensor::ThreadPool pool(3);
  for (const PreparedLayout& layout : layouts()) {
    const Weight w(layout, random);
    for (const std::int64_t rows : {1, 2, 7, 13}) {
      check_gradient(w, normal_values(random, rows * layout.out_features), rows, pool);
    }
  }
}

TEST(many_rows_are_cut_into_parts) {
  Random random(2);
  bittensor::ThreadPool pool(4);
  // Above the limit of serial operations: few columns are shared out by rows, many rows are taken in turns.
  for (const PreparedLayout& layout :
       {PreparedLayout{110, 40, 8, 4, FloatType::f32, ZeroKind::integer},
        PreparedLayout{30, 270, 128, 2, FloatType::f32, ZeroKind::offset}}) {
    const Weight w(layout, random);
    check_gradient(w, normal_values(random, 250 * layout.out_features), 250, pool);
  }
}

TEST(panels_hold_the_weight) {
  Random random(3);
  for (const PreparedLayout& layout : layouts()) {
    const Weight w(layout, random);
    for (const KernelSet* kernels : kernels_under_test()) {
      for (std::int64_t column = 0; column < layout.in_features;
           column += std::max<std::int64_t>(layout.group_size, 64) / layout.group_size * layout.group_size) {
        set_context(*kernels, layout, column, false);
        const std::int64_t columns = std::min<std::int64_t>(layout.in_features - column, 70);
        const std::int64_t stride = columns + bittensor::panel_unit;
        Guarded<std::uint8_t> prepared(w.prepared, Side::back);
        Guarded<float> values(layout.tiles() * bittensor::tile_rows * stride, Side::back);
        kernels->gradient.dequantize_panel_for(layout.bits)(
            {&layout, prepared.data(), 0, layout.tiles(), column, columns, values.data(), stride});
        CHECK(values.intact());
        for (std::int64_t n = 0; n < layout.tiles() * bittensor::tile_rows; ++n) {
          for (std::int64_t k = 0; k < stride; ++k) {
            const float expected = n < layout.out_features && k < columns ? w.at(n, column + k) : 0.0F;
            if (values.data()[n * stride + k] != expected) CHECK_EQUAL(values.data()[n * stride + k], expected);
          }
        }
      }
    }
  }
}

TEST(products_of_panels_continue_sums) {
  Random random(4);
  constexpr std::int64_t depth = 37;
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const std::int64_t rows : {1, 2, 3, 4, 5, 6, 7, 12, 13}) {
      for (const std::int64_t tiles : {1, 2, 3, 4, 5, 8, 9}) {
        CONTEXT(
            "%s, %lld rows, %lld tiles", bittensor::isa_name(kernels->isa), static_cast<long long>(rows),
            static_cast<long long>(tiles));
        const std::int64_t columns = tiles * bittensor::panel_unit;
        const std::vector<float> dy = normal_values(random, rows * depth);
        const std::vector<float> panel = normal_values(random, depth * columns);
        Guarded<float> guarded_dy(dy, Side::back);
        Guarded<float> guarded_panel(panel, Side::back);
        Guarded<float> sums(rows * columns, Side::back);
        std::vector<float> expected(static_cast<std::size_t>(rows * columns));
        for (const bool continues : {false, true}) {
          kernels->gradient.panel_product(
              {guarded_dy.data(), depth, rows, guarded_panel.data(), columns, depth, tiles, sums.data(), columns,
               continues});
          for (std::int64_t i = 0; i < rows * columns; ++i) {
            float& sum = expected[static_cast<std::size_t>(i)];
            for (std::int64_t n = 0; n < depth; ++n) {
              sum = std::fma(
                  dy[static_cast<std::size_t>(i / columns * depth + n)],
                  panel[static_cast<std::size_t>(n * columns + i % columns)], sum);
            }
          }
          check_same(sums.values(), expected);
          CHECK(sums.intact());
        }
      }
    }
  }
}

TEST(a_nan_stays_in_its_row) {
  Random random(5);
  bittensor::ThreadPool pool(2);
  const Weight w({50, 64, 32, 4, FloatType::f32, ZeroKind::integer}, random);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> dy(std::size_t{7} * 50, 0.5F);
    dy[3 * 50 + 40] = bad;
    check_gradient(w, dy, 7, pool);
  }
}

}  // namespace
