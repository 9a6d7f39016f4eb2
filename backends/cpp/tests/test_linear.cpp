// The group-quantized linear: prepare, restore, and both modes against the definition, in guarded memory.

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "bittensor/linear.hpp"
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

/// A weight by its definition, with float32 scales, and the canonical arrays of it.
struct Weight {
  PreparedLayout layout{};
  std::vector<std::uint8_t> codes;
  std::vector<float> scales;
  std::vector<std::uint8_t> zeros;
  std::vector<float> offsets;
  std::vector<std::uint64_t> words;
  std::vector<float> bias;

  Weight(const PreparedLayout& form, Random& random, bool largest_codes) : layout(form) {
    const std::int64_t groups = layout.out_features * layout.groups();
    codes = random_codes(random, layout.out_features * layout.in_features, layout.bits);
    if (largest_codes) std::ranges::fill(codes, static_cast<std::uint8_t>(bittensor::max_code(layout.bits)));
    std::uniform_real_distribution<float> values(-1, 1);
    for (std::int64_t i = 0; i < groups; ++i) {
      scales.push_back(values(random));
      offsets.push_back(values(random));
    }
    for (std::int64_t n = 0; n < layout.out_features; ++n) bias.push_back(values(random));
    zeros = random_codes(random, groups, layout.bits);
    words = packed_by_rule(codes, layout.out_features, layout.in_features, layout.bits);
  }

  bittensor::GroupQuantized canonical() const { return {words.data(), scales.data(), zeros.data(), offsets.data()}; }

  double zero(std::size_t group) const {
    if (layout.zero_kind == ZeroKind::integer) return zeros[group];
    return layout.zero_kind == ZeroKind::symmetric ? 1 << (layout.bits - 1) : 0;
  }
};

/// Groups of a weight that meet one group of activations.
std::int64_t groups_together(const PreparedLayout& l) {
  const bool share = l.bits < 8 && l.zero_kind != ZeroKind::offset;
  return share ? std::max<std::int64_t>(64 / l.group_size, 1) : 1;
}

/// Rows of int8 activations by docs/numerics.md, section 4.
std::vector<float> int8_by_definition(const Weight& w, const std::vector<float>& x, std::int64_t rows) {
  const PreparedLayout& l = w.layout;
  std::vector<float> all;
  for (std::int64_t m = 0; m < rows; ++m) {
    for (std::int64_t n = 0; n < l.out_features; ++n) {
      float y = 0;
      const std::int64_t length = groups_together(l) * l.group_size;
      for (std::int64_t begin = 0; begin < l.in_features; begin += length) {
        const std::int64_t end = std::min(begin + length, l.in_features);
        float amax = 0;
        bool finite = true;
        for (std::int64_t k = begin; k < end; ++k) {
          const float value = std::fabs(x[static_cast<std::size_t>(m * l.in_features + k)]);
          finite = finite && std::isfinite(value);
          amax = std::max(amax, value);
        }
        const bool zero = finite && amax < 0x1p-100F;
        const float inverse = 127.0F / amax;
        float scale = zero ? 0.0F : amax / 127.0F;
        if (!finite) scale = std::numeric_limits<float>::quiet_NaN();
        float z = 0;
        for (std::int64_t first = begin; first < end; first += l.group_size) {
          const auto group = static_cast<std::size_t>(n * l.groups() + first / l.group_size);
          std::int64_t sum = 0;
          std::int64_t total = 0;
          for (std::int64_t k = first; k < std::min(first + l.group_size, end) && finite && !zero; ++k) {
            const auto code =
                static_cast<std::int64_t>(std::nearbyint(x[static_cast<std::size_t>(m * l.in_features + k)] * inverse));
            sum += code * w.codes[static_cast<std::size_t>(n * l.in_features + k)];
            total += code;
          }
          sum -= static_cast<std::int64_t>(w.zero(group)) * total;
          z = std::fma(static_cast<float>(sum), w.scales[group], z);
          if (l.zero_kind == ZeroKind::offset) z = std::fma(static_cast<float>(total), w.offsets[group], z);
        }
        y = std::fma(z, scale, y);
      }
      all.push_back(y);
    }
  }
  return all;
}

