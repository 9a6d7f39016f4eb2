// The layers of a decoder against the linears and the attention that they are made of.

#include <algorithm>
#include <cmath>
#include <vector>

#include "bittensor/decoder.hpp"
#include "bittensor/linear.hpp"
#include "bittensor/thread_pool.hpp"
#include "check.hpp"
#include "guarded.hpp"
#include "kernels_under_test.hpp"
#include "quantized_weight.hpp"

using bittensor::Attention;
using bittensor::Decoder;
using bittensor::DecoderLayer;
using bittensor::KernelSet;
using bittensor::Linear;
using bittensor::ParallelFor;
using bittensor::PreparedMatrix;
using bittensor::Prologue;

namespace {

std::vector<float> random_floats(std::int64_t count, Random& random) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  std::ranges::generate(values, [&] { return normal(random); });
  return values;
}

constexpr std::int64_t layer_count = 2;

struct Sizes {
  std::int64_t width;
  std::int64_t heads;
  std::int64_t shared;  // heads of keys and values
  std::int64_t size;    // of a head
  std::int64_t hidden;
  std::int64_t tokens;
  std::int64_t capacity;
};

/// A decoder of random weights, and random tokens.
struct Model {
  Sizes s;
  std::vector<Weight> weights;  // four for each layer
  std::vector<std::vector<float>> norms;
  std::vector<float> x;
  std::vector<float> cos;
  std::vector<float> sin;
  std::vector<DecoderLayer> layers;

  Model(const Sizes& sizes, Random& random) : s(sizes), x(random_floats(s.tokens * s.width, random)) {
    for (const float angle : random_floats(s.tokens * s.size, random)) {
      cos.push_back(std::cos(angle));
      sin.push_back(std::sin(angle));
    }
    const auto add = [&](std::int64_t rows, std::int64_t columns) {
      weights.emplace_back(
          PreparedLayout{rows, columns, std::min<std::int64_t>(columns, 32), 4, FloatType::f32, ZeroKind::offset},
          random);
    };
    for (std::int64_t i = 0; i < layer_count; ++i) {
      add((s.heads + 2 * s.shared) * s.size, s.width);
      add(s.width, s.heads * s.size);
      add(2 * s.hidden, s.width);
      add(s.width, s.hidden);
      for (int norm = 0; norm < 2; ++norm) norms.push_back(random_floats(s.width, random));
    }
    for (std::size_t i = 0; i < layer_count; ++i) {
      const auto matrix = [&](std::size_t number) {
        const Weight& weight = weights[4 * i + number];
        return PreparedMatrix{weight.prepared.data(), weight.layout};
      };
      layers.push_back({norms[2 * i].data(), matrix(0), matrix(1), norms[2 * i + 1].data(), matrix(2), matrix(3)});
    }
  }

  std::int64_t key_floats() const {
    return s.shared * ((s.capacity + bittensor::key_panel - 1) / bittensor::key_panel) * s.size * bittensor::key_panel;
  }
  std::int64_t value_floats() const {
    return s.shared * s.capacity * ((s.size + bittensor::value_unit - 1) / bittensor::value_unit) *
           bittensor::value_unit;
  }

  Attention attention(float* keys, float* values) const {
    Attention made;
    made.cos = cos.data();
    made.sin = sin.data();
    made.keys = keys;
    made.values = values;
    made.heads = s.heads;
    made.key_value_heads = s.shared;
    made.head_size = s.size;
    made.capacity = s.capacity;
    return made;
  }

  /// All tokens at once, by one operation after the other, and the cache behind them.
  std::vector<float> by_operation(const KernelSet& kernels, bool float_mode) const {
    std::vector<float> keys(static_cast<std::size_t>(layer_count * key_floats()));
    std::vector<float> values(static_cast<std::size_t>(layer_count * value_floats()));
    std::vector<float> rows = x;
    const auto linear = [&](const PreparedMatrix& weight, const std::vector<float>& from, Prologue prologue,
                            const float* norm, const float* residual) {
      std::vector<float> out(static_cast<std::size_t>(s.tokens * weight.layout.out_features));
      Linear product;
      product.x = from.data();
      product.x_row_bytes = static_cast<std::int64_t>(from.size()) / s.tokens * 4;
      product.rows = s.tokens;
      product.prepared = weight.prepared;
      product.layout = weight.layout;
      product.prologue = prologue;
      product.norm_weight = norm;
      product.norm_epsilon = 1e-5F;
      product.residual = residual;
      product.out = out.data();
      (float_mode ? bittensor::linear_float : bittensor::linear_int8)(product, kernels, {});
      return out;
    };
    for (std::size_t i = 0; i < layer_count; ++i) {
      const DecoderLayer& layer = layers[i];
      const std::vector<float> projections =
          linear(layer.query_key_value, rows, Prologue::rms_norm, layer.attention_norm, nullptr);
      std::vector<float> mixed(static_cast<std::size_t>(s.tokens * s.heads * s.size));
      Attention part = attention(
          keys.data() + static_cast<std::int64_t>(i) * key_floats(),
          values.data() + static_cast<std::int64_t>(i) * value_floats());
      part.projections = projections.data();
      part.projection_stride = (s.heads + 2 * s.shared) * s.size;
      part.tokens = s.tokens;
      part.out = mixed.data();
      bittensor::attend(part, kernels);
      rows = linear(layer.output, mixed, Prologue::none, nullptr, rows.data());
      const std::vector<float> gates = linear(layer.gate_up, rows, Prologue::rms_norm, layer.mlp_norm, nullptr);
      rows = linear(layer.down, gates, Prologue::swiglu, nullptr, rows.data());
    }
    rows.insert(rows.end(), keys.begin(), keys.end());
    rows.insert(rows.end(), values.begin(), values.end());
    return rows;
  }

