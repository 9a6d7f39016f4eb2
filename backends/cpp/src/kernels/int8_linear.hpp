#pragma once

/// The micro-kernel of the group-quantized linear, written once for every instruction set V (a traits class): rows of
/// int8 codes, of which float activations have one for each digit. Lanes run over weight rows: there is no sum across
/// lanes anywhere, and the float order over groups is the same on every instruction set, which is what makes the
/// results bit-identical.

#include <cstdint>

#include "bittensor/linear_kernels.hpp"
#include "linear_tiles.hpp"
#include "planes.hpp"

namespace bittensor {
namespace {

/// What a loop fetches that waits for memory, because its rows are few and the first to meet the codes.
enum class Fetching : std::uint8_t {
  none,    // it does not wait
  scales,  // codes are one stream, in order, which the processor fetches by itself
  all
};

/// `StoredBits` is 8 where codes of fewer bits were decoded to bytes before.
template <class V, int Bits, int StoredBits, int Rows, int Tiles, Fetching Fetches>
struct Int8LinearTile {
  static constexpr int tile_vectors = tile_rows / V::lanes;
  static constexpr int vectors = Tiles * tile_vectors;
  static constexpr int plane_count = 8 / StoredBits;
  static constexpr int columns = 32 / StoredBits;   // of a block
  using Dot = typename V::template Dot<Bits, 128>;  // digits reach -128
  using Sum = typename V::LaneSum;
  using Float = typename V::Float;

  /// With one row few sums are in flight, and each waits for its predecessor: planes then have sums of their own.
  static constexpr int chains = Rows == 1 && plane_count > 1 ? 2 : 1;

  /// Where 16 registers have to hold planes of codes beside the sums. It costs what it brings elsewhere.
  static constexpr bool settles_sums = V::lanes < tile_rows && StoredBits < 8 && Rows > 1;

