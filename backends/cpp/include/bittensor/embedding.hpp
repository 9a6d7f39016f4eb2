#pragma once

/// Rows of a group-quantized weight as floats (docs/numerics.md, section 9).

#include <cstdint>
#include <optional>

#include "bittensor/export.hpp"
#include "bittensor/group_quantized.hpp"
#include "bittensor/isa.hpp"
#include "bittensor/parallel.hpp"

namespace bittensor {

/// Operands of `embedding`.
struct Embedding {
  const std::int64_t* indices = nullptr;  // [count], rows of the weight
  std::int64_t count = 0;
  const std::uint8_t* prepared = nullptr;
  PreparedLayout layout{};                // as read_layout gives it
  FloatType float_type = FloatType::f32;  // of out
  void* out = nullptr;                    // [count, in_features] of float_type, without gaps
};

/// out[i] = row indices[i] of the weight, gathered from the tiles that the linear reads. Returns the position of the
/// first index that is no row, if there is one; nothing has been written then.
[[nodiscard]] BITTENSOR_API std::optional<std::int64_t> embedding(
    const Embedding& embedding, const KernelSet& kernels, const ParallelFor& parallel = {});

}  // namespace bittensor