  /// The same by `decode`, the tokens `piece` at a time; every buffer ends at a guard page.
  std::vector<float> decoded(
      const KernelSet& kernels, bool float_mode, std::int64_t piece, const ParallelFor& parallel) const {
    const std::vector<float> no_keys(static_cast<std::size_t>(layer_count * key_floats()));
    const std::vector<float> no_values(static_cast<std::size_t>(layer_count * value_floats()));
    Guarded<float> keys(no_keys, Side::back);
    Guarded<float> values(no_values, Side::back);
    std::vector<float> result;
    for (std::int64_t t = 0; t < s.tokens; t += piece) {
      const std::int64_t count = std::min(piece, s.tokens - t);
      Guarded<float> rows(std::vector<float>(x.begin() + t * s.width, x.begin() + (t + count) * s.width), Side::back);
      Guarded<float> out(count * s.width, Side::back);
      Decoder decoder;
      decoder.layers = layers.data();
      decoder.layer_count = layer_count;
      decoder.norm_epsilon = 1e-5F;
      decoder.float_mode = float_mode;
      decoder.width = s.width;
      decoder.x = rows.data();
      decoder.x_stride = s.width;
      decoder.attention = attention(keys.data(), values.data());
      decoder.attention.cos += t * s.size;
      decoder.attention.sin += t * s.size;
      decoder.attention.position = t;
      decoder.attention.tokens = count;
      decoder.out = out.data();
      bittensor::decode(decoder, kernels, parallel);
      result.insert(result.end(), out.data(), out.data() + count * s.width);
    }
    result.insert(result.end(), keys.data(), keys.data() + no_keys.size());
    result.insert(result.end(), values.data(), values.data() + no_values.size());
    return result;
  }
};

}  // namespace

TEST(layers_are_their_operations_with_the_same_bits_everywhere) {
  Random random(1);
  bittensor::ThreadPool pool(3);
  for (const Sizes& sizes :
       {Sizes{32, 1, 1, 2, 8, 1, 1}, Sizes{96, 6, 2, 24, 72, 21, 70}, Sizes{64, 2, 2, 18, 96, 6, 6},
        Sizes{40, 2, 1, 8, 80, 37, 40}}) {
    const Model model(sizes, random);
    for (const bool float_mode : {false, true}) {
      const std::vector<float> expected =
          model.by_operation(bittensor::kernels_for(bittensor::Isa::scalar), float_mode);
      for (const KernelSet* kernels : kernels_under_test()) {
        for (const std::int64_t piece : {sizes.tokens, std::int64_t{1}, std::int64_t{5}}) {
          CONTEXT(
              "%s, %s, width %d, pieces of %d", bittensor::isa_name(kernels->isa), float_mode ? "float" : "int8",
              static_cast<int>(sizes.width), static_cast<int>(piece));
          check_same(model.decoded(*kernels, float_mode, piece, {}), expected);
          check_same(model.decoded(*kernels, float_mode, piece, pool.parallel_for()), expected);
        }
      }
    }
  }
}

TEST(gates_join_where_chunks_of_them_end_with_tiles_and_groups) {
  const auto joins = [](std::int64_t hidden, std::int64_t rows, std::int64_t group) {
    const PreparedLayout gate_up{rows, 64, 32, 4, FloatType::f32, ZeroKind::symmetric};
    const PreparedLayout down{64, hidden, group, 4, FloatType::f32, ZeroKind::symmetric};
    return bittensor::joins_in_mlp(gate_up, down);
  };
  CHECK(joins(96, 192, 32));
  CHECK(joins(80, 160, 32));
  CHECK(joins(48, 96, 24));
  CHECK(joins(192, 384, 192));
  CHECK(!joins(72, 144, 24));
  CHECK(!joins(96, 194, 32));
  CHECK(!joins(208, 416, 208));
}

TEST(no_layers_change_nothing) {
  Random random(2);
  Model model({32, 2, 1, 4, 16, 3, 8}, random);
  Decoder decoder;
  decoder.width = 30;  // of rows that are apart
  decoder.x = model.x.data();
  decoder.x_stride = 32;
  decoder.attention.tokens = 3;
  std::vector<float> out(90);
  decoder.out = out.data();
  bittensor::decode(decoder, bittensor::kernels_for(bittensor::Isa::scalar));
  for (std::size_t i = 0; i < out.size(); ++i) CHECK_EQUAL(out[i], model.x[i / 30 * 32 + i % 30]);
}
