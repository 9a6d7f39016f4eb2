#pragma once

/// The kernels of the gradient of the group-quantized linear, as plain data; see kernel_set.hpp for the rule this
/// header keeps.

#include <cstdint>

#include "bittensor/group_quantized.hpp"

namespace bittensor {

/// A panel of a weight begins, in its group, at a multiple of so many columns: a whole number of blocks and of vectors.
/// Each row has room for as many columns more.
inline constexpr int panel_unit = 16;

/// Some rows and columns of a prepared weight, to be written as float32.
struct WeightPanel {
  const PreparedLayout* layout;
  const std::uint8_t* prepared;
  std::int64_t first_tile;
  std::int64_t tiles;         // of tile_rows rows, at least 1
  std::int64_t first_column;  // panel_unit divides its distance to the begin of its group
  std::int64_t columns;       // at least 1
  float* values;              // [tiles * tile_rows, stride]
  std::int64_t stride;        // at least columns + panel_unit
};

/// values[n, k] = the weight of docs/numerics.md, section 3, and 0 in rows that do not exist; panel_unit zeros follow
/// the columns of each row.
using DequantizePanel = void (*)(const WeightPanel& panel);

/// Operands of `PanelProduct`: rows of dy against a panel of the weight.
struct PanelProductBlock {
  const float* dy;         // [rows, dy_stride], of which depth values count
  std::int64_t dy_stride;  // floats
  std::int64_t rows;       // at least 1
  const float* panel;      // [depth, panel_stride]
  std::int64_t panel_stride;
  std::int64_t depth;        // rows of the weight
  std::int64_t tiles;        // of panel_unit columns, at least 1
  float* sums;               // [rows, sums_stride]
  std::int64_t sums_stride;  // floats
  bool continues;            // sums are read first; otherwise they start at 0
};

/// sums[m, k] = fma(dy[m, n], panel[n, k], sums[m, k]) for ascending n.
using PanelProduct = void (*)(const PanelProductBlock& block);

/// Operands of `CodesProduct`: a few rows of dy against some columns of a prepared weight.
struct CodesProductBlock {
  const PreparedLayout* layout;
  const std::uint8_t* prepared;
  const float* dy;           // [rows, dy_stride], of which out_features values count
  std::int64_t dy_stride;    // floats
  std::int64_t rows;         // at least 1
  std::int64_t first_block;  // of the layout's blocks of columns
  std::int64_t blocks;       // at least 1
  float* sums;               // room for rows * blocks, rounded up to a strip, * block_columns floats
  float* out;                // [rows, out_stride]: the columns of the blocks, without gaps
  std::int64_t out_stride;   // floats
};

/// out[m, k] = fma(dy[m, n], w[n, k], out[m, k]) for ascending n, from 0 on, w as in docs/numerics.md, section 3.
using CodesProduct = void (*)(const CodesProductBlock& block);

struct GradientKernels {
  DequantizePanel dequantize_panel[3];  // 2, 4, 8 bits
  PanelProduct panel_product;
  CodesProduct codes_product[3];  // 2, 4, 8 bits
  int strip_blocks;               // that codes_product takes at a time

  DequantizePanel dequantize_panel_for(int bits) const { return dequantize_panel[bits == 8 ? 2 : bits / 4]; }
  CodesProduct codes_product_for(int bits) const { return codes_product[bits == 8 ? 2 : bits / 4]; }
};

}  // namespace bittensor
