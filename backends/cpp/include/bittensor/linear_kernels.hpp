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

/// Digits of activations (docs/numerics.md, section 5).
inline constexpr int activation_digits = 3;

/// Rows of codes for the digits of a row of activations, the lowest digit first.
struct DigitRows {
  std::int8_t* codes;  // in the padded columns of the layout with zeros in the gaps
  std::int64_t code_stride;
  float* scales;  // of each group of activations
  std::int64_t scale_stride;
  std::int32_t* sums;  // of the codes, for each group of the weight
  std::int64_t sum_stride;
};

/// Splits one row of activations into digits. As QuantizeRow for values that are not finite.
using SplitRow = void (*)(const void* x, FloatType type, const PreparedLayout& layout, const DigitRows& to);

/// Adds the results of the digits of each row, the lowest first: [activation_digits * rows, stride] to [rows, stride],
/// of which the first `columns` count, whole tiles.
using AddDigits = void (*)(float* y, std::int64_t rows, std::int64_t columns, std::int64_t stride);

/// How codes are fetched where there are few rows, so that the loop waits for memory: what is fastest depends on the
/// processor, what is computed does not.
struct CodeFetch {
  /// Side by side with one row: 2, or 3, which kernels of 8 lanes have no registers for. One tile after the other is
  /// one stream of codes, in order: only its scales are fetched.
  std::int64_t row_tiles = 2;
  std::int64_t ahead = 6144;  // bytes, of all tiles that a kernel takes at a time
  /// Into the second-level cache also what is taken next, in the order of memory: a single stream. Where rows are more
  /// than a kernel takes at a time the first do so anyway.
  bool next_run = false;
};

/// Operands of `Int8Linear`: rows of activation codes against consecutive tiles of a prepared weight.
struct Int8LinearBlock {
  const PreparedLayout* layout;
  const std::uint8_t* codes;    // of the first tile
  const std::uint8_t* scales;   // of the first tile
  const std::uint8_t* zeros;    // of the first tile; zero codes or offsets
  std::int64_t tiles;           // at least 1
  std::int64_t tiles_to_come;   // these and those behind them that the thread takes next; 0: it is not known
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
  CodeFetch fetch;
  bool is_large;  // the weight, for the second-level cache
  bool decodes;   // codes to bytes, once for all rows, where the kernel has rows enough for that
};

/// y = the terms of all groups in docs/numerics.md, section 4, in ascending order, and then the bias.
using Int8Linear = void (*)(const Int8LinearBlock& block);

/// Widens one row of activations to float32, in the padded columns of the layout with zeros in the gaps.
using WidenRow = void (*)(const void* x, FloatType type, const PreparedLayout& layout, float* values);

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
  SplitRow split_row;
  AddDigits add_digits;
  Int8Linear int8_linear[3];  // 2, 4, 8 bits
  bool decodes_once;          // codes for all rows, and not for a few at a time

  Int8Linear int8_linear_for(int bits) const { return int8_linear[bits == 8 ? 2 : bits / 4]; }
};

}  // namespace bittensor
