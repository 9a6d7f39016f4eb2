#pragma once

/// The loops around a linear's micro-kernel, shared by the int8 and the float one.

#include <cstdint>

namespace bittensor {
namespace {

/// With one row the loop waits for memory; the stream of codes is fetched this many bytes ahead.
inline constexpr std::int64_t linear_prefetch_bytes = 2048;

/// Every row against `Tiles` tiles, as many rows at a time as the registers hold; then the rows that are left.
template <int Tiles, int Rows, class Block, class F>
void linear_rows(const Block& block, const F& f, std::int64_t row, std::int64_t tile) {
  if constexpr (Rows > 0) {
    for (; row + Rows <= block.rows; row += Rows) f.template operator()<Rows, Tiles>(row, tile);
    linear_rows<Tiles, Rows - 1>(block, f, row, tile);
  }
}

/// Tiles outside, rows inside: the codes of a few tiles stay in the first-level cache while all rows meet them.
template <int Tiles, int Rows, class Block, class F>
void linear_tiles(const Block& block, const F& f, std::int64_t tile = 0) {
  if constexpr (Tiles > 0) {
    for (; tile + Tiles <= block.tiles; tile += Tiles) linear_rows<Tiles, Rows>(block, f, 0, tile);
    linear_tiles<Tiles - 1, Rows>(block, f, tile);
  }
}

}  // namespace
}  // namespace bittensor
