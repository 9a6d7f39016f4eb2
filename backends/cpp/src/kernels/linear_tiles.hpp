#pragma once

/// The loops around a linear's micro-kernel.

#include <cstdint>

#include "bittensor/group_quantized.hpp"

namespace bittensor {
namespace {

/// Fetches what a loop over `Tiles` tiles side by side, now at `codes` of the first, needs `ahead` bytes of each later.
/// Behind the end of a tile that is the next run of tiles.
template <int Tiles>
void prefetch_codes(
    const std::uint8_t* codes, const std::uint8_t* end_of_tile, std::int64_t tile_bytes, std::int64_t ahead) {
  const std::uint8_t* next = codes + ahead + (end_of_tile - codes > ahead ? 0 : (Tiles - 1) * tile_bytes);
  for (int t = 0; t < Tiles; ++t) __builtin_prefetch(next + t * tile_bytes);
}

/// Fetches into the second-level cache a part of the next run of tiles, as large as what the loop reads meanwhile:
/// `bytes` of each tile, at most a cache line.
template <int Tiles>
void prefetch_next_run(const std::uint8_t*& next, std::int64_t bytes) {
  for (int t = 0; t < Tiles; ++t) __builtin_prefetch(next + t * bytes, 0, 2);
  next += Tiles * bytes;
}

/// What the loops need of a layout, so that its divisions are done once for a block and not for each tile.
struct TileSizes {
  std::int64_t groups;
  std::int64_t blocks;
  std::int64_t group_blocks;
  std::int64_t code_bytes;
  std::int64_t scale_bytes;
  std::int64_t zero_bytes;

  explicit TileSizes(const PreparedLayout& layout)
      : groups(layout.groups()),
        blocks(layout.blocks()),
        group_blocks(layout.group_blocks()),
        code_bytes(layout.tile_code_bytes()),
        scale_bytes(layout.tile_scale_bytes()),
        zero_bytes(layout.tile_zero_bytes()) {}

  /// Those of a part of its groups and blocks, whose codes are bytes: each block has become `planes` of them. Scales
  /// and zero points lie where they did.
  TileSizes decoded(std::int64_t part_groups, std::int64_t part_blocks, std::int64_t planes) const {
    TileSizes part = *this;
    part.groups = part_groups;
    part.blocks = part_blocks * planes;
    part.group_blocks = group_blocks * planes;
    part.code_bytes = part.blocks * tile_block_bytes;
    return part;
  }
};

/// Calls f<n>(begin) for n = `count`, which is at most Most.
template <int Most, class F>
void with_static_count(int count, std::int64_t begin, const F& f) {
  if constexpr (Most > 1) {
    if (count < Most) return with_static_count<Most - 1>(count, begin, f);
  }
  f.template operator()<Most>(begin);
}

/// Splits [0, count) into as few runs of at most Most as there can be, of equal length give or take one: a run of one
/// after runs of Most would leave the multipliers waiting for their own results.
template <int Most, class F>
void for_each_run(std::int64_t count, const F& f) {
  const std::int64_t runs = (count + Most - 1) / Most;
  const std::int64_t length = count / runs;
  const std::int64_t longer = count % runs;
  for (std::int64_t i = 0, begin = 0; i < runs; ++i) {
    const std::int64_t taken = length + (i < longer ? 1 : 0);
    with_static_count<Most>(static_cast<int>(taken), begin, f);
    begin += taken;
  }
}

/// Tiles outside, rows inside: the codes of a few tiles stay in the first-level cache while all rows meet them.
template <int Tiles, int Rows, class Block, class F>
void linear_tiles(const Block& block, const F& f) {
  for_each_run<Tiles>(block.tiles, [&]<int RunTiles>(std::int64_t tile) {
    for_each_run<Rows>(
        block.rows, [&]<int RunRows>(std::int64_t row) { f.template operator()<RunRows, RunTiles>(row, tile); });
  });
}

}  // namespace
}  // namespace bittensor