/// Rows of float activations by docs/numerics.md, section 5: in digits.
std::vector<float> float_by_definition(const Weight& w, const std::vector<float>& x, std::int64_t rows) {
  const PreparedLayout& l = w.layout;
  std::vector<float> all;
  for (std::int64_t m = 0; m < rows; ++m) {
    for (std::int64_t n = 0; n < l.out_features; ++n) {
      std::array<float, 3> y{};
      for (std::int64_t begin = 0; begin < l.in_features; begin += l.group_size * groups_together(l)) {
        const std::int64_t end = std::min(begin + l.group_size * groups_together(l), l.in_features);
        double amax = 0;
        bool finite = true;
        for (std::int64_t k = begin; k < end; ++k) {
          const double value = std::fabs(x[static_cast<std::size_t>(m * l.in_features + k)]);
          finite = finite && std::isfinite(value);
          amax = std::max(amax, value);
        }
        const bool has_digits = finite && amax >= 0x1p-100;
        int exponent = 0;
        while (has_digits && amax > std::ldexp(8355711.0, exponent)) ++exponent;
        while (has_digits && amax <= std::ldexp(8355711.0, exponent - 1)) --exponent;
        std::array<float, 3> z{};
        for (std::int64_t first = begin; first < end; first += l.group_size) {
          const auto group = static_cast<std::size_t>(n * l.groups() + first / l.group_size);
          std::array<std::int64_t, 3> sum{};
          std::array<std::int64_t, 3> total{};
          for (std::int64_t k = first; k < std::min(first + l.group_size, end) && has_digits; ++k) {
            const double value = x[static_cast<std::size_t>(m * l.in_features + k)];
            auto rest = static_cast<std::int64_t>(std::nearbyint(std::ldexp(value, -exponent)));
            for (std::size_t d = 0; d < 3; ++d) {
              const std::int64_t digit = (rest + 128 + (std::int64_t{1} << 32)) % 256 - 128;
              rest = (rest - digit) / 256;
              sum[d] += digit * w.codes[static_cast<std::size_t>(n * l.in_features + k)];
              total[d] += digit;
            }
            CHECK_EQUAL(rest, 0);
          }
          for (std::size_t d = 0; d < 3; ++d) {
            sum[d] -= static_cast<std::int64_t>(w.zero(group)) * total[d];
            z[d] = std::fma(static_cast<float>(sum[d]), w.scales[group], z[d]);
            if (l.zero_kind == ZeroKind::offset) z[d] = std::fma(static_cast<float>(total[d]), w.offsets[group], z[d]);
          }
        }
        for (int d = 0; d < 3; ++d) {
          float scale = has_digits ? std::ldexp(1.0F, exponent + 8 * d) : 0.0F;
          if (!finite) scale = std::numeric_limits<float>::quiet_NaN();
          y[static_cast<std::size_t>(d)] =
              std::fma(z[static_cast<std::size_t>(d)], scale, y[static_cast<std::size_t>(d)]);
        }
      }
      all.push_back((y[0] + y[1]) + y[2]);
    }
  }
  return all;
}

/// Equal bits, except that a NaN is a NaN and zeros of both signs are equal.
void check_same(const std::vector<float>& actual, const std::vector<float>& expected) {
  CHECK_EQUAL(actual.size(), expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i) {
    if (std::isnan(actual[i]) && std::isnan(expected[i])) continue;
    if (actual[i] != expected[i]) CHECK_EQUAL(actual[i], expected[i]);
  }
}

PreparedLayout layout_of(
    std::int64_t out_features, std::int64_t in_features, std::int64_t group_size, int bits, ZeroKind kind) {
  return {out_features, in_features, group_size, bits, FloatType::f32, kind};
}

