#pragma once

/// Causal attention of the newest tokens of one sequence over a cache of keys and values (docs/numerics.md, section 8).

#include <cstdint>

#include "bittensor/export.hpp"
#include "bittensor/isa.hpp"
#include "bittensor/parallel.hpp"

namespace bittensor {

/// Keys lie in panels of so many tokens, [head_size, key_panel] each, so that lanes can run over tokens.
inline constexpr std::int64_t key_panel = 64;

/// Rows of values are padded with zeros to a multiple of this.
inline constexpr std::int64_t value_unit = 16;

/// Operands of `attend`. Each group of heads / key_value_heads heads shares keys and values.
struct Attention {
  const float* projections = nullptr;  // [tokens, projection_stride]: the queries of all heads, then keys, then values
  std::int64_t projection_stride = 0;  // floats
  const float* cos = nullptr;          // [tokens, head_size], of the angles of the rotary embedding
  const float* sin = nullptr;
  float* keys = nullptr;    // [key_value_heads, ceil(capacity / key_panel), head_size, key_panel]
  float* values = nullptr;  // [key_value_heads, capacity, head_size up to a multiple of value_unit]
  std::int64_t heads = 0;
  std::int64_t key_value_heads = 0;
  std::int64_t head_size = 0;  // even
  std::int64_t capacity = 0;   // tokens
  std::int64_t position = 0;   // tokens in the cache already
  std::int64_t tokens = 0;     // new ones, at least 1; position + tokens <= capacity
  float* out = nullptr;        // [tokens, heads * head_size]
};

/// Turns queries and keys by their angles, puts keys and values of the new tokens into the cache, and attends. The
/// result for a token has the same bits on every instruction set, for every number of threads, and whether its
/// predecessors came with it or before it.
BITTENSOR_API void attend(const Attention& attention, const KernelSet& kernels, const ParallelFor& parallel = {});

}  // namespace bittensor
