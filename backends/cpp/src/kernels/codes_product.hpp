#pragma once

/// The micro-kernel of the linear's gradient for a few rows of dy, written once for every instruction set V (a traits
/// class). Making a panel of floats would cost more than all that is done with it, so codes are decoded where they are
/// multiplied.
///
/// Lanes run over blocks: a strip is as many of them as there are lanes. Of a tile, the four bytes of each row are
/// brought together from all blocks of a strip, by a transposition, and every column of the blocks is then one shift
/// away. Each sum is a chain over ascending rows of the weight, the same as in a product of panels.

#include <cstdint>

#include "bittensor/gradient_kernels.hpp"
#include "linear_tiles.hpp"
#include "planes.hpp"
#include "weight_panel.hpp"

namespace bittensor {
namespace {

template <class V, int Bits, bool HasOffset>
struct CodesProductKernel {
  using Float = typename V::Float;
  using Writer = PanelWriter<V, Bits, HasOffset>;
  using RowParameters = typename Writer::RowParameters;
  static constexpr int block_columns = 32 / Bits;
  static constexpr int strip_columns = V::lanes * block_columns;
  static constexpr bool has_table = Writer::RowDecoder::has_table;

  /// A strip of a tile: for each row of the weight a vector of its codes, and what they stand for.
  struct Strip {
    alignas(64) std::uint32_t codes[tile_rows][V::lanes];
    alignas(64) float table[tile_rows][V::lanes];  // where all blocks are of one group; else the following
    alignas(64) float shifted_zero[tile_rows][V::lanes];
    alignas(64) float scale[tile_rows][V::lanes];
    alignas(64) float offset[tile_rows][V::lanes];
  };

  /// Fetches codes so far ahead of those at block `b` that they arrive while others are multiplied. Behind the last of
  /// `blocks`, that is the same place of the next tile.
  static void prefetch(const std::uint8_t* codes, std::int64_t b, std::int64_t blocks, std::int64_t tile_blocks) {
    constexpr std::int64_t blocks_ahead = 64;  // 4 KiB
    const std::int64_t next = b + blocks_ahead;
    codes += (next < blocks ? next : next - blocks + tile_blocks) * tile_block_bytes;
    for (int lane = 0; lane < V::lanes; ++lane) __builtin_prefetch(codes + lane * tile_block_bytes);
  }

  /// The rows of a tile, for which `row_of(lane)` is one vector or more: lane by lane to row by row.
  template <class F>
  [[gnu::always_inline]] static void gather(const F& rows_of, void* to) {
    for (int first = 0; first < tile_rows; first += V::lanes) {
      const void* from[V::lanes];
      for (int lane = 0; lane < V::lanes; ++lane) {
        from[lane] = reinterpret_cast<const std::uint8_t*>(rows_of(lane)) + std::int64_t{4} * first;
      }
      V::transpose(from, static_cast<std::uint32_t*>(to) + first * V::lanes);
    }
  }

  struct Parameters {
    const std::uint8_t* scales;  // of the tile
    const std::uint8_t* zeros;
    std::int64_t scale_bytes;  // of a group
    std::int64_t zero_bytes;
  };

  static void fill_table(const PreparedLayout& layout, const Parameters& parameters, std::int64_t group, Strip& strip) {
    RowParameters rows;
    Writer::widen_parameters(
        layout, parameters.scales + group * parameters.scale_bytes, parameters.zeros + group * parameters.zero_bytes,
        rows);
    for (int r = 0; r < tile_rows; ++r) {
      const typename Writer::RowDecoder decoder(rows.shifted_zero[r], rows.scale[r], rows.offset[r]);
      V::store_float(strip.table[r], decoder.table());
    }
  }

