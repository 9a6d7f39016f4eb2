#pragma once

/// The micro-kernel of the group-quantized linear with float activations, written once for every instruction set V (a
/// traits class). Lanes run over weight rows; each lane adds its products in ascending order of columns, so that the
/// results are bit-identical everywhere.
///
/// A code becomes a float without a conversion: its bits under those of 2^23 are the float 2^23 + code, and subtracting
/// 2^23 + zero from that is exact.

#include <cstdint>

#include "bittensor/linear_kernels.hpp"
#include "linear_tiles.hpp"
#include "planes.hpp"

namespace bittensor {
namespace {

inline constexpr float two_to_23 = 8388608.0F;

template <class V, int Bits, int Rows, int Tiles>
struct FloatLinearTile {
  static constexpr int tile_vectors = tile_rows / V::lanes;
  static constexpr int vectors = Tiles * tile_vectors;
  static constexpr int plane_count = 8 / Bits;
  static constexpr int columns = 32 / Bits;  // of a block
  using Float = typename V::Float;

  /// One column of a block: bits [Shift, Shift + Bits) of each row's four bytes.
  template <int Shift>
  [[gnu::always_inline]] static void column(
      const typename V::LaneVector (&packed)[vectors], const Float (&shifted_zero)[vectors], const float* x,
      std::int64_t x_stride, Float (&p)[Rows][vectors]) {
    Float weight[vectors];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) {
      weight[v] = V::subtract_f32(V::template code_above_two_to_23<Bits, Shift>(packed[v]), shifted_zero[v]);
    }
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
      const Float value = V::broadcast_f32(x[m * x_stride]);
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) p[m][v] = V::fma(value, weight[v], p[m][v]);
    }
  }

  static void run(const FloatLinearBlock& block, std::int64_t row, std::int64_t tile) {
    const PreparedLayout& layout = *block.layout;
    const std::int64_t groups = layout.groups();
    const std::int64_t tile_code_bytes = layout.tile_code_bytes();
    const std::int64_t tile_scale_bytes = layout.tile_scale_bytes();
    const std::int64_t tile_zero_bytes = layout.tile_zero_bytes();
    const std::int64_t scale_bytes = tile_rows * bytes_of(layout.scale_type);  // of a group
    const std::int64_t zero_bytes = layout.zero_kind == ZeroKind::offset ? scale_bytes : tile_rows;
    const std::uint8_t* codes = block.codes + tile * tile_code_bytes;
    const std::uint8_t* scales = block.scales + tile * tile_scale_bytes;
    const std::uint8_t* zeros = block.zeros + tile * tile_zero_bytes;
    const float* x = block.x + row * block.x_stride;
    const auto y_of = [&](int m, int v) {
      return block.y + (row + m) * block.y_stride + tile * tile_rows + v * V::lanes;
    };
    const auto in_tile = [](std::int64_t tile_bytes, std::int64_t size, int v) {
      return v / tile_vectors * tile_bytes + v % tile_vectors * V::lanes * size;
    };

    std::int64_t blocks_left = layout.blocks();
    for (std::int64_t g = 0; g < groups; ++g) {
      const std::int64_t blocks = blocks_left < layout.group_blocks() ? blocks_left : layout.group_blocks();
      blocks_left -= blocks;
      Float shifted_zero[vectors];
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) {
        Float zero = V::broadcast_f32(layout.zero_kind == ZeroKind::symmetric ? 1 << (Bits - 1) : 0);
        if (layout.zero_kind == ZeroKind::integer) {
          zero = V::to_float(V::load_u8_as_i32(zeros + in_tile(tile_zero_bytes, 1, v)));
        }
        shifted_zero[v] = V::add(zero, V::broadcast_f32(two_to_23));
      }
      Float p[Rows][vectors];
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) p[m][v] = V::broadcast_f32(0.0F);
      }
      for (std::int64_t b = 0; b < blocks; ++b) {
        typename V::LaneVector packed[vectors];
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) packed[v] = V::load_lanes(codes + in_tile(tile_code_bytes, 4, v));
        if constexpr (Rows == 1) {
          for (int t = 0; t < Tiles; ++t) __builtin_prefetch(codes + t * tile_code_bytes + linear_prefetch_bytes);
        }
        for_each_plane<plane_count>([&]<int Plane>() {
          constexpr int shift = Bits * Plane;
          column<shift>(packed, shifted_zero, x + 4 * Plane, block.x_stride, p);
          column<8 + shift>(packed, shifted_zero, x + 4 * Plane + 1, block.x_stride, p);
          column<16 + shift>(packed, shifted_zero, x + 4 * Plane + 2, block.x_stride, p);
          column<24 + shift>(packed, shifted_zero, x + 4 * Plane + 3, block.x_stride, p);
        });
        codes += tile_block_bytes;
        x += columns;
      }
      // The results of a group go to memory: the registers belong to the sums of the next one.
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) {
        const Float scale =
            V::load_float(scales + in_tile(tile_scale_bytes, bytes_of(layout.scale_type), v), layout.scale_type);
#pragma GCC unroll 16
        for (int m = 0; m < Rows; ++m) {
          const Float before = g == 0 ? V::broadcast_f32(0.0F) : V::load_float(y_of(m, v), FloatType::f32);
          Float y = V::fma(p[m][v], scale, before);
          if (layout.zero_kind == ZeroKind::offset) {
            const Float offset =
                V::load_float(zeros + in_tile(tile_zero_bytes, bytes_of(layout.scale_type), v), layout.scale_type);
            y = V::fma(V::broadcast_f32(block.x_sums[(row + m) * groups + g]), offset, y);
          }
          V::store_float(y_of(m, v), y);
        }
      }
      scales += scale_bytes;
      zeros += zero_bytes;
    }
  }
};

template <class V, int Bits>
void float_linear(const FloatLinearBlock& block) {
  const auto run = [&]<int Rows, int Tiles>(std::int64_t row, std::int64_t tile) {
    FloatLinearTile<V, Bits, Rows, Tiles>::run(block, row, tile);
  };
  if (block.rows == 1) {
    linear_tiles<V::float_tiles_single_row, 1>(block, run);
  } else {
    linear_tiles<V::float_tiles, V::float_rows>(block, run);
  }
}

}  // namespace
}  // namespace bittensor
