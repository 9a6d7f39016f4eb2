#pragma once

/// The layers of a decoder, one after the other: attention, then SwiGLU, each on normalized input and added to it.

#include <cstdint>

#include "bittensor/attention.hpp"
#include "bittensor/export.hpp"
#include "bittensor/group_quantized.hpp"
#include "bittensor/isa.hpp"
#include "bittensor/parallel.hpp"

namespace bittensor {

/// A prepared weight and its layout, as read_layout gives it.
struct PreparedMatrix {
  const std::uint8_t* prepared = nullptr;
  PreparedLayout layout{};
};

/// Weights of a layer, for rows of `width` values.
struct DecoderLayer {
  const float* attention_norm = nullptr;  // [width]
  PreparedMatrix query_key_value;         // [(heads + 2 * key_value_heads) * head_size, width]
  PreparedMatrix output;                  // [width, heads * head_size]
  const float* mlp_norm = nullptr;        // [width]
  PreparedMatrix gate_up;                 // [2 * hidden, width], gate before up
  PreparedMatrix down;                    // [width, hidden]
};

/// Operands of `decode`.
struct Decoder {
  const DecoderLayer* layers = nullptr;
  std::int64_t layer_count = 0;
  float norm_epsilon = 0.0F;
  bool float_mode = false;  // activations of the linears, as in linear_int8 or in linear_float
  std::int64_t width = 0;
  const float* x = nullptr;   // [tokens, x_stride]
  std::int64_t x_stride = 0;  // floats
  Attention attention;        // of the first layer, without projections and out
  float* out = nullptr;       // [tokens, width]
};

/// The linears and the attention of all layers, each with the bits that `linear_int8` or `linear_float`, and `attend`
/// give. Layer i has its keys and values right behind those of layer i - 1.
BITTENSOR_API void decode(const Decoder& decoder, const KernelSet& kernels, const ParallelFor& parallel = {});

}  // namespace bittensor