/// Shapes around tiles of 16 rows, blocks, and vectors; groups whole, ragged, of a single column.
std::vector<PreparedLayout> layouts() {
  std::vector<PreparedLayout> all;
  for (const int bits : {2, 4, 8}) {
    for (const ZeroKind kind : {ZeroKind::symmetric, ZeroKind::integer, ZeroKind::offset}) {
      all.push_back(layout_of(1, 1, 1, bits, kind));
      all.push_back(layout_of(15, 7, 7, bits, kind));
      all.push_back(layout_of(16, 24, 8, bits, kind));
      all.push_back(layout_of(17, 31, 16, bits, kind));
      all.push_back(layout_of(49, 129, 64, bits, kind));
      all.push_back(layout_of(130, 65, 24, bits, kind));
      all.push_back(layout_of(200, 40, 32, bits, kind));
    }
  }
  return all;
}

/// The same with the bias.
std::vector<float> with_bias(std::vector<float> y, const Weight& w) {
  for (std::size_t i = 0; i < y.size(); ++i) y[i] += w.bias[i % w.bias.size()];
  return y;
}

/// Prepares the weight, in guarded memory, and calls `check` with the operands of its linear and their result: without
/// a bias, and with one.
template <class Check>
void with_linear(
    const Weight& w, const std::vector<float>& x, std::int64_t rows, const KernelSet& kernels,
    const bittensor::ParallelFor& loop, const Check& check) {
  const PreparedLayout& l = w.layout;
  CONTEXT(
      "%s, %lld x %lld, groups of %lld, %d bits, zero kind %d, %lld rows, threads %d", bittensor::isa_name(kernels.isa),
      static_cast<long long>(l.out_features), static_cast<long long>(l.in_features),
      static_cast<long long>(l.group_size), l.bits, static_cast<int>(l.zero_kind), static_cast<long long>(rows),
      loop.thread_count());
  Guarded<std::uint8_t> prepared(l.bytes(), Side::back);
  bittensor::prepare(w.canonical(), l, prepared.data(), kernels, loop);
  CHECK(prepared.intact());
  Guarded<float> input(x, Side::back);
  Guarded<float> out(rows * l.out_features, Side::back);
  bittensor::Linear linear;
  linear.x = input.data();
  linear.x_row_bytes = l.in_features * 4;
  linear.rows = rows;
  linear.prepared = prepared.data();
  linear.layout = bittensor::read_layout(prepared.data(), l.bytes());
  linear.out = out.data();
  check(linear, out);
  CHECK(out.intact());
  Guarded<float> bias(w.bias, Side::back);
  linear.bias = bias.data();
  check(linear, out);
  CHECK(out.intact());
}

void check_linear(const Weight& w, const std::vector<float>& x, std::int64_t rows, bittensor::ThreadPool& pool) {
  const std::vector<float> int8_expected = int8_by_definition(w, x, rows);
  const std::vector<float> float_expected = float_by_definition(w, x, rows);
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const bittensor::ParallelFor& loop : {bittensor::ParallelFor(), pool.parallel_for()}) {
      with_linear(w, x, rows, *kernels, loop, [&](const bittensor::Linear& linear, const Guarded<float>& out) {
        bittensor::linear_int8(linear, *kernels, loop);
        check_same(out.values(), linear.bias == nullptr ? int8_expected : with_bias(int8_expected, w));
        bittensor::linear_float(linear, *kernels, loop);
        check_same(out.values(), linear.bias == nullptr ? float_expected : with_bias(float_expected, w));
      });
    }
  }
}

