#pragma once

/// From packed codes to float32, row by row, written once for every instruction set V (a traits class). Lanes run over
/// the columns of one weight row, although blocks hold rows side by side: the four bytes of the row are broadcast, and
/// each lane shifts its own column down. So nothing is transposed.

#include <cstdint>

#include "bittensor/gradient_kernels.hpp"
#include "float_linear.hpp"

namespace bittensor {
namespace {

/// The bit at which each column of a block begins, twice over for vectors longer than a block.
template <int Bits>
struct ColumnShifts {
  alignas(64) std::uint32_t at[panel_unit] = {};

  constexpr ColumnShifts() {
    for (int column = 0; column < panel_unit; ++column) {
      const int in_block = column % (32 / Bits);
      at[column] = static_cast<std::uint32_t>(8 * (in_block % 4) + Bits * (in_block / 4));
    }
  }
};

/// What turns the codes of one row and group into values: arithmetic, or a table of all values where one register holds
/// them.
template <class V, int Bits, bool HasOffset>
class Decoder {
 public:
  using Float = typename V::Float;
  static constexpr bool has_table = Bits <= V::table_bits;

  Decoder(float zero, float scale, float offset)
      : shifted_zero_(V::broadcast_f32(zero + two_to_23)),
        scale_(V::broadcast_f32(scale)),
        offset_(V::broadcast_f32(offset)),
        table_(shifted_zero_) {
    if constexpr (has_table) table_ = compute(V::load_lanes(every_code));
  }

  /// `codes` may have other bits above the code.
  Float operator()(const typename V::LaneVector& codes) const {
    if constexpr (has_table) {
      return V::lookup(table_, codes);
    } else {
      return compute(codes);
    }
  }

 private:
  alignas(64) static constexpr std::uint32_t every_code[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

  Float compute(const typename V::LaneVector& codes) const {
    const Float centered = V::subtract_f32(V::template code_above_two_to_23<Bits, 0>(codes), shifted_zero_);
    const Float value = V::multiply(centered, scale_);
    if constexpr (HasOffset) return V::add(value, offset_);
    return value;
  }

  Float shifted_zero_;
  Float scale_;
  Float offset_;
  Float table_;
};

template <class V, int Bits, bool HasOffset>
struct PanelWriter {
  static constexpr int block_columns = 32 / Bits;
  static constexpr int blocks = V::lanes > block_columns ? V::lanes / block_columns : 1;  // that a vector spans
  static constexpr ColumnShifts<Bits> shifts{};

  /// Columns [begin, end) of a group of one row. The last vector may write beyond the end.
  static void write_row(
      const std::uint8_t* codes, std::int64_t group_blocks, std::int64_t begin, std::int64_t end,
      const Decoder<V, Bits, HasOffset>& decode, float* values) {
    std::int64_t offset[blocks];
    for (int i = 0; i < blocks; ++i) offset[i] = i * tile_block_bytes;
    const auto write = [&](std::int64_t column) {
      const auto packed = V::template broadcast_blocks<blocks>(codes + column / block_columns * tile_block_bytes, offset);
      const std::uint32_t* shift = shifts.at + (V::lanes < block_columns ? column % block_columns : 0);
      V::store_float(values + column - begin, decode(V::shift_right(packed, V::load_lanes(shift))));
    };
    std::int64_t column = begin;
    const std::int64_t whole = group_blocks * block_columns - V::lanes;
    for (; column < end && column <= whole; column += V::lanes) write(column);
    if (column < end) {
      // The blocks that follow belong to another group, or to nobody.
      const std::int64_t last = group_blocks - 1 - column / block_columns;
      for (int i = 0; i < blocks; ++i) offset[i] = (i < last ? i : last) * tile_block_bytes;
      write(column);
    }
  }

  /// Up to tile_rows rows of one tile.
  static void write_tile(const WeightPanel& panel, std::int64_t tile, std::int64_t rows, float* values) {
    const PreparedLayout& layout = *panel.layout;
    const std::int64_t scale_bytes = bytes_of(layout.scale_type);
    const std::uint8_t* tile_codes = panel.prepared + layout.codes_begin() + tile * layout.tile_code_bytes();
    const std::uint8_t* tile_scales = panel.prepared + layout.scales_begin() + tile * layout.tile_scale_bytes();
    const std::uint8_t* tile_zeros = panel.prepared + layout.zeros_begin() + tile * layout.tile_zero_bytes();
    const std::int64_t end_column = panel.first_column + panel.columns;
    for (std::int64_t g = panel.first_column / layout.group_size; g * layout.group_size < end_column; ++g) {
      const std::int64_t first = g * layout.group_size;
      const std::int64_t begin = panel.first_column > first ? panel.first_column - first : 0;
      const std::int64_t columns = layout.columns_of_group(g);
      const std::int64_t end = end_column - first < columns ? end_column - first : columns;
      const std::uint8_t* codes = tile_codes + g * layout.group_blocks() * tile_block_bytes;
      const std::uint8_t* scales = tile_scales + g * tile_rows * scale_bytes;
      alignas(64) float scale[tile_rows];
      alignas(64) float offset[tile_rows];
      for (int r = 0; r < tile_rows; r += V::lanes) {
        V::store_float(scale + r, V::load_float(scales + r * scale_bytes, layout.scale_type));
        if constexpr (HasOffset) {
          const std::uint8_t* offsets = tile_zeros + (g * tile_rows + r) * scale_bytes;
          V::store_float(offset + r, V::load_float(offsets, layout.scale_type));
        }
      }
      // The same columns of the next tile lie where the hardware does not expect them.
      for (std::int64_t c = begin; c < end; c += block_columns) {
        __builtin_prefetch(codes + layout.tile_code_bytes() + c / block_columns * tile_block_bytes);
      }
      for (std::int64_t r = 0; r < rows; ++r) {
        float zero = layout.zero_kind == ZeroKind::symmetric ? 1 << (Bits - 1) : 0;
        if (layout.zero_kind == ZeroKind::integer) zero = tile_zeros[g * tile_rows + r];
        const Decoder<V, Bits, HasOffset> decode(zero, scale[r], HasOffset ? offset[r] : 0.0F);
        write_row(
            codes + 4 * r, layout.blocks_of(columns), begin, end, decode,
            values + r * panel.stride + first + begin - panel.first_column);
      }
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      for (int c = 0; c < panel_unit; c += V::lanes) {
        V::store_float(values + r * panel.stride + panel.columns + c, V::broadcast_f32(0.0F));
      }
    }
  }
};

template <class V, int Bits>
void dequantize_panel(const WeightPanel& panel) {
  for (std::int64_t row = 0; row < panel.rows; row += tile_rows) {
    const std::int64_t rows = panel.rows - row < tile_rows ? panel.rows - row : tile_rows;
    const std::int64_t tile = (panel.first_row + row) / tile_rows;
    float* values = panel.values + row * panel.stride;
    if (panel.layout->zero_kind == ZeroKind::offset) {
      PanelWriter<V, Bits, true>::write_tile(panel, tile, rows, values);
    } else {
      PanelWriter<V, Bits, false>::write_tile(panel, tile, rows, values);
    }
  }
}

}  // namespace
}  // namespace bittensor
