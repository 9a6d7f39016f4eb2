#pragma once

/// The kernels around the linears of a transformer, as plain data; see kernel_set.hpp for the rule this header keeps.
/// Sums run in 16 partial sums, of the values i, i + 16, i + 32, ..., which are then added in halves: 8 to 8, 4 to 4, 2
/// to 2, 1 to 1. So the bits are the same on every instruction set (docs/numerics.md, section 8).

#include <cstdint>

#include "bittensor/group_quantized.hpp"

namespace bittensor {

/// RMSNorm of one row: out[k] = x[k] / sqrt(mean(x^2) + epsilon) * weight[k], in float32.
using NormalizeRow =
    void (*)(const void* x, FloatType type, std::int64_t columns, const float* weight, float epsilon, float* out);

/// SwiGLU of one row: out[k] = silu(x[k]) * x[columns + k], in float32.
using GateRow = void (*)(const void* x, FloatType type, std::int64_t columns, float* out);

/// Scores to weights, in place: exp(score - largest score) / the sum of these. Values from `columns` to the next
/// multiple of 16 must exist and become 0.
using SoftmaxRow = void (*)(float* scores, std::int64_t columns);

struct TransformerKernels {
  NormalizeRow normalize_row;
  GateRow gate_row;
  SoftmaxRow softmax_row;
};

}  // namespace bittensor
