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
      row = std::max(row, d_.layers[i].gate_up.layout.out_features);  // when queries, keys and values are done with
    }
    auto* values = reinterpret_cast<float*>(
        scratch(ScratchUse::sequence, static_cast<std::size_t>(tokens_ * row) * sizeof(float)));
    attention.projections = values;
    attention.projection_stride = projected;
    attention.out = values + tokens_ * projected;
    const std::int64_t panels = ceil_divide(attention.capacity, key_panel);
    const std::int64_t key_floats = attention.key_value_heads * panels * attention.head_size * key_panel;
    const std::int64_t value_floats =
        attention.key_value_heads * attention.capacity * round_up(attention.head_size, value_unit);
    for (std::int64_t i = 0; i < d_.layer_count; ++i) {
      const DecoderLayer& layer = d_.layers[i];
      linear(layer.query_key_value, d_.out, Prologue::rms_norm, layer.attention_norm, nullptr, values);
      attend(attention, kernels_, loop_);
      linear(layer.output, attention.out, Prologue::none, nullptr, d_.out, d_.out);
      linear(layer.gate_up, d_.out, Prologue::rms_norm, layer.mlp_norm, nullptr, values);
      linear(layer.down, values, Prologue::swiglu, nullptr, d_.out, d_.out);
      attention.keys += key_floats;
      attention.values += value_floats;
    }
  }

 private:
  void linear(
      const PreparedMatrix& weight, const float* x, Prologue prologue, const float* norm_weight, const float* residual,
      float* out) const {
    Linear product;
    product.x = x;
    product.x_row_bytes =
        weight.layout.in_features * (prologue == Prologue::swiglu ? 2 : 1) * std::int64_t{sizeof(float)};
    product.rows = tokens_;
    product.prepared = weight.prepared;
    product.layout = weight.layout;
    product.prologue = prologue;
    product.norm_weight = norm_weight;
    product.norm_epsilon = d_.norm_epsilon;
    product.residual = residual;
    product.out = out;
    (d_.float_mode ? linear_float : linear_int8)(product, kernels_, loop_);
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
