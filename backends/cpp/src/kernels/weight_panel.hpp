#pragma once

/// From packed codes to float32, row by row, written once for every instruction set V (a traits class). Lanes run over
/// the columns of one weight row, although blocks hold rows side by side: the four bytes of the row are broadcast, and
/// each lane shifts its own column down. So nothing is transposed.

#include <cstdint>

#include "bittensor/embedding_kernels.hpp"
#include "bittensor/gradient_kernels.hpp"
#include "planes.hpp"

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

  static constexpr int rows_at_once = has_table ? 4 : 2;  // as many as find room in the registers

  Decoder(float shifted_zero, float scale, float offset)
      : shifted_zero_(V::broadcast_f32(shifted_zero)),
        scale_(V::broadcast_f32(scale)),
        offset_(V::broadcast_f32(offset)),
        table_(shifted_zero_) {
    if constexpr (has_table) table_ = compute(V::load_lanes(every_code));
  }

  /// The values of all codes, where there is a table.
  const Float& table() const { return table_; }

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
    const Float centered = V::subtract_f32(V::template code_in_fraction<Bits>(codes), shifted_zero_);
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
  using RowDecoder = Decoder<V, Bits, HasOffset>;
  static constexpr int block_columns = 32 / Bits;
  static constexpr int blocks = V::lanes > block_columns ? V::lanes / block_columns : 1;  // that a vector spans
  static constexpr int vectors = blocks * block_columns / V::lanes;                       // that they fill
  static constexpr int rows_at_once = RowDecoder::rows_at_once;
  static constexpr ColumnShifts<Bits> shifts{};

  /// Parameters of each row of a tile in a group.
  struct RowParameters {
    alignas(64) float shifted_zero[tile_rows];
    alignas(64) float scale[tile_rows];
    alignas(64) float offset[tile_rows];
  };

  static void widen_parameters(
      const PreparedLayout& layout, const std::uint8_t* scales, const std::uint8_t* zeros, RowParameters& parameters) {
    const std::int64_t size = bytes_of(layout.scale_type);
    for (int r = 0; r < tile_rows; r += V::lanes) {
      typename V::Float zero = V::broadcast_f32(layout.zero_kind == ZeroKind::symmetric ? 1 << (Bits - 1) : 0);
      if (layout.zero_kind == ZeroKind::integer) zero = V::to_float(V::load_u8_as_i32(zeros + r));
      V::store_float(parameters.shifted_zero + r, V::add(zero, V::broadcast_f32(above_codes)));
      V::store_float(parameters.scale + r, V::load_float(scales + r * size, layout.scale_type));
      const typename V::Float none = V::broadcast_f32(0.0F);
      V::store_float(parameters.offset + r, HasOffset ? V::load_float(zeros + r * size, layout.scale_type) : none);
    }
  }

  /// `columns` columns of one group, 1, 2 or 4 rows at once. The last blocks may fill columns beyond the end.
  template <int Rows>
  static void write_rows(
      const std::uint8_t* codes, std::int64_t blocks_left, std::int64_t columns, const RowParameters& parameters,
      int row, float* values, std::int64_t stride) {
    const auto decoder = [&](int r) {
      return RowDecoder(parameters.shifted_zero[row + r], parameters.scale[row + r], parameters.offset[row + r]);
    };
    const auto write = [&](const RowDecoder& decode, int r, const std::int64_t (&offset)[blocks]) {
      const auto packed = V::template broadcast_blocks<blocks>(codes + 4 * r, offset);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        const auto shifted = V::shift_right(packed, V::load_lanes(shifts.at + v * V::lanes));
        V::store_float(values + r * stride + v * V::lanes, decode(shifted));
      }
    };
    const RowDecoder first = decoder(0);
    const RowDecoder second = decoder(Rows > 1 ? 1 : 0);
    const RowDecoder third = decoder(Rows > 2 ? 2 : 0);
    const RowDecoder fourth = decoder(Rows > 2 ? 3 : 0);
    const auto write_all = [&](const std::int64_t (&offset)[blocks]) {
      write(first, 0, offset);
      if constexpr (Rows > 1) write(second, 1, offset);
      if constexpr (Rows > 2) {
        write(third, 2, offset);
        write(fourth, 3, offset);
      }
    };
    std::int64_t offset[blocks];
    for (int i = 0; i < blocks; ++i) offset[i] = i * tile_block_bytes;
    for (; columns > 0 && blocks_left >= blocks; columns -= blocks * block_columns) {
      write_all(offset);
      codes += blocks * tile_block_bytes;
      values += blocks * block_columns;
      blocks_left -= blocks;
    }
    if (columns > 0) {
      // The blocks that follow belong to another group, or to nobody.
      for (int i = 0; i < blocks; ++i) offset[i] = (i < blocks_left ? i : blocks_left - 1) * tile_block_bytes;
      write_all(offset);
    }
  }

  /// `count` rows of a tile from `first` on, so many at once.
  template <int Rows>
  static void write_tile(const WeightPanel& panel, std::int64_t tile, int first, int count, float* values) {
    const PreparedLayout layout = *panel.layout;
    const std::int64_t stride = panel.stride;
    const std::int64_t tile_code_bytes = layout.tile_code_bytes();
    const std::int64_t group_code_bytes = layout.group_blocks() * tile_block_bytes;
    const std::int64_t scale_bytes = tile_rows * bytes_of(layout.scale_type);  // of a group
    const std::int64_t zero_bytes = HasOffset ? scale_bytes : tile_rows;
    const std::uint8_t* tile_codes = panel.prepared + layout.codes_begin() + tile * tile_code_bytes;
    const std::uint8_t* tile_scales = panel.prepared + layout.scales_begin() + tile * layout.tile_scale_bytes();
    const std::uint8_t* tile_zeros = panel.prepared + layout.zeros_begin() + tile * layout.tile_zero_bytes();
    const std::int64_t panel_end = panel.first_column + panel.columns;
    std::int64_t g = panel.first_column / layout.group_size;
    for (std::int64_t column = panel.first_column; column < panel_end; ++g) {
      const std::int64_t group_begin = g * layout.group_size;
      const std::int64_t group_columns = layout.columns_of_group(g);
      const std::int64_t skipped = (column - group_begin) / block_columns;
      const std::int64_t group_end = group_begin + group_columns;
      const std::int64_t columns = (group_end < panel_end ? group_end : panel_end) - column;
      const std::int64_t blocks_left = (group_columns + block_columns - 1) / block_columns - skipped;
      const std::uint8_t* codes = tile_codes + g * group_code_bytes + skipped * tile_block_bytes;
      // The same columns of the next tile lie where the hardware does not expect them.
      for (std::int64_t c = 0; Rows > 1 && c < columns; c += block_columns) {
        __builtin_prefetch(codes + tile_code_bytes + c / block_columns * tile_block_bytes);
      }
      RowParameters parameters;
      widen_parameters(layout, tile_scales + g * scale_bytes, tile_zeros + g * zero_bytes, parameters);
      for (int r = 0; r < count; r += Rows) {
        write_rows<Rows>(
            codes + 4 * (first + r), blocks_left, columns, parameters, first + r,
            values + r * stride + column - panel.first_column, stride);
      }
      column += columns;
    }
    for (std::int64_t r = 0; r < count; ++r) {
      for (int c = 0; c < panel_unit; c += V::lanes) {
        V::store_float(values + r * stride + panel.columns + c, V::broadcast_f32(0.0F));
      }
    }
  }
};

