// Two linears whose hidden values are not stored, against one after the other, in guarded memory.

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "bittensor/linear.hpp"
#include "bittensor/team.hpp"
#include "bittensor/thread_pool.hpp"
#include "check.hpp"
#include "guarded.hpp"
#include "kernels_under_test.hpp"
#include "quantized_weight.hpp"

using bittensor::Activation;
using bittensor::KernelSet;
using bittensor::Linear;
using bittensor::ParallelFor;

namespace {

struct Sizes {
  std::int64_t rows;
  std::int64_t width;
  std::int64_t hidden;
  std::int64_t outputs;
  std::int64_t group;
};

std::vector<float> random_floats(std::int64_t count, Random& random) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  std::ranges::generate(values, [&] { return normal(random); });
  return values;
}

struct Network {
  Sizes s;
  Weight up;
  Weight down;
  std::vector<float> x;
  std::optional<std::vector<float>> up_bias;
  std::optional<std::vector<float>> down_bias;
  Activation activation = Activation::gelu;
  bool float_mode = false;

  Network(const Sizes& sizes, int bits, ZeroKind kind, Random& random)
      : s(sizes),
        up({s.hidden, s.width, std::min(s.width, s.group), bits, FloatType::f32, kind}, random),
        down({s.outputs, s.hidden, s.group, bits, FloatType::f32, kind}, random),
        x(random_floats(s.rows * s.width, random)),
        up_bias(random_floats(s.hidden, random)),
        down_bias(random_floats(s.outputs, random)) {}

  /// One linear after the other.
  std::vector<float> composed(const KernelSet& kernels) const {
    std::vector<float> hidden(static_cast<std::size_t>(s.rows * s.hidden));
    std::vector<float> out(static_cast<std::size_t>(s.rows * s.outputs));
    const auto run = float_mode ? bittensor::linear_float : bittensor::linear_int8;
    Linear first = linear(up, up.prepared.data(), up_bias ? up_bias->data() : nullptr);
    first.x = x.data();
    first.activation = activation;
    first.out = hidden.data();
    run(first, kernels, {});
    Linear second = linear(down, down.prepared.data(), down_bias ? down_bias->data() : nullptr);
    second.x = hidden.data();
    second.out = out.data();
    run(second, kernels, {});
    return out;
  }

  std::vector<float> joined(const KernelSet& kernels, const ParallelFor& loop, Side side) const {
    Guarded<float> rows(x, side);
    Guarded<std::uint8_t> up_bytes(up.prepared, side);
    Guarded<std::uint8_t> down_bytes(down.prepared, side);
    Guarded<float> first_bias(up_bias.value_or(std::vector<float>()), side);
    Guarded<float> second_bias(down_bias.value_or(std::vector<float>()), side);
    Guarded<float> out(s.rows * s.outputs, side);
    Linear first = linear(up, up_bytes.data(), up_bias ? first_bias.data() : nullptr);
    first.x = rows.data();
    first.activation = activation;
    Linear second = linear(down, down_bytes.data(), down_bias ? second_bias.data() : nullptr);
    second.out = out.data();
    (float_mode ? bittensor::mlp_float : bittensor::mlp_int8)(first, second, kernels, loop);
    return {out.data(), out.data() + s.rows * s.outputs};
  }

 private:
  Linear linear(const Weight& weight, const std::uint8_t* prepared, const float* bias) const {
    Linear made;
    made.x_row_bytes = weight.layout.in_features * std::int64_t{sizeof(float)};
    made.rows = s.rows;
    made.prepared = prepared;
    made.layout = weight.layout;
    made.bias = bias;
    return made;
  }
};

/// On every instruction set, alone, on threads, and on threads that stay awake, so that small loops are shared out too.
void check_joined(const Network& network, bittensor::ThreadPool& pool) {
  const std::vector<float> expected = network.composed(bittensor::kernels_for(bittensor::Isa::scalar));
  for (const KernelSet* kernels : kernels_under_test()) {
    CONTEXT(
        "%s, %s, %d bits, zeros %d, %lld rows, %lld hidden", bittensor::isa_name(kernels->isa),
        network.float_mode ? "float" : "int8", network.up.layout.bits, static_cast<int>(network.up.layout.zero_kind),
        static_cast<long long>(network.s.rows), static_cast<long long>(network.s.hidden));
    for (const Side side : sides) check_same(network.joined(*kernels, {}, side), expected);
    check_same(network.joined(*kernels, pool.parallel_for(), Side::back), expected);
    bittensor::Team::run(pool.parallel_for(), [&](const ParallelFor& loop) {
      check_same(network.joined(*kernels, loop, Side::back), expected);
    });
  }
}

}  // namespace

