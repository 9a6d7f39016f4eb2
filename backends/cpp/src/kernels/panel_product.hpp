#pragma once

/// The micro-kernel of the linear's gradient, written once for every instruction set V (a traits class). Lanes run over
/// the columns of the weight; each lane adds its products in ascending order of the weight's rows, so that the results
/// are bit-identical everywhere.

#include <cstdint>

#include "bittensor/gradient_kernels.hpp"
#include "linear_tiles.hpp"

namespace bittensor {
namespace {

template <class V, int Rows, int Tiles>
void panel_product_tile(const PanelProductBlock& block, std::int64_t row, std::int64_t tile) {
  constexpr int vectors = Tiles * panel_unit / V::lanes;
  using Float = typename V::Float;
  const float* dy = block.dy + row * block.dy_stride;
  const float* panel = block.panel + tile * panel_unit;
  float* sums = block.sums + row * block.sums_stride + tile * panel_unit;
  Float sum[Rows][vectors];
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) {
      sum[m][v] = block.continues ? V::load_float(sums + m * block.sums_stride + v * V::lanes, FloatType::f32)
                                  : V::broadcast_f32(0.0F);
    }
  }
  for (std::int64_t n = 0; n < block.depth; ++n) {
    Float weight[vectors];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) weight[v] = V::load_float(panel + v * V::lanes, FloatType::f32);
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
      const Float value = V::broadcast_f32(dy[m * block.dy_stride + n]);
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) sum[m][v] = V::fma(value, weight[v], sum[m][v]);
    }
    panel += block.panel_stride;
  }
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) V::store_float(sums + m * block.sums_stride + v * V::lanes, sum[m][v]);
  }
}

template <class V>
void panel_product(const PanelProductBlock& block) {
  const auto run = [&]<int Rows, int Tiles>(std::int64_t row, std::int64_t tile) {
    panel_product_tile<V, Rows, Tiles>(block, row, tile);
  };
  if (block.rows == 1) {
    linear_tiles<V::panel_tiles_single_row, 1>(block, run);
  } else {
    linear_tiles<V::panel_tiles, V::panel_rows>(block, run);
  }
}

}  // namespace
}  // namespace bittensor
