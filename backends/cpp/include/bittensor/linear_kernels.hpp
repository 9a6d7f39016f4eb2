#pragma once

/// The kernels of the group-quantized linear, as plain data; see kernel_set.hpp for the rule this header keeps.

#include <cstdint>

#include "bittensor/group_quantized.hpp"

namespace bittensor {

/// Quantizes one row of activations (docs/numerics.md, section 4): the codes, in the padded columns of the layout with
/// zeros in the gaps; for each group of activations the scale amax / 127; for each group of the weight the sum of the
/// codes. A group of activations with a NaN or infinity gets codes 0 and scale NaN, which makes every output of the row
/// NaN.
using QuantizeRow = void (*)(
    const void* x, FloatType type, const PreparedLayout& layout, std::int8_t* codes, float* scales, std::int32_t* sums);

/// Operands of `Int8Linear`: rows of activation codes against consecutive tiles of a prepared weight.
struct Int8LinearBlock {
  const PreparedLayout* layout;
  const std::uint8_t* codes;    // of the first tile
  const std::uint8_t* scales;   // of the first tile
  const std::uint8_t* zeros;    // of the first tile; zero codes or offsets
  std::int64_t tiles;           // at least 1
  const std::int8_t* x;         // [rows, x_stride], from QuantizeRow
  std::int64_t x_stride;        // bytes
  const float* x_scales;        // [activation groups, x_group_stride], of the rows side by side
  const std::int32_t* x_sums;   // [groups, x_group_stride]; not read where there are offsets
  const float* x_totals;        // [groups, x_group_stride], sums as floats; read only where there are offsets
  std::int64_t x_group_stride;  // values, at least `rows`
  std::int64_t rows;            // at least 1
  const float* bias;            // tile_rows values for each tile, or null
  float* y;                     // [rows, y_stride], tile_rows values for each tile
  std::int64_t y_stride;        // floats
};

/// y = the terms of all groups in docs/numerics.md, section 4, in ascending order, and then the bias.
using Int8Linear = void (*)(const Int8LinearBlock& block);

/// Widens one row of activations to float32, in the padded columns of the layout with zeros in the gaps. If `sums` is
/// not null, it gets the sum of each group's values, added one after the other (docs/numerics.md, section 5).
using WidenRow = void (*)(const void* x, FloatType type, const PreparedLayout& layout, float* values, float* sums);

/// Operands of `FloatLinear`: rows of float32 activations against consecutive tiles of a prepared weight.
struct FloatLinearBlock {
  const PreparedLayout* layout;
  const std::uint8_t* codes;    // of the first tile
  const std::uint8_t* scales;   // of the first tile
  const std::uint8_t* zeros;    // of the first tile; zero codes or offsets
  std::int64_t tiles;           // at least 1
  const float* x;               // [rows, x_stride], from WidenRow
  std::int64_t x_stride;        // floats
  const float* x_sums;          // [groups, x_group_stride], for offsets
  std::int64_t x_group_stride;  // values, at least `rows`
  std::int64_t rows;            // at least 1
  float* y;                     // [rows, y_stride], tile_rows values for each tile
  std::int64_t y_stride;        // floats
};

/// y = the terms of all groups in docs/numerics.md, section 5, in ascending order.
using FloatLinear = void (*)(const FloatLinearBlock& block);

enum class Activation : std::uint8_t { none, relu, gelu, silu };

/// The end of a row: bias (null: none), activation, the residual of the output's type (null: none), and one rounding to
/// that type.
using StoreOutputs = void (*)(
    const float* y, std::int64_t columns, const float* bias, Activation activation, const void* residual,
    FloatType type, void* out);

struct LinearKernels {
  QuantizeRow quantize_row;
  StoreOutputs store_outputs;
  WidenRow widen_row;
  Int8Linear int8_linear[3];    // 2, 4, 8 bits
  FloatLinear float_linear[3];  // 2, 4, 8 bits

  Int8Linear int8_linear_for(int bits) const { return int8_linear[bits == 8 ? 2 : bits / 4]; }
  FloatLinear float_linear_for(int bits) const { return float_linear[bits == 8 ? 2 : bits / 4]; }
};

}  // namespace bittensor