TEST(joined_linears_have_the_bits_of_one_after_the_other) {
  Random random(1);
  bittensor::ThreadPool pool(3);
  for (const int bits : {2, 4, 8}) {
    for (const ZeroKind kind : {ZeroKind::symmetric, ZeroKind::integer, ZeroKind::offset}) {
      for (const Sizes& sizes : {Sizes{1, 16, 8, 1, 8}, Sizes{7, 40, 100, 33, 100}, Sizes{18, 33, 56, 20, 24}}) {
        Network network(sizes, bits, kind, random);
        for (const bool float_mode : {false, true}) {
          network.float_mode = float_mode;
          check_joined(network, pool);
        }
      }
    }
  }
}

TEST(threads_with_rows_of_their_own) {
  Random random(5);
  bittensor::ThreadPool pool(2);
  check_joined(Network({70, 24, 72, 17, 24}, 4, ZeroKind::offset, random), pool);
}

/// Few hidden columns, with ranges of rows beside them, of which 25 do not divide well among eight threads; and so many
/// that threads take over from each other.
TEST(threads_share_hidden_columns) {
  Random random(6);
  bittensor::ThreadPool eight(8);
  Network few({25, 24, 168, 17, 24}, 4, ZeroKind::integer, random);
  check_joined(few, eight);
  few.float_mode = true;
  check_joined(few, eight);
  bittensor::ThreadPool two(2);
  const Network many({9, 512, 2048, 5, 32}, 4, ZeroKind::symmetric, random);
  CHECK(many.s.rows * many.s.width * many.s.hidden >= std::int64_t{1} << 23);
  check_joined(many, two);
}

TEST(every_activation_and_no_bias) {
  Random random(2);
  bittensor::ThreadPool pool(2);
  Network network({20, 32, 72, 17, 24}, 4, ZeroKind::offset, random);
  for (const Activation activation : {Activation::none, Activation::relu, Activation::gelu, Activation::silu}) {
    network.activation = activation;
    check_joined(network, pool);
  }
  network.up_bias.reset();
  check_joined(network, pool);
  network.down_bias.reset();
  check_joined(network, pool);
}

TEST(rows_that_take_several_panels) {
  Random random(3);
  bittensor::ThreadPool pool(2);
  Network network({90, 8, 2048, 8, 64}, 4, ZeroKind::integer, random);
  network.float_mode = true;  // whose activations are large
  check_joined(network, pool);
  check_joined(Network({45, 8, 16384, 1, 64}, 4, ZeroKind::offset, random), pool);
}

TEST(a_nan_stays_in_its_row) {
  Random random(4);
  bittensor::ThreadPool pool(2);
  Network network({40, 32, 64, 24, 32}, 4, ZeroKind::offset, random);
  network.x[3 * 32 + 5] = std::numeric_limits<float>::quiet_NaN();
  network.x[9 * 32 + 1] = std::numeric_limits<float>::infinity();
  check_joined(network, pool);
}

TEST(linears_join_where_chunks_of_hidden_columns_end_with_tiles_and_groups) {
  const auto joins = [](std::int64_t hidden, std::int64_t columns, std::int64_t group) {
    const PreparedLayout up{hidden, 64, 32, 4, FloatType::f32, ZeroKind::symmetric};
    const PreparedLayout down{64, columns, group, 4, FloatType::f32, ZeroKind::symmetric};
    return bittensor::joins_in_mlp(up, down);
  };
  CHECK(joins(1536, 1536, 32));
  CHECK(joins(1536, 1536, 384));
  CHECK(joins(100, 100, 24));
  CHECK(joins(100, 100, 100));
  CHECK(joins(384, 384, 384));
  CHECK(!joins(392, 392, 392));
  CHECK(!joins(1536, 1536, 200));
  CHECK(!joins(1536, 1528, 32));
}