/// The int8 mode; with `tiles`, of AMX alone and of the set whose other kernels it has.
void check_int8(
    const Weight& w, const std::vector<float>& x, std::int64_t rows, bittensor::ThreadPool& pool, bool tiles) {
  const std::vector<float> expected = int8_by_definition(w, x, rows);
  for (const KernelSet* kernels : kernels_under_test()) {
    if (tiles && kernels->isa != bittensor::Isa::amx && kernels->isa != bittensor::Isa::avx512vnni) continue;
    const bittensor::ParallelFor loop = pool.parallel_for();
    with_linear(w, x, rows, *kernels, loop, [&](const bittensor::Linear& linear, const Guarded<float>& out) {
      bittensor::linear_int8(linear, *kernels, loop);
      check_same(out.values(), linear.bias == nullptr ? expected : with_bias(expected, w));
    });
  }
}

TEST(restore_undoes_prepare) {
  Random random(1);
  for (const PreparedLayout& layout : layouts()) {
    const Weight w(layout, random, false);
    for (const KernelSet* kernels : kernels_under_test()) {
      CONTEXT("%s, %d bits", bittensor::isa_name(kernels->isa), layout.bits);
      std::vector<std::uint8_t> prepared(static_cast<std::size_t>(layout.bytes()));
      bittensor::prepare(w.canonical(), layout, prepared.data(), *kernels);
      Weight back = w;
      std::ranges::fill(back.words, ~std::uint64_t{0});
      std::ranges::fill(back.scales, 0.0F);
      bittensor::restore(
          prepared.data(), layout, {back.words.data(), back.scales.data(), back.zeros.data(), back.offsets.data()},
          *kernels);
      CHECK_EQUAL(back.words, w.words);
      CHECK_EQUAL(back.scales, w.scales);
      CHECK_EQUAL(back.zeros, w.zeros);
      CHECK_EQUAL(back.offsets, w.offsets);
    }
  }
}

TEST(linear_follows_its_definition) {
  Random random(2);
  std::normal_distribution<float> normal;
  bittensor::ThreadPool pool(3);
  for (const PreparedLayout& layout : layouts()) {
    const Weight w(layout, random, false);
    for (const std::int64_t rows : {1, 2, 3, 5, 9, 17}) {
      std::vector<float> x(static_cast<std::size_t>(rows * layout.in_features));
      std::ranges::generate(x, [&] { return normal(random); });
      if (rows == 5) std::fill_n(x.begin(), layout.in_features, 0.0F);  // a row of zeros
      check_linear(w, x, rows, pool);
    }
  }
}

