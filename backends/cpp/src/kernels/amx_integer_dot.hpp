#pragma once

/// The integer micro-kernel on AMX. 64 bytes of planes of 16 rows meet as many of 16 weight rows in one instruction of
/// 16 cycles, and sums stay in their registers over a chunk of columns.
///
/// A tile register wants four neighbouring bytes of each of 16 weight rows side by side. So 16 packed rows are
/// transposed, four bytes at a time, before their planes are taken, which makes a register for each plane. As this
/// costs more than two such instructions, all rows of a panel share it: a chunk of 32 weight rows, small enough to
/// leave the first-level cache room for the packed rows. These are often a power of two apart and then fall into few of
/// its sets.

#include <immintrin.h>

#include <cstdint>

#include "amx_tiles.hpp"
#include "avx512vnni.hpp"
#include "integer_dot.hpp"
#include "planes.hpp"

namespace bittensor {
namespace {

template <int Bits>
class AmxIntegerDot {
 public:
  static void run(const IntegerDotBlock& block) { AmxIntegerDot(block).run(); }

 private:
  static constexpr int plane_count = 8 / Bits;
  static constexpr int block_words = block_bytes / 8;
  static constexpr std::int64_t planes_bytes = block_bytes * plane_count;  // planes of one block
  static constexpr int columns_of_tile = 16;
  static constexpr int tile_bytes = 1024;
  static constexpr int chunk_tiles = 8;                           // of each 16 weight rows, decoded
  static constexpr int chunk_blocks = chunk_tiles / plane_count;  // of which they are made
  static constexpr int panel_rows = 128;  // sums of more would not stay in the first-level cache
  static constexpr int run_rows = 32;     // at most, in two registers
  static constexpr std::int64_t sums_stride = 2 * columns_of_tile;
  static constexpr std::int64_t prefetch_words = 32;  // ahead in each weight row, where they come from memory

  explicit AmxIntegerDot(const IntegerDotBlock& block)
      : b_(block), blocks_((block.row_words + block_words - 1) / block_words) {}

  void run() {
    for_each_panel(b_.rows, panel_rows, [&](std::int64_t first, std::int64_t count) {
      first_row_ = first;
      rows_ = count;
      runs_ = (rows_ + run_rows - 1) / run_rows;
      rows_of_run_ = (rows_ + runs_ - 1) / runs_;
      if (rows_of_run_ > 16) {
        multiply_panel<2>();
      } else {
        multiply_panel<1>();
      }
    });
    release_tiles();
  }

  template <int RowTiles>
  void multiply_panel() {
    low_rows_ = (rows_of_run_ + RowTiles - 1) / RowTiles;
    shape_tiles();
    for (std::int64_t column = 0; column < b_.columns; column += 2 * columns_of_tile) {
      if (b_.columns - column > columns_of_tile) {
        multiply_columns<RowTiles, 2>(column);
      } else {
        multiply_columns<RowTiles, 1>(column);
      }
    }
  }

  /// Registers 4 and 5 hold planes of the lower and the higher rows of a run, 6 and 7 those of 16 weight rows each, and
  /// register 2 * r + t the sums of r and t. With one register of rows 5, 2 and 3 are not used.
  void shape_tiles() const {
    const std::int64_t high_rows = rows_of_run_ - low_rows_;
    TileConfig config;
    for (int r = 0; r < 2; ++r) {
      const std::int64_t rows = r == 0 || high_rows == 0 ? low_rows_ : high_rows;
      config.set(2 * r, rows, 4 * columns_of_tile);
      config.set(2 * r + 1, rows, 4 * columns_of_tile);
      config.set(4 + r, rows, block_bytes);
      config.set(6 + r, 16, 4 * columns_of_tile);
    }
    configure_tiles(config);
  }

  /// All rows of the panel by `Tiles` times 16 weight rows.
  template <int RowTiles, int Tiles>
  [[gnu::noinline]] void multiply_columns(std::int64_t column) {
    const std::uint64_t* weights[2][columns_of_tile];
    for (int i = 0; i < Tiles * columns_of_tile; ++i) {
      // Columns beyond the last repeat it: their sums are written, but nobody reads them.
      const std::int64_t n = column + i < b_.columns ? column + i : b_.columns - 1;
      weights[i / columns_of_tile][i % columns_of_tile] = b_.words + n * b_.word_stride;
    }
    for (std::int64_t block = 0; block < blocks_; block += chunk_blocks) {
      const std::int64_t end = block + chunk_blocks < blocks_ ? block + chunk_blocks : blocks_;
      for (int t = 0; t < Tiles; ++t) decode(weights[t], block, end, weight_[t]);
      for (std::int64_t run = 0; run < runs_; ++run) multiply_chunk<RowTiles, Tiles>(column, block, end, run);
    }
  }

