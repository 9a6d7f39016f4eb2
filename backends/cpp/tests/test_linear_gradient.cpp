// The gradient of the group-quantized linear: its kernels and the operation against the definition, in guarded memory.

#include <algorithm>
#include <cmath>
#include <limits>

#include "bittensor/linear_gradient.hpp"
#include "bittensor/prepare.hpp"
#include "bittensor/thread_pool.hpp"
#include "check.hpp"
#include "guarded.hpp"
#include "kernels_under_test.hpp"
#include "quantized_weight.hpp"

using bittensor::KernelSet;

namespace {

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
    for (const std::int64_t rows : {1, 2, 3, 4, 7, 13}) {
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

TEST(strips_of_few_rows_are_shared_out) {
  Random random(6);
  bittensor::ThreadPool pool(3);
  // Above the limit of serial operations, with more strips than threads.
  for (const PreparedLayout& layout :
       {PreparedLayout{700, 1000, 24, 2, FloatType::f32, ZeroKind::integer},
        PreparedLayout{905, 610, 128, 4, FloatType::f32, ZeroKind::symmetric},
        PreparedLayout{905, 600, 600, 4, FloatType::f32, ZeroKind::offset},
        PreparedLayout{910, 404, 16, 8, FloatType::f32, ZeroKind::offset}}) {
    const Weight w(layout, random);
    for (const std::int64_t rows : {3, 4}) {
      check_gradient(w, normal_values(random, rows * layout.out_features), rows, pool);
    }
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