  /// The parameters of the group of each block, of which the first is number `in_group` of `group`.
  static void gather_parameters(
      const PreparedLayout& layout, const Parameters& parameters, std::int64_t group, std::int64_t in_group,
      std::int64_t group_blocks, std::int64_t blocks, Strip& strip) {
    RowParameters of_group[V::lanes];
    int index[V::lanes];
    int groups = 0;
    for (int lane = 0; lane < V::lanes; ++lane) {
      if (lane == 0 || (lane < blocks && in_group == group_blocks)) {
        if (lane > 0) {
          ++group;
          in_group = 0;
        }
        Writer::widen_parameters(
            layout, parameters.scales + group * parameters.scale_bytes,
            parameters.zeros + group * parameters.zero_bytes, of_group[groups++]);
      }
      ++in_group;
      index[lane] = groups - 1;
    }
    gather([&](int lane) { return of_group[index[lane]].scale; }, strip.scale);
    if (layout.zero_kind == ZeroKind::integer) {
      gather([&](int lane) { return of_group[index[lane]].shifted_zero; }, strip.shifted_zero);
    }
    if constexpr (HasOffset) gather([&](int lane) { return of_group[index[lane]].offset; }, strip.offset);
  }

  /// `depth` rows of the tile against their values of `Rows` rows of dy.
  template <int Rows, bool Table>
  [[gnu::noinline]] static void multiply(
      const Strip& strip, std::int64_t depth, const float* dy, std::int64_t dy_stride, float* sums,
      std::int64_t sums_stride) {
    constexpr int most = V::codes_product_sums / Rows;
    constexpr int at_once = most >= 16 ? 16 : most >= 8 ? 8 : most >= 4 ? 4 : most >= 2 ? 2 : 1;
    constexpr int columns = at_once < block_columns ? at_once : block_columns;
    for_each_plane<block_columns / columns>([&]<int Part>() {
      Float sum[Rows][columns];
      float* part = sums + Part * columns * V::lanes;
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 16
        for (int c = 0; c < columns; ++c) {
          sum[m][c] = V::load_float(part + m * sums_stride + c * V::lanes, FloatType::f32);
        }
      }
      for (std::int64_t r = 0; r < depth; ++r) {
        const auto codes = V::load_lanes(strip.codes[r]);
        for_each_plane<columns>([&]<int C>() {
          constexpr int column = Part * columns + C;
          const auto shifted = V::template shift_down<8 * (column % 4) + Bits*(column / 4)>(codes);
          Float weight;
          if constexpr (Table) {
            weight = V::lookup(V::load_float(strip.table[r], FloatType::f32), shifted);
          } else {
            const auto at = [&](const float (&values)[tile_rows][V::lanes]) {
              return V::load_float(values[r], FloatType::f32);
            };
            weight = V::multiply(
                V::subtract_f32(V::template code_in_fraction<Bits>(shifted), at(strip.shifted_zero)), at(strip.scale));
            if constexpr (HasOffset) weight = V::add(weight, at(strip.offset));
          }
#pragma GCC unroll 16
          for (int m = 0; m < Rows; ++m) {
            sum[m][C] = V::fma(V::broadcast_f32(dy[m * dy_stride + r]), weight, sum[m][C]);
          }
        });
      }
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 16
        for (int c = 0; c < columns; ++c) V::store_float(part + m * sums_stride + c * V::lanes, sum[m][c]);
      }
    });
  }

