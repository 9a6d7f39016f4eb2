#pragma once

/// The tile registers of AMX, numbered at compile time. The compiler's own intrinsics take literal numbers only, so
/// that no template could name a register. And the panels of rows that share what was decoded for these registers.

#include <cstdint>

namespace bittensor {
namespace {

/// The shapes of the eight tile registers, as LDTILECFG reads them: up to 16 rows of up to 64 bytes.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};

  void set(int tile, std::int64_t tile_rows, std::int64_t bytes) {
    rows[tile] = static_cast<std::uint8_t>(tile_rows);
    row_bytes[tile] = static_cast<std::uint16_t>(bytes);
  }
};

/// Gives the registers their shapes and sets them to zero.
inline void configure_tiles(const TileConfig& config) {
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
}

/// Back to the state in which the system need not save them.
inline void release_tiles() {
  __asm__ volatile("tilerelease" : : : "memory");
}

template <int Tile>
[[gnu::always_inline]] inline void zero_tile() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(Tile));
}

/// Rows of the tile from rows of memory that are `stride` bytes apart.
template <int Tile>
[[gnu::always_inline]] inline void load_tile(const void* from, std::int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(Tile) : "memory");
}

/// The same, of memory that is not read again soon and need not displace other lines of the first-level cache.
template <int Tile>
[[gnu::always_inline]] inline void load_tile_once(const void* from, std::int64_t stride) {
  __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(Tile) : "memory");
}

template <int Tile>
[[gnu::always_inline]] inline void store_tile(void* to, std::int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(Tile) : "memory");
}

/// sums[m][n] += sum over k of x[m][k] * weight[k / 4][4 * n + k % 4]: signed bytes by signed or unsigned ones, in
/// int32.
template <int Sums, int X, int Weight, bool UnsignedWeight>
[[gnu::always_inline]] inline void multiply_tiles() {
  if constexpr (UnsignedWeight) {
    __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(X), "i"(Weight));
  } else {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(X), "i"(Weight));
  }
}

/// Calls f(begin, count) for as few panels of at most `most` rows as there can be, of equal length give or take one.
template <class F>
void for_each_panel(std::int64_t rows, std::int64_t most, const F& f) {
  const std::int64_t panels = (rows + most - 1) / most;
  for (std::int64_t i = 0; i < panels; ++i) {
    const std::int64_t begin = rows * i / panels;
    f(begin, rows * (i + 1) / panels - begin);
  }
}

}  // namespace
}  // namespace bittensor
