#pragma once

/// The micro-kernel of the group-quantized linear with float activations, written once for every instruction set V (a
/// traits class). Lanes run over weight rows; each lane adds its products in ascending order of columns, so that the
/// results are bit-identical everywhere.
///
/// A code becomes a float without a conversion: where its lowest bit is bit s of a lane, its bits under those of
/// 2^(23 - s) are the float 2^(23 - s) + code, and subtracting 2^(23 - s) + zero from that is exact.
///
/// With several rows, each code is first shifted to bit 0, and one constant serves all. With one row that would be most
/// of the work. There, loading from the address of its byte brings a code into the lowest byte, and codes are taken
/// where they are in it, or are looked up, where one zero serves all rows and one register holds all values. Such loads
/// reach up to 3 bytes behind the codes, where the scales are.

#include <cstdint>

#include "bittensor/linear_kernels.hpp"
#include "linear_tiles.hpp"
#include "planes.hpp"

namespace bittensor {
namespace {

/// The float whose last place is worth 1 if the fraction begins at bit `shift`.
constexpr float unit_above(int shift) {
  return static_cast<float>(1 << (23 - shift));
}

/// `UniformZero`: one zero for all rows.
template <class V, int Bits, int Rows, int Tiles, bool UniformZero>
struct FloatLinearTile {
  static constexpr int tile_vectors = tile_rows / V::lanes;
  static constexpr int vectors = Tiles * tile_vectors;
  static constexpr int plane_count = 8 / Bits;
  static constexpr int columns = 32 / Bits;  // of a block
  using Float = typename V::Float;

  static constexpr bool single_row = Rows == 1;
  static constexpr bool x_in_registers = single_row && columns <= V::float_x_registers;
  static constexpr int places = single_row ? plane_count : 1;  // where in its byte a code can be

  template <int Place>
  static constexpr bool has_table = single_row && UniformZero && Bits * (Place + 1) <= V::table_bits;

  /// 2^(23 - s) + zero for each place s, of one vector or of all.
  using ShiftedZeros = Float[places][UniformZero ? 1 : vectors];
  /// The values of 16 codes in each place.
  using Tables = Float[places];

  template <int Place>
  [[gnu::always_inline]] static Float decode(
      const ShiftedZeros& shifted_zeros, const Tables& tables, const typename V::LaneVector& packed,
      [[maybe_unused]] int v) {
    if constexpr (has_table<Place>) {
      return V::lookup(tables[Place], packed);
    } else {
      return V::subtract_f32(
          V::template code_in_fraction<Bits, Bits * Place>(packed), shifted_zeros[Place][UniformZero ? 0 : v]);
    }
  }

  [[gnu::always_inline]] static void set_zeros(
      ZeroKind kind, const std::uint8_t* zeros, std::int64_t tile_bytes, ShiftedZeros& shifted_zeros,
      [[maybe_unused]] Tables& tables) {
    const Float symmetric = V::broadcast_f32(kind == ZeroKind::symmetric ? 1 << (Bits - 1) : 0);
    for_each_plane<places>([&]<int Place>() {
      constexpr float unit = unit_above(Bits * Place);
#pragma GCC unroll 16
      for (int v = 0; v < (UniformZero ? 1 : vectors); ++v) {
        Float zero = symmetric;
        if (kind == ZeroKind::integer) {
          zero = V::to_float(V::load_u8_as_i32(zeros + v / tile_vectors * tile_bytes + v % tile_vectors * V::lanes));
        }
        shifted_zeros[Place][v] = V::add(zero, V::broadcast_f32(unit));
      }
      if constexpr (has_table<Place>) {
        alignas(64) static constexpr std::uint32_t every_code[16] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                                     8, 9, 10, 11, 12, 13, 14, 15};
        tables[Place] = V::subtract_f32(
            V::template code_in_fraction<Bits, Bits * Place>(V::load_lanes(every_code)), shifted_zeros[Place][0]);
      }
    });
  }