  static void run(const CodesProductBlock& block) {
    const PreparedLayout layout = *block.layout;
    const std::int64_t group_blocks = layout.group_blocks();
    const std::int64_t tile_code_bytes = layout.tile_code_bytes();
    const std::int64_t first_group = block.first_block / group_blocks;
    const std::int64_t first_in_group = block.first_block % group_blocks;
    const std::int64_t sums_stride = (block.blocks + V::lanes - 1) / V::lanes * strip_columns;
    Parameters parameters{};
    parameters.scale_bytes = tile_rows * bytes_of(layout.scale_type);
    parameters.zero_bytes = HasOffset ? parameters.scale_bytes : tile_rows;
    Strip strip;
    const int zero = layout.zero_kind == ZeroKind::symmetric ? 1 << (Bits - 1) : 0;  // unless each group has its own
    for (auto& row : strip.shifted_zero) {
      V::store_float(row, V::broadcast_f32(above_codes + static_cast<float>(zero)));
    }
    for (std::int64_t i = 0; i < block.rows * sums_stride; i += V::lanes) {
      V::store_float(block.sums + i, V::broadcast_f32(0.0F));
    }
    for (std::int64_t n = 0; n < layout.out_features; n += tile_rows) {
      const std::int64_t tile = n / tile_rows;
      const std::int64_t depth = layout.out_features - n < tile_rows ? layout.out_features - n : tile_rows;
      const std::uint8_t* codes =
          block.prepared + layout.codes_begin() + tile * tile_code_bytes + block.first_block * tile_block_bytes;
      parameters.scales = block.prepared + layout.scales_begin() + tile * layout.tile_scale_bytes();
      parameters.zeros = block.prepared + layout.zeros_begin() + tile * layout.tile_zero_bytes();
      std::int64_t group = first_group;
      std::int64_t in_group = first_in_group;
      float* sums = block.sums;
      for (std::int64_t b = 0; b < block.blocks; b += V::lanes, sums += strip_columns) {
        const std::int64_t blocks = block.blocks - b < V::lanes ? block.blocks - b : V::lanes;
        gather(
            [&](int lane) { return codes + (b + (lane < blocks ? lane : blocks - 1)) * tile_block_bytes; },
            strip.codes);
        prefetch(codes, b, block.blocks, layout.blocks());
        const bool table = has_table && in_group + blocks <= group_blocks;
        if constexpr (has_table) {
          if (table) fill_table(layout, parameters, group, strip);
        }
        if (!table) gather_parameters(layout, parameters, group, in_group, group_blocks, blocks, strip);
        for_each_run<V::codes_product_rows>(block.rows, [&]<int Rows>(std::int64_t row) {
          const float* dy = block.dy + row * block.dy_stride + n;
          float* of_rows = sums + row * sums_stride;
          if constexpr (has_table) {
            if (table) return multiply<Rows, true>(strip, depth, dy, block.dy_stride, of_rows, sums_stride);
          }
          multiply<Rows, false>(strip, depth, dy, block.dy_stride, of_rows, sums_stride);
        });
        for (in_group += V::lanes; in_group >= group_blocks; in_group -= group_blocks) ++group;
      }
    }
    for (std::int64_t m = 0; m < block.rows; ++m) {
      store(layout, first_group, first_in_group, block, block.sums + m * sums_stride, block.out + m * block.out_stride);
    }
  }

  /// Sums to where their columns belong; those that blocks have beyond the end of their group are left out.
  static void store(
      const PreparedLayout& layout, std::int64_t group, std::int64_t in_group, const CodesProductBlock& block,
      const float* sums, float* out) {
    const std::int64_t group_blocks = layout.group_blocks();
    for (std::int64_t b = 0; b < block.blocks; ++b) {
      const float* from = sums + b / V::lanes * strip_columns + b % V::lanes;
      const std::int64_t left = layout.columns_of_group(group) - in_group * block_columns;
      const std::int64_t columns = left < block_columns ? left : block_columns;
      for (std::int64_t c = 0; c < columns; ++c) *out++ = from[c * V::lanes];
      if (++in_group == group_blocks) {
        ++group;
        in_group = 0;
      }
    }
  }
};

template <class V, int Bits>
void codes_product(const CodesProductBlock& block) {
  if (block.layout->zero_kind == ZeroKind::offset) {
    CodesProductKernel<V, Bits, true>::run(block);
  } else {
    CodesProductKernel<V, Bits, false>::run(block);
  }
}

}  // namespace
}  // namespace bittensor