/// Large enough to be shared out: each thread has rows of its own, in one panel and in several; or tiles with a ragged
/// last one, because rows are too few or do not divide well, and rows as well where tiles are few.
TEST(work_is_shared_out_without_gaps) {
  struct Shape {
    std::int64_t rows, out_features, in_features;
    int threads;
  };
  Random random(6);
  std::normal_distribution<float> normal;
  for (const Shape& shape :
       {Shape{41, 391, 128, 8}, Shape{67, 33, 1024, 8}, Shape{20, 3, 66'000, 2}, Shape{9, 391, 512, 8},
        Shape{25, 33, 2048, 8}}) {
    bittensor::ThreadPool pool(shape.threads);
    CHECK(shape.rows * shape.out_features * shape.in_features >= std::int64_t{3} << 19);
    const Weight w(layout_of(shape.out_features, shape.in_features, 64, 4, ZeroKind::integer), random, false);
    std::vector<float> x(static_cast<std::size_t>(shape.rows * shape.in_features));
    std::ranges::generate(x, [&] { return normal(random); });
    check_linear(w, x, shape.rows, pool);
  }
}

/// So many products and tiles that threads take over tiles of others, with a ragged last one: one row, and several.
TEST(threads_that_help_leave_no_gaps) {
  Random random(9);
  std::normal_distribution<float> normal;
  bittensor::ThreadPool pool(2);
  // Beyond 4 MiB: one row meets it tile after tile, where the processor gains by it.
  const Weight tall(layout_of(130 * 16 - 1, 4096, 128, 4, ZeroKind::symmetric), random, false);
  const Weight wide(layout_of(24 * 16 + 7, 2408, 32, 4, ZeroKind::offset), random, false);
  for (const auto& [w, rows] : {std::pair(&tall, 1), std::pair(&wide, 9)}) {
    const std::int64_t counted = std::max(rows, 2);  // a row alone takes as long as two
    CHECK(counted * w->layout.out_features * w->layout.in_features >= std::int64_t{1} << 23);
    CHECK(w->layout.tiles() >= 2 * 2 * 6);
    std::vector<float> x(static_cast<std::size_t>(rows * w->layout.in_features));
    std::ranges::generate(x, [&] { return normal(random); });
    check_linear(*w, x, rows, pool);
  }
}

/// What the tiles of AMX tell apart: runs and panels of rows, an odd number of weight tiles, groups of less than a
/// step, even and odd in number, groups of several steps with a ragged last one, and groups that reach past a chunk.
TEST(tiles_meet_every_shape) {
  Random random(7);
  std::normal_distribution<float> normal;
  bittensor::ThreadPool pool(2);
  for (const int bits : {2, 4, 8}) {
    for (const ZeroKind kind : {ZeroKind::symmetric, ZeroKind::integer, ZeroKind::offset}) {
      for (const std::int64_t group_size : {24, 32, 40, 64, 72, 96, 200, 512}) {
        const Weight w(layout_of(5 * 16 + 3, 584, group_size, bits, kind), random, false);
        for (const std::int64_t rows : {5, 12, 16, 17, 33, 47}) {
          std::vector<float> x(static_cast<std::size_t>(rows * w.layout.in_features));
          std::ranges::generate(x, [&] { return normal(random); });
          check_int8(w, x, rows, pool, true);
        }
      }
    }
  }
  for (const std::int64_t group_size : {32, 128}) {
    const Weight w(layout_of(7 * 16, 832, group_size, 4, ZeroKind::integer), random, false);
    std::vector<float> x(static_cast<std::size_t>(261 * w.layout.in_features));
    std::ranges::generate(x, [&] { return normal(random); });
    check_int8(w, x, 261, pool, true);
  }
}

/// The kernels themselves, without the room that linear_int8 leaves behind rows of codes: a page that cannot be read
/// follows the last one.
TEST(no_kernel_reads_beyond_the_last_row) {
  Random random(10);
  for (const int bits : {2, 4, 8}) {
    for (const auto& [columns, group_size] : {std::pair(352, 32), {360, 32}, {328, 64}, {1096, 64}, {328, 128}}) {
      const Weight w(layout_of(3 * 16, columns, group_size, bits, ZeroKind::symmetric), random, false);
      const PreparedLayout& l = w.layout;
      std::vector<std::uint8_t> prepared(static_cast<std::size_t>(l.bytes()));
      bittensor::prepare(w.canonical(), l, prepared.data(), bittensor::kernels_for(bittensor::Isa::scalar));
      for (const std::int64_t rows : {1, 9, 17}) {
        CONTEXT("%d bits, %d columns, groups of %d, %d rows", bits, columns, group_size, static_cast<int>(rows));
        Guarded<std::int8_t> x(rows * l.padded_columns(), Side::back);
        std::fill_n(x.data(), rows * l.padded_columns(), std::int8_t{3});
        const std::vector<float> scales(static_cast<std::size_t>(rows * l.activation_groups()), 0.5F);
        std::vector<std::int32_t> sums(static_cast<std::size_t>(rows * l.groups()));
        for (std::int64_t g = 0; g < l.groups(); ++g) {
          const std::int64_t end = std::min((g + 1) * l.group_blocks(), l.blocks());
          std::fill_n(
              sums.begin() + g * rows, rows,
              static_cast<std::int32_t>(3 * (end - g * l.group_blocks()) * l.block_columns()));
        }
        std::vector<float> expected;
        for (const KernelSet* kernels : kernels_under_test()) {
          std::vector<float> y(static_cast<std::size_t>(rows * l.out_features));
          bittensor::Int8LinearBlock block{};
          block.layout = &l;
          block.codes = prepared.data() + l.codes_begin();
          block.scales = prepared.data() + l.scales_begin();
          block.zeros = prepared.data() + l.zeros_begin();
          block.tiles = block.tiles_to_come = l.tiles();
          block.x = x.data();
          block.x_stride = l.padded_columns();
          block.x_scales = scales.data();
          block.x_sums = sums.data();
          block.x_group_stride = block.rows = rows;
          block.y = y.data();
          block.y_stride = l.out_features;
          kernels->linear.int8_linear_for(bits)(block);
          if (expected.empty()) expected = y;
          check_same(y, expected);
        }
      }
    }
  }
}

/// Rows enough for every kernel that decodes codes once: groups of which several fit at a time, with a shorter last
/// one, and one that is too long.
TEST(many_rows_share_decoded_codes) {
  Random random(8);
  std::normal_distribution<float> normal;
  bittensor::ThreadPool pool(2);
  constexpr std::int64_t rows = 101;
  for (const int bits : {2, 4}) {
    for (const ZeroKind kind : {ZeroKind::symmetric, ZeroKind::integer, ZeroKind::offset}) {
      for (const std::int64_t group_size : {32, 136, 1640}) {
        const Weight w(layout_of(4 * 16 + 3, 1640, group_size, bits, kind), random, false);
        std::vector<float> x(static_cast<std::size_t>(rows * w.layout.in_features));
        std::ranges::generate(x, [&] { return normal(random); });
        check_int8(w, x, rows, pool, false);
      }
    }
  }
}

TEST(sums_of_sixteen_bits_do_not_saturate) {
  Random random(3);
  bittensor::ThreadPool pool(2);
  for (const int bits : {2, 4, 8}) {
    const Weight w(layout_of(33, 4096, 4096, bits, ZeroKind::offset), random, true);
    for (const float sign : {1.0F, -1.0F}) check_linear(w, std::vector<float>(3 * 4096, sign), 3, pool);
  }
}

TEST(a_nan_stays_in_its_row) {
  Random random(4);
  bittensor::ThreadPool pool(2);
  const Weight w(layout_of(50, 64, 32, 4, ZeroKind::integer), random, false);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> x(7 * 64, 0.5F);
    x[3 * 64 + 40] = bad;
    const std::vector<float> expected = int8_by_definition(w, x, 7);
    for (std::size_t i = 0; i < expected.size(); ++i) CHECK_EQUAL(std::isnan(expected[i]), i / 50 == 3);
    check_linear(w, x, 7, pool);
  }
}