template <class Writer>
void write_tile(const WeightPanel& panel, std::int64_t tile, float* values) {
  Writer::template write_tile<Writer::rows_at_once>(panel, tile, 0, tile_rows, values);
}

template <class V, int Bits>
void dequantize_panel(const WeightPanel& panel) {
  for (std::int64_t t = 0; t < panel.tiles; ++t) {
    float* values = panel.values + t * tile_rows * panel.stride;
    if (panel.layout->zero_kind == ZeroKind::offset) {
      write_tile<PanelWriter<V, Bits, true>>(panel, panel.first_tile + t, values);
    } else {
      write_tile<PanelWriter<V, Bits, false>>(panel, panel.first_tile + t, values);
    }
  }
}

/// A row as a panel of its own: of each cache line of its tile it reads four bytes.
template <class V, int Bits>
void dequantize_row(const PreparedLayout& layout, const std::uint8_t* prepared, std::int64_t row, float* values) {
  static_assert(row_padding >= panel_unit);
  const std::int64_t columns = layout.in_features;
  const WeightPanel panel = {&layout, prepared, 0, 1, 0, columns, values, columns + panel_unit};
  const std::int64_t tile = row / tile_rows;
  const int first = static_cast<int>(row % tile_rows);
  if (layout.zero_kind == ZeroKind::offset) {
    PanelWriter<V, Bits, true>::template write_tile<1>(panel, tile, first, 1, values);
  } else {
    PanelWriter<V, Bits, false>::template write_tile<1>(panel, tile, first, 1, values);
  }
}

}  // namespace
}  // namespace bittensor