  /// One block of every tile against its columns of every row.
  [[gnu::always_inline]] static void step(
      const std::uint8_t* codes, std::int64_t tile_bytes, const ShiftedZeros& shifted_zeros, const Tables& tables,
      const float* x, std::int64_t x_stride, Float (&p)[Rows][vectors]) {
    const auto load = [&](int v, int byte) {
      return V::load_lanes(codes + v / tile_vectors * tile_bytes + v % tile_vectors * V::lanes * 4 + byte);
    };
    if constexpr (x_in_registers) {
      Float value[columns];
#pragma GCC unroll 16
      for (int k = 0; k < columns; ++k) value[k] = V::broadcast_f32(x[k]);
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) {
        typename V::LaneVector packed[4];
#pragma GCC unroll 4
        for (int byte = 0; byte < 4; ++byte) packed[byte] = load(v, byte);
        for_each_plane<plane_count>([&]<int Plane>() {
#pragma GCC unroll 4
          for (int byte = 0; byte < 4; ++byte) {
            p[0][v] = V::fma(value[4 * Plane + byte], decode<Plane>(shifted_zeros, tables, packed[byte], v), p[0][v]);
          }
        });
      }
    } else {
      typename V::LaneVector packed[vectors];
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) packed[v] = load(v, 0);
      for_each_plane<plane_count>([&]<int Plane>() {
        for_each_plane<4>([&]<int Byte>() {
          const float* x_column = x + (4 * Plane + Byte);
          Float weight[vectors];
#pragma GCC unroll 16
          for (int v = 0; v < vectors; ++v) {
            if constexpr (single_row) {
              weight[v] = decode<Plane>(shifted_zeros, tables, load(v, Byte), v);
            } else {
              weight[v] =
                  decode<0>(shifted_zeros, tables, V::template shift_down<8 * Byte + Bits * Plane>(packed[v]), v);
            }
          }
#pragma GCC unroll 16
          for (int m = 0; m < Rows; ++m) {
            const Float value = V::broadcast_f32(x_column[m * x_stride]);
#pragma GCC unroll 16
            for (int v = 0; v < vectors; ++v) p[m][v] = V::fma(value, weight[v], p[m][v]);
          }
        });
      });
    }
  }

  /// Never inlined: as a part of the loops around it, it is left too few registers.
  [[gnu::noinline]] static void run(
      const FloatLinearBlock& block, const TileSizes& sizes, std::int64_t row, std::int64_t tile) {
    const PreparedLayout& layout = *block.layout;
    const std::int64_t groups = sizes.groups;
    const std::int64_t tile_code_bytes = sizes.code_bytes;
    const std::int64_t tile_scale_bytes = sizes.scale_bytes;
    const std::int64_t tile_zero_bytes = sizes.zero_bytes;
    const std::int64_t scale_bytes = tile_rows * bytes_of(layout.scale_type);  // of a group
    const std::int64_t zero_bytes = layout.zero_kind == ZeroKind::offset ? scale_bytes : tile_rows;
    const std::uint8_t* codes = block.codes + tile * tile_code_bytes;
    [[maybe_unused]] const std::uint8_t* end_of_tile = codes + tile_code_bytes;
    const std::uint8_t* scales = block.scales + tile * tile_scale_bytes;
    const std::uint8_t* zeros = block.zeros + tile * tile_zero_bytes;
    const float* x = block.x + row * block.x_stride;
    const auto y_of = [&](int m, int v) {
      return block.y + (row + m) * block.y_stride + tile * tile_rows + v * V::lanes;
    };
    const auto in_tile = [](std::int64_t tile_bytes, std::int64_t size, int v) {
      return v / tile_vectors * tile_bytes + v % tile_vectors * V::lanes * size;
    };

    ShiftedZeros shifted_zeros;
    Tables tables;
    if constexpr (UniformZero) set_zeros(layout.zero_kind, zeros, tile_zero_bytes, shifted_zeros, tables);
    std::int64_t blocks_left = sizes.blocks;
    for (std::int64_t g = 0; g < groups; ++g) {
      const std::int64_t blocks = blocks_left < sizes.group_blocks ? blocks_left : sizes.group_blocks;
      blocks_left -= blocks;
      if constexpr (!UniformZero) set_zeros(layout.zero_kind, zeros, tile_zero_bytes, shifted_zeros, tables);
      Float p[Rows][vectors];
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) p[m][v] = V::broadcast_f32(0.0F);
      }
      for (std::int64_t b = 0; b < blocks; ++b) {
        if constexpr (single_row) prefetch_codes<Tiles>(codes, end_of_tile, tile_code_bytes);
        step(codes, tile_code_bytes, shifted_zeros, tables, x, block.x_stride, p);
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
            y = V::fma(V::broadcast_f32(block.x_sums[g * block.x_group_stride + row + m]), offset, y);
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
  const TileSizes sizes(*block.layout);
  const auto run = [&]<int Rows, int Tiles>(std::int64_t row, std::int64_t tile) {
    // With several rows the work on the codes is small.
    if (Rows > 1 || block.layout->zero_kind == ZeroKind::integer) {
      FloatLinearTile<V, Bits, Rows, Tiles, false>::run(block, sizes, row, tile);
    } else if constexpr (Rows == 1) {
      FloatLinearTile<V, Bits, Rows, Tiles, true>::run(block, sizes, row, tile);
    }
  };
  if (block.rows == 1) {
    linear_tiles<V::float_tiles_single_row, 1>(block, run);
  } else {
    linear_tiles<V::float_tiles, V::float_rows>(block, run);
  }
}

}  // namespace
}  // namespace bittensor