TEST(foreign_bytes_are_refused) {
  Random random(5);
  const Weight w(layout_of(17, 31, 16, 4, ZeroKind::integer), random, false);
  std::vector<std::uint8_t> prepared(static_cast<std::size_t>(w.layout.bytes()));
  bittensor::prepare(w.canonical(), w.layout, prepared.data(), bittensor::kernels_for(bittensor::Isa::scalar));
  const auto read = [&](std::int64_t bytes) { return bittensor::read_layout(prepared.data(), bytes); };
  CHECK_EQUAL(read(w.layout.bytes()).in_features, 31);
  CHECK_THROWS(std::invalid_argument, "bytes", read(w.layout.bytes() - 1));
  CHECK_THROWS(std::invalid_argument, "not a weight", read(10));
  prepared[33] = 0x7F;  // bits
  CHECK_THROWS(std::invalid_argument, "bits", read(w.layout.bytes()));
  prepared[0] = 'X';
  CHECK_THROWS(std::invalid_argument, "not a weight", read(w.layout.bytes()));
  CHECK_THROWS(std::invalid_argument, "group size", bittensor::check_layout(layout_of(4, 64, 12, 4, ZeroKind::offset)));
  constexpr std::int64_t most = (std::int64_t{1} << 31) - 1;  // of each; as many of both need more than 2^63 bytes
  CHECK_THROWS(std::invalid_argument, "2^48", bittensor::check_layout(layout_of(most, most, 8, 8, ZeroKind::offset)));
}

}  // namespace