  /// One block of every tile against its columns of every row.
  template <class Partial>
  [[gnu::always_inline]] static void step(
      const std::uint8_t* codes, std::int64_t tile_bytes, const std::int8_t* x, std::int64_t x_stride,
      Partial (&partial)[chains * Rows][vectors]) {
    typename V::LaneVector packed[vectors];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) {
      packed[v] = V::load_lanes(codes + v / tile_vectors * tile_bytes + v % tile_vectors * V::lanes * 4);
    }
    for_each_plane<plane_count>([&]<int Plane>() {
      typename V::LaneVector weight[vectors];
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) weight[v] = V::template plane<StoredBits, Plane>(packed[v]);
#pragma GCC unroll 8
      for (int m = 0; m < Rows; ++m) {
        const typename V::LaneVector four = V::broadcast4(x + m * x_stride + 4 * Plane);
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) {
          Partial& partial_sum = partial[Plane % chains * Rows + m][v];
          Partial sum = Dot::step(partial_sum, weight[v], four);
          if constexpr (settles_sums) V::settle(sum);
          partial_sum = sum;
        }
      }
    });
  }

  [[gnu::always_inline]] static Sum zero_term(
      ZeroKind kind, const std::uint8_t* zeros, std::int64_t tile_bytes, std::int32_t x_sum, int v) {
    switch (kind) {
      case ZeroKind::symmetric: return V::broadcast_i32(-(1 << (Bits - 1)) * x_sum);
      case ZeroKind::integer:
        return V::multiply_i32(
            V::broadcast_i32(-x_sum),
            V::load_u8_as_i32(zeros + v / tile_vectors * tile_bytes + v % tile_vectors * V::lanes));
      default: return V::broadcast_i32(0);
    }
  }

  static float* y_of(const Int8LinearBlock& block, std::int64_t row, std::int64_t tile, int v) {
    return block.y + row * block.y_stride + tile * tile_rows + v * V::lanes;
  }

  static Float load_float(const std::uint8_t* from, std::int64_t tile_bytes, FloatType type, int v) {
    const std::int64_t in_tile = v % tile_vectors * V::lanes * bytes_of(type);
    return V::load_float(from + v / tile_vectors * tile_bytes + in_tile, type);
  }

  /// With `continues`, y already has the terms of the groups before. Never inlined: as a part of the loops around it,
  /// it is left too few registers.
  [[gnu::noinline]] static void run(
      const Int8LinearBlock& block, const TileSizes& sizes, std::int64_t row, std::int64_t tile, bool continues) {
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
    const std::int8_t* x = block.x + row * block.x_stride;
    const float* x_scales = block.x_scales + row;
    const bool has_offset = layout.zero_kind == ZeroKind::offset;
    [[maybe_unused]] const std::int64_t ahead = block.fetch.ahead / Tiles / 64 * 64;
    [[maybe_unused]] const bool has_next_run =
        (block.fetch.next_run || block.rows > V::int8_rows) && tile + 2 * Tiles <= block.tiles_to_come;
    [[maybe_unused]] const std::uint8_t* next_codes = codes + Tiles * tile_code_bytes;
    [[maybe_unused]] const std::uint8_t* next_scales = scales + Tiles * tile_scale_bytes;
    [[maybe_unused]] const std::uint8_t* next_zeros = zeros + Tiles * tile_zero_bytes;
    [[maybe_unused]] constexpr std::int64_t scales_ahead = Fetches == Fetching::all ? 768 : 256;  // bytes
    const std::int32_t* x_sums = has_offset ? nullptr : block.x_sums + row;  // as it says there, one of the two is read
    const float* x_totals = has_offset ? block.x_totals + row : nullptr;

    Float y[Rows][vectors];
    Float z[Rows][vectors];  // terms of the groups that the group of activations has met
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) {
        y[m][v] = continues ? V::load_float(y_of(block, row + m, tile, v), FloatType::f32) : V::broadcast_f32(0.0F);
        z[m][v] = V::broadcast_f32(0.0F);
      }
    }
    const std::int64_t groups_together = layout.groups_together();
    std::int64_t met = 0;
    std::int64_t blocks_left = sizes.blocks;
    for (std::int64_t g = 0; g < groups; ++g) {
      const std::int64_t blocks = blocks_left < sizes.group_blocks ? blocks_left : sizes.group_blocks;
      blocks_left -= blocks;
      Sum sums[chains * Rows][vectors];
#pragma GCC unroll 8
      for (int m = 0; m < Rows; ++m) {
        const std::int32_t x_sum = has_offset ? 0 : x_sums[m];
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) {
          sums[m][v] = zero_term(layout.zero_kind, zeros, tile_zero_bytes, x_sum, v);
          if constexpr (chains == 2) sums[1][v] = V::broadcast_i32(0);
        }
      }
      const auto advance = [&] {
        if constexpr (Fetches == Fetching::all) {
          prefetch_codes<Tiles>(codes, end_of_tile, tile_code_bytes, ahead);
          if (has_next_run) prefetch_next_run<Tiles>(next_codes, tile_block_bytes);
        }
        codes += tile_block_bytes;
        x += columns;
      };
      if constexpr (Dot::max_steps == 0) {
        for (std::int64_t b = 0; b < blocks; ++b) {
          step(codes, tile_code_bytes, x, block.x_stride, sums);
          advance();
        }
      } else {
        constexpr std::int64_t run_blocks = Dot::max_steps / plane_count;
        for (std::int64_t done = 0; done < blocks; done += run_blocks) {
          typename Dot::Partial partial[chains * Rows][vectors];
#pragma GCC unroll 16
          for (int m = 0; m < chains * Rows; ++m) {
#pragma GCC unroll 16
            for (int v = 0; v < vectors; ++v) partial[m][v] = Dot::zero();
          }
          const std::int64_t end = blocks - done < run_blocks ? blocks - done : run_blocks;
          for (std::int64_t b = 0; b < end; ++b) {
            step(codes, tile_code_bytes, x, block.x_stride, partial);
            advance();
          }
#pragma GCC unroll 16
          for (int m = 0; m < chains * Rows; ++m) {
#pragma GCC unroll 16
            for (int v = 0; v < vectors; ++v) sums[m][v] = Dot::widen(sums[m][v], partial[m][v]);
          }
        }
      }
      if constexpr (chains == 2) {
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) sums[0][v] = V::add_i32(sums[0][v], sums[1][v]);
      }
      if constexpr (Fetches != Fetching::none) __builtin_prefetch(scales + scales_ahead);
      if constexpr (Fetches == Fetching::all) {
        if (has_next_run) {
          prefetch_next_run<Tiles>(next_scales, scale_bytes);
          if (layout.zero_kind != ZeroKind::symmetric) prefetch_next_run<Tiles>(next_zeros, zero_bytes);
        }
      }
      Float scale[vectors];
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) scale[v] = load_float(scales, tile_scale_bytes, layout.scale_type, v);
      const auto each = [](const auto& f) {
#pragma GCC unroll 8
        for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 16
          for (int v = 0; v < vectors; ++v) f(m, v);
        }
      };
      Float term[Rows][vectors];
      if (met == 0) {
        each([&](int m, int v) { term[m][v] = V::multiply(V::to_float(sums[m][v]), scale[v]); });
      } else {
        each([&](int m, int v) { term[m][v] = V::fma(V::to_float(sums[m][v]), scale[v], z[m][v]); });
      }
      if (has_offset) {
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) scale[v] = load_float(zeros, tile_zero_bytes, layout.scale_type, v);
        each([&](int m, int v) { term[m][v] = V::fma(V::broadcast_f32(x_totals[m]), scale[v], term[m][v]); });
      }
      if (++met == groups_together || g + 1 == groups) {
        each([&](int m, int v) { y[m][v] = V::fma(term[m][v], V::broadcast_f32(x_scales[m]), y[m][v]); });
        x_scales += block.x_group_stride;
        met = 0;
      } else {
        each([&](int m, int v) { z[m][v] = term[m][v]; });
      }
      scales += scale_bytes;
      zeros += zero_bytes;
      if (has_offset) {
        x_totals += block.x_group_stride;
      } else {
        x_sums += block.x_group_stride;
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) {
        const std::int64_t column = tile * tile_rows + v * V::lanes;
        if (block.bias != nullptr) y[m][v] = V::add(y[m][v], V::load_float(block.bias + column, FloatType::f32));
        V::store_float(y_of(block, row + m, tile, v), y[m][v]);
      }
    }
  }
};

