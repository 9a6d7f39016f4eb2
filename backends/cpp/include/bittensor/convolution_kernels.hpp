#pragma once

/// The kernels of convolutions with few channels in a group, as plain data; see kernel_set.hpp for the rule this header
/// keeps.

#include <cstdint>

#include "bittensor/group_quantized.hpp"

namespace bittensor {

/// Operands of `MultiplyLanes`: one tile of a prepared weight against activations of which each of its rows has its
/// own. Column k of all rows is a vector of tile_rows values.
struct LanesBlock {
  const PreparedLayout* layout;
  const std::uint8_t* codes;     // of the tile
  const std::uint8_t* scales;    // of the tile
  const std::uint8_t* zeros;     // of the tile; zero codes or offsets
  const float* x;                // the first vector of the first result
  const std::int64_t* offsets;   // [in_features]: floats from the first vector of a result to that of each column
  std::int64_t rows;             // of results
  std::int64_t row_stride;       // floats of x
  std::int64_t positions;        // results in a row
  std::int64_t position_stride;  // floats of x
  float* weights;                // room for in_features + tile_rows vectors
  float* y;                      // [rows, positions, y_stride], of which tile_rows values are written
  std::int64_t y_stride;         // floats
};

/// y = the terms of all groups in docs/numerics.md, section 4 or 5, in ascending order.
using MultiplyLanes = void (*)(const LanesBlock& block);

/// Columns of a group up to which the int8 kernel may be used: its sums are exact in float32.
constexpr std::int64_t most_int8_lanes_columns(int bits) {
  return (1 << 24) / (127 * ((1 << bits) - 1));
}

struct ConvolutionKernels {
  MultiplyLanes int8_lanes[3];   // 2, 4, 8 bits
  MultiplyLanes float_lanes[3];  // 2, 4, 8 bits

  MultiplyLanes int8_lanes_for(int bits) const { return int8_lanes[bits == 8 ? 2 : bits / 4]; }
  MultiplyLanes float_lanes_for(int bits) const { return float_lanes[bits == 8 ? 2 : bits / 4]; }
};

}  // namespace bittensor
