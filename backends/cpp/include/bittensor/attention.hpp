#pragma once

/// Attention (docs/numerics.md, section 8): causal, of the newest tokens of one sequence over a cache of keys and
/// values, and bidirectional, of whole sequences.

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
  float* keys = nullptr;             // [key_value_heads, ceil(capacity / key_panel), head_size, key_panel]
  float* values = nullptr;           // [key_value_heads, capacity, head_size up to a multiple of value_unit]
  std::int64_t heads = 0;            // a multiple of key_value_heads
  std::int64_t key_value_heads = 0;  // at least 1
  std::int64_t head_size = 0;        // even
  std::int64_t capacity = 0;         // tokens
  std::int64_t position = 0;         // tokens in the cache already
  std::int64_t tokens = 0;           // new ones, at least 1; position + tokens <= capacity
  float* out = nullptr;              // [tokens, heads * head_size]
};

/// Turns queries and keys by their angles, puts keys and values of the new tokens into the cache, and attends. The
/// result for a token has the same bits on every instruction set, for every number of threads, and whether its
/// predecessors came with it or before it. Throws std::invalid_argument if key_value_heads is below 1.
BITTENSOR_API void attend(const Attention& attention, const KernelSet& kernels, const ParallelFor& parallel = {});

/// Vectors of all tokens of all heads of some sequences, each with its values side by side; the rest at any distance.
struct HeadVectors {
  const float* data = nullptr;
  std::int64_t sequence_stride = 0;  // floats
  std::int64_t head_stride = 0;
  std::int64_t token_stride = 0;

  const float* row(std::int64_t sequence, std::int64_t head, std::int64_t token) const {
    return data + sequence * sequence_stride + head * head_stride + token * token_stride;
  }
};

/// Operands of `attend_bidirectional`. Each group of heads / key_value_heads heads shares keys and values.
struct BidirectionalAttention {
  HeadVectors query;
  HeadVectors key;
  HeadVectors value;
  const std::uint8_t* key_mask = nullptr;  // [sequences, keys], not 0 where a key is seen; null: all are
  float scale = 1;                         // of the scores
  std::int64_t sequences = 0;
  std::int64_t heads = 0;            // a multiple of key_value_heads
  std::int64_t key_value_heads = 0;  // at least 1
  std::int64_t head_size = 0;        // at least 1
  std::int64_t queries = 0;          // tokens of each sequence
  std::int64_t keys = 0;
  float* out = nullptr;  // [sequences, queries, heads * head_size]
};

/// Every query attends to every key of its sequence that is seen; where none is, the result is 0. A key that is not
/// seen leaves no trace: the result has the bits that it has without this key, and the same ones on every instruction
/// set, for every number of threads, and whichever sequences come with it. Throws std::invalid_argument if
/// key_value_heads is below 1.
BITTENSOR_API void attend_bidirectional(
    const BidirectionalAttention& attention, const KernelSet& kernels, const ParallelFor& parallel = {});

}  // namespace bittensor
