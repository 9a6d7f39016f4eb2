// The layers of a decoder: its linears and its attention in a row, without waking threads in between.

#include "bittensor/decoder.hpp"

#include <algorithm>
#include <cstring>

#include "bittensor/linear.hpp"
#include "bittensor/team.hpp"
#include "rounding.hpp"
#include "scratch.hpp"

namespace bittensor {
namespace {

class Layers {
 public:
  Layers(const Decoder& decoder, const KernelSet& kernels, const ParallelFor& loop)
      : d_(decoder), kernels_(kernels), loop_(loop), tokens_(decoder.attention.tokens) {}

  void run() const {
    for (std::int64_t t = 0; t < tokens_; ++t) {
      std::memcpy(d_.out + t * d_.width, d_.x + t * d_.x_stride, static_cast<std::size_t>(d_.width) * 4);
    }
    Attention attention = d_.attention;
    const std::int64_t mixed = attention.heads * attention.head_size;
    const std::int64_t projected = mixed + 2 * attention.key_value_heads * attention.head_size;
    std::int64_t row = projected + mixed;
    for (std::int64_t i = 0; i < d_.layer_count; ++i) {
      const DecoderLayer& layer = d_.layers[i];
      if (joins_in_mlp(layer.gate_up.layout, layer.down.layout)) continue;
      row = std::max(row, layer.gate_up.layout.out_features);  // when queries, keys and values are done with
    }
    const Scratch memory(ScratchUse::sequence, tokens_ * row * 4);
    float* values = memory.floats();
    attention.projections = values;
    attention.projection_stride = projected;
    attention.out = values + tokens_ * projected;
    const std::int64_t panels = ceil_divide(attention.capacity, key_panel);
    const std::int64_t key_floats = attention.key_value_heads * panels * attention.head_size * key_panel;
    const std::int64_t value_floats =
        attention.key_value_heads * attention.capacity * round_up(attention.head_size, value_unit);
    const auto run = [&](const Linear& product) {
      (d_.float_mode ? linear_float : linear_int8)(product, kernels_, loop_);
    };
    for (std::int64_t i = 0; i < d_.layer_count; ++i) {
      const DecoderLayer& layer = d_.layers[i];
      const bool joined = joins_in_mlp(layer.gate_up.layout, layer.down.layout);
      Linear query_key_value = linear(layer.query_key_value, d_.out, values);
      query_key_value.prologue = Prologue::rms_norm;
      query_key_value.norm_weight = layer.attention_norm;
      Linear output = linear(layer.output, attention.out, d_.out);
      output.residual = d_.out;
      Linear gate_up = linear(layer.gate_up, d_.out, values);
      gate_up.prologue = Prologue::rms_norm;
      gate_up.norm_weight = layer.mlp_norm;
      Linear down = linear(layer.down, values, d_.out);
      down.x_row_bytes *= 2;
      down.prologue = Prologue::swiglu;
      down.residual = d_.out;
      expect_after(query_key_value, layer.output);
      expect_after(output, layer.gate_up, joined ? 2 : 1);
      expect_after(gate_up, layer.down);
      if (i + 1 < d_.layer_count) expect_after(down, d_.layers[i + 1].query_key_value);

      run(query_key_value);
      attend(attention, kernels_, loop_);
      run(output);
      if (joined) {
        (d_.float_mode ? mlp_float : mlp_int8)(gate_up, down, kernels_, loop_);
      } else {
        run(gate_up);
        run(down);
      }
      attention.keys += key_floats;
      attention.values += value_floats;
    }
  }

 private:
  Linear linear(const PreparedMatrix& weight, const float* x, float* out) const {
    Linear product;
    product.x = x;
    product.x_row_bytes = weight.layout.in_features * std::int64_t{sizeof(float)};
    product.rows = tokens_;
    product.prepared = weight.prepared;
    product.layout = weight.layout;
    product.norm_epsilon = d_.norm_epsilon;
    product.out = out;
    return product;
  }

  /// `linear` is followed by one on `weight`, whose loop runs over `parts` of it side by side.
  static void expect_after(Linear& linear, const PreparedMatrix& weight, std::int64_t parts = 1) {
    const PreparedLayout& layout = weight.layout;
    linear.next = weight.prepared + layout.codes_begin();
    linear.next_bytes = layout.tiles() * layout.tile_code_bytes() / parts;
  }

  const Decoder& d_;
  const KernelSet& kernels_;
  const ParallelFor& loop_;
  std::int64_t tokens_;
};

}  // namespace

void decode(const Decoder& decoder, const KernelSet& kernels, const ParallelFor& parallel) {
  Team::run(parallel, [&](const ParallelFor& loop) { Layers(decoder, kernels, loop).run(); });
}

}  // namespace bittensor
