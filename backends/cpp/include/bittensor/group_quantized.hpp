#pragma once

/// Group-quantized weights (docs/numerics.md, section 3) in the layout that the linear kernels read, as plain data.
/// This header is included by translation units that are compiled with instruction-set flags; see kernel_set.hpp.

#include <cstdint>

namespace bittensor {

enum class FloatType : std::uint8_t { f32, f16, bf16 };

constexpr std::int64_t bytes_of(FloatType type) {
  return type == FloatType::f32 ? 4 : 2;
}

enum class ZeroKind : std::uint8_t {
  symmetric,  // w = scale * (q - 2^(bits-1))
  integer,    // w = scale * (q - zero), zero a code of the group
  offset,     // w = scale * q + offset
};

constexpr bool shares_activation_scales(std::int32_t bits, ZeroKind kind) {
  return bits <= 4 && kind != ZeroKind::offset;
}

/// Weight rows that share a tile. Every instruction set reads the same tiles: 16 rows are one AVX-512 vector of
/// accumulators, two of AVX2, a row group of an AMX tile.
inline constexpr int tile_rows = 16;

/// Bytes of a block: 4 bytes of each row of the tile, the operand of VPDPBUSD.
inline constexpr int tile_block_bytes = 64;

/// Groups shorter than this meet activations that share a scale with those of their neighbours, where
/// shares_activation_scales: docs/numerics.md, section 4.
inline constexpr std::int64_t activation_group_columns = 64;

/// What a prepared weight holds, and where. Codes lie in tiles of 16 rows, a tile in blocks of 32 / bits columns:
/// byte 4 * r + i of a block holds, from its low bits up, columns i, 4 + i, 8 + i, ... of row r. One shift and one mask
/// give a vector of 16 rows x 4 columns. Each group starts a new block; rows and columns that do not exist hold
/// code 0, with scale and offset 0. Scales, and zeros or offsets, lie as [tile][group][row of the tile]. What a
/// compiler would not always inline into kernels has to be: the rule of kernel_set.hpp.
struct PreparedLayout {
  std::int64_t out_features;  // N
  std::int64_t in_features;   // K
  std::int64_t group_size;
  std::int32_t bits;
  FloatType scale_type;
  ZeroKind zero_kind;

  constexpr std::int64_t tiles() const { return (out_features + tile_rows - 1) / tile_rows; }
  constexpr std::int64_t groups() const { return (in_features + group_size - 1) / group_size; }
  /// Groups that meet one group of activations, which has one scale; the last may meet fewer.
  [[gnu::always_inline]] constexpr std::int64_t groups_together() const {
    return group_size < activation_group_columns && shares_activation_scales(bits, zero_kind)
               ? static_cast<std::int32_t>(activation_group_columns) / static_cast<std::int32_t>(group_size)
               : 1;
  }
  constexpr std::int64_t activation_groups() const { return (groups() + groups_together() - 1) / groups_together(); }
  /// block_columns() is 32 / bits, as a shift: divisions show in the time of short rows.
  constexpr int block_shift() const { return bits == 8 ? 2 : 5 - bits / 2; }
  constexpr std::int64_t block_columns() const { return std::int64_t{1} << block_shift(); }
  constexpr std::int64_t columns_of_group(std::int64_t group) const {
    const std::int64_t left = in_features - group * group_size;
    return left < group_size ? left : group_size;
  }
  constexpr std::int64_t blocks_of(std::int64_t columns) const {
    return (columns + block_columns() - 1) >> block_shift();
  }
  /// Blocks of every group but the last.
  constexpr std::int64_t group_blocks() const { return blocks_of(group_size); }
  [[gnu::always_inline]] constexpr std::int64_t blocks() const {
    return (groups() - 1) * group_blocks() + blocks_of(columns_of_group(groups() - 1));
  }
  /// Columns with the gaps that whole blocks leave: the length of a row of activation codes.
  constexpr std::int64_t padded_columns() const { return blocks() * block_columns(); }

  [[gnu::always_inline]] constexpr std::int64_t tile_code_bytes() const { return blocks() * tile_block_bytes; }
  constexpr std::int64_t tile_scale_bytes() const { return groups() * tile_rows * bytes_of(scale_type); }
  constexpr std::int64_t tile_zero_bytes() const {
    if (zero_kind == ZeroKind::symmetric) return 0;
    return zero_kind == ZeroKind::integer ? groups() * tile_rows : tile_scale_bytes();
  }
  constexpr std::int64_t codes_begin() const { return 64; }  // after the header
  constexpr std::int64_t scales_begin() const { return codes_begin() + tiles() * tile_code_bytes(); }
  constexpr std::int64_t zeros_begin() const { return scales_begin() + tiles() * tile_scale_bytes(); }
  constexpr std::int64_t bytes() const { return zeros_begin() + tiles() * tile_zero_bytes(); }
};

}  // namespace bittensor