  /// Blocks [begin, end) of 16 packed rows as tiles, those of the planes of a block behind each other.
  [[gnu::noinline]] void decode(
      const std::uint64_t* const (&weight)[columns_of_tile], std::int64_t begin, std::int64_t end,
      std::uint8_t* to) const {
    const bool waits = b_.fetch != WordFetch::none;
    for (std::int64_t block = begin; block < end; ++block, to += plane_count * tile_bytes) {
      const std::int64_t word = block * block_words;
      __m512i packed[columns_of_tile];
      if (b_.row_words - word >= block_words) [[likely]] {
#pragma GCC unroll 16
        for (int n = 0; n < columns_of_tile; ++n) packed[n] = Avx512Vnni::load(weight[n] + word);
      } else {  // the planes beyond the last word are zero
#pragma GCC unroll 16
        for (int n = 0; n < columns_of_tile; ++n) {
          packed[n] = Avx512Vnni::load_words(weight[n] + word, b_.row_words - word);
        }
      }
      if (waits) {
#pragma GCC unroll 16
        for (int n = 0; n < columns_of_tile; ++n) __builtin_prefetch(weight[n] + word + prefetch_words, 0, 2);
      }
      Avx512Vnni::transpose(packed);
#pragma GCC unroll 16
      for (int k = 0; k < 16; ++k) {
        for_each_plane<plane_count>([&]<int Plane>() {
          Avx512Vnni::store(to + Plane * tile_bytes + k * 64, Avx512Vnni::plane<Bits, Plane>(packed[k]));
        });
      }
    }
  }

  /// Blocks [begin, end) for one run of rows.
  template <int RowTiles, int Tiles>
  [[gnu::always_inline]] void multiply_chunk(
      std::int64_t column, std::int64_t begin, std::int64_t end, std::int64_t run) {
    // The last run may take some rows of the one before again, so that all have one shape.
    const std::int64_t last = rows_ - rows_of_run_;
    const std::int64_t row = first_row_ + (run * rows_of_run_ < last ? run * rows_of_run_ : last);
    std::int32_t* const open = open_sums_ + run * run_rows * sums_stride;
    if (begin == 0) {
      for_each_sums<RowTiles, Tiles>([]<int Sums>(std::int64_t, std::int64_t)
                                         __attribute__((always_inline)) { zero_tile<Sums>(); });
    } else {
      for_each_sums<RowTiles, Tiles>([=]<int Sums>(std::int64_t m, std::int64_t n) __attribute__((always_inline)) {
        load_tile<Sums>(open + m * sums_stride + n, sums_stride * 4);
      });
    }
    const std::int8_t* low = b_.planes + row * b_.plane_stride + begin * planes_bytes;
    const std::int8_t* high = low + low_rows_ * b_.plane_stride;
    const std::uint8_t* weight = weight_[0];
    for (std::int64_t i = (end - begin) * plane_count; i > 0; --i) {
      load_tile<6>(weight, 64);
      load_tile_once<4>(low, b_.plane_stride);
      multiply_tiles<0, 4, 6, true>();
      if constexpr (Tiles == 2) {
        load_tile<7>(weight + sizeof weight_[0], 64);
        multiply_tiles<1, 4, 7, true>();
      }
      if constexpr (RowTiles == 2) {
        load_tile_once<5>(high, b_.plane_stride);
        multiply_tiles<2, 5, 6, true>();
        if constexpr (Tiles == 2) multiply_tiles<3, 5, 7, true>();
      }
      low += block_bytes;
      high += block_bytes;
      weight += tile_bytes;
    }
    const bool is_last = end == blocks_;
    std::int32_t* const to = is_last ? b_.acc + row * block_columns + column : open;
    const std::int64_t to_stride = is_last ? block_columns : sums_stride;
    for_each_sums<RowTiles, Tiles>([=]<int Sums>(std::int64_t m, std::int64_t n) __attribute__((always_inline)) {
      store_tile<Sums>(to + m * to_stride + n, to_stride * 4);
    });
  }

  /// Calls f with each register of sums, and the row of the run and the column with which it begins.
  template <int RowTiles, int Tiles, class F>
  [[gnu::always_inline]] void for_each_sums(const F& f) const {
    f.template operator()<0>(0, 0);
    if constexpr (Tiles == 2) f.template operator()<1>(0, columns_of_tile);
    if constexpr (RowTiles == 2) f.template operator()<2>(low_rows_, 0);
    if constexpr (RowTiles == 2 && Tiles == 2) f.template operator()<3>(low_rows_, columns_of_tile);
  }

  const IntegerDotBlock& b_;
  std::int64_t blocks_;         // of a packed row, the last one maybe not whole
  std::int64_t first_row_ = 0;  // of the panel
  std::int64_t rows_ = 0;
  std::int64_t runs_ = 0;
  std::int64_t rows_of_run_ = 0;
  std::int64_t low_rows_ = 0;  // in the first register
  alignas(64) std::uint8_t weight_[2][chunk_tiles * tile_bytes];
  alignas(64) std::int32_t open_sums_[panel_rows * sums_stride];  // of columns so far, run by run
};

/// With fewer rows taking the weight apart costs more than tiles save. Codes of 8 bits are not taken apart by vectors.
template <int Bits>
inline constexpr std::int64_t least_tile_rows = Bits == 8 ? 8 : 5;

template <int Bits>
void amx_integer_dot(const IntegerDotBlock& block) {
  if (block.rows < least_tile_rows<Bits> || block.row_words == 0) return integer_dot<Avx512Vnni, Bits>(block);
  AmxIntegerDot<Bits>::run(block);
}

}  // namespace
}  // namespace bittensor
