#pragma once

/// The gradient of the group-quantized linear (docs/numerics.md, section 6).

#include <cstdint>

#include "bittensor/export.hpp"
#include "bittensor/group_quantized.hpp"
#include "bittensor/isa.hpp"
#include "bittensor/parallel.hpp"

namespace bittensor {

/// Operands of `linear_input_grad`.
struct LinearInputGrad {
  const void* dy = nullptr;               // [rows, out_features] of float_type
  std::int64_t dy_row_bytes = 0;          // from one row of dy to the next
  std::int64_t rows = 0;                  // M
  FloatType float_type = FloatType::f32;  // of dy and out
  const std::uint8_t* prepared = nullptr;
  PreparedLayout layout{};  // as read_layout gives it
  void* out = nullptr;      // [rows, in_features] of float_type, without gaps
};

/// out = dy @ dequantize(W). Each result is one chain of float32 multiply-adds over ascending rows of the weight, and
/// so has the same bits on every instruction set, for every number of threads and rows. Of the weight, no more than a
/// panel for each thread is ever held as floats.
BITTENSOR_API void linear_input_grad(
    const LinearInputGrad& gradient, const KernelSet& kernels, const ParallelFor& parallel = {});

}  // namespace bittensor