/// Codes that are decoded at a time: as much as leaves room for activations in a first-level cache of 32 KiB.
inline constexpr std::int64_t decoded_bytes = std::int64_t{24} << 10;

inline constexpr std::int64_t decoded_ahead = 1024;  // bytes of packed codes, which may come from memory

/// The codes of `blocks` blocks of a tile, planes one after the other: blocks of 8 bits.
template <class V, int Bits>
void decode_blocks(const std::uint8_t* codes, std::int64_t blocks, std::uint8_t* to) {
  for (std::int64_t b = 0; b < blocks; ++b, codes += tile_block_bytes, to += 8 / Bits * tile_block_bytes) {
    __builtin_prefetch(codes + decoded_ahead);
#pragma GCC unroll 2
    for (int v = 0; v < tile_rows / V::lanes; ++v) {
      const typename V::LaneVector packed = V::load_lanes(codes + v * V::lanes * 4);
      for_each_plane<8 / Bits>([&]<int Plane>() {
        V::store(to + Plane * tile_block_bytes + v * V::lanes * 4, V::template plane<Bits, Plane>(packed));
      });
    }
  }
}

/// Many rows: a few groups of a few tiles are decoded to bytes, and all rows meet them before the next. In between,
/// their terms wait in y. False, and nothing done, if one group is too long for that.
template <class V, int Bits>
bool decoded_int8_linear(const Int8LinearBlock& block, const TileSizes& sizes) {
  constexpr int planes = 8 / Bits;
  const PreparedLayout& layout = *block.layout;
  const std::int64_t together = layout.groups_together();
  const std::int64_t unit_bytes = V::int8_tiles * together * sizes.group_blocks * planes * tile_block_bytes;
  if (unit_bytes > decoded_bytes) return false;
  const std::int64_t chunk_groups = decoded_bytes / unit_bytes * together;
  alignas(64) std::uint8_t bytes[decoded_bytes];
  for_each_run<V::int8_tiles>(block.tiles, [&]<int Tiles>(std::int64_t tile) {
    for (std::int64_t group = 0; group < sizes.groups; group += chunk_groups) {
      const std::int64_t first_block = group * sizes.group_blocks;
      const bool is_last = sizes.groups - group <= chunk_groups;
      const std::int64_t groups = is_last ? sizes.groups - group : chunk_groups;
      const std::int64_t blocks = is_last ? sizes.blocks - first_block : groups * sizes.group_blocks;
      const TileSizes chunk = sizes.decoded(groups, blocks, planes);
      for (int t = 0; t < Tiles; ++t) {
        const std::uint8_t* codes = block.codes + (tile + t) * sizes.code_bytes + first_block * tile_block_bytes;
        decode_blocks<V, Bits>(codes, blocks, bytes + t * chunk.code_bytes);
      }
      Int8LinearBlock part = block;
      part.codes = bytes;
      part.scales += tile * sizes.scale_bytes + group * (sizes.scale_bytes / sizes.groups);
      part.zeros += tile * sizes.zero_bytes + group * (sizes.zero_bytes / sizes.groups);
      part.x += first_block * layout.block_columns();
      part.x_scales += group / together * block.x_group_stride;
      if (part.x_sums != nullptr) part.x_sums += group * block.x_group_stride;
      if (part.x_totals != nullptr) part.x_totals += group * block.x_group_stride;
      part.bias = is_last && block.bias != nullptr ? block.bias + tile * tile_rows : nullptr;
      part.y += tile * tile_rows;
      for_each_run<V::int8_rows>(block.rows, [&]<int Rows>(std::int64_t row) {
        Int8LinearTile<V, Bits, 8, Rows, Tiles, Fetching::none>::run(part, chunk, row, 0, group > 0);
      });
    }
  });
  return true;
}

template <class V, int Bits>
void int8_linear(const Int8LinearBlock& block) {
  const TileSizes sizes(*block.layout);
  if constexpr (Bits < 8 && V::decoded_rows > 0) {
    if (block.decodes && block.rows >= V::decoded_rows && decoded_int8_linear<V, Bits>(block, sizes)) return;
  }
  const auto run = [&]<int Rows, int Tiles, Fetching Fetches>(std::int64_t row, std::int64_t tile) {
    Int8LinearTile<V, Bits, Bits, Rows, Tiles, Fetches>::run(block, sizes, row, tile, false);
  };
  const auto in_order = [&]<int Rows, int Tiles>(std::int64_t row, std::int64_t tile) {
    run.template operator()<Rows, Tiles, Fetching::scales>(row, tile);
  };
  const auto waits = [&]<int Rows, int Tiles>(std::int64_t row, std::int64_t tile) {
    run.template operator()<Rows, Tiles, Fetching::all>(row, tile);
  };
  const auto first_waits = [&]<int Rows, int Tiles>(std::int64_t row, std::int64_t tile) {
    if (row == 0 && block.is_large) {
      run.template operator()<Rows, Tiles, Fetching::all>(row, tile);
    } else {
      run.template operator()<Rows, Tiles, Fetching::none>(row, tile);
    }
  };
  constexpr int most_row_tiles = V::lanes == tile_rows ? 3 : 2;
  if (block.rows == 1) {
    if (block.fetch.row_tiles == 1) {
      linear_tiles<1, 1>(block, in_order);
    } else if (block.fetch.row_tiles >= most_row_tiles) {
      linear_tiles<most_row_tiles, 1>(block, waits);
    } else {
      linear_tiles<2, 1>(block, waits);
    }
  } else if (block.rows <= V::int8_rows) {
    linear_tiles<V::int8_tiles, V::int8_rows>(block, waits);
  } else {
    linear_tiles<V::int8_tiles, V::int8_rows>(block, first_waits);
  }
}

}  // namespace
}  // namespace bittensor
