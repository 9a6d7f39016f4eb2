#pragma once

/// The micro-kernel of the group-quantized linear with int8 activations on AMX for groups of 64 columns and more, which
/// are one or several steps of 64.
///
/// Decoding costs more than the product of a step. So a panel of up to `panel_rows` rows shares what was decoded: a
/// chunk of columns of a few weight tiles, which stays in the first-level cache. It is met by runs of up to 32 rows,
/// all of one shape.
///
/// Sums leave the registers through memory at the end of each group and become floats there, in the order of every
/// other instruction set, so that the bits are the same. One core reorders too few instructions to overlap this with
/// the products, or to hide how long a product and a store of its sums take, by itself. Therefore sums stay in their
/// registers until the next products need these, and what a run of rows left in memory becomes floats behind the
/// products of later steps, half a run at a time: among tile instructions, conversions would take twice as long.

#include <immintrin.h>

#include <cstdint>

#include "amx_decoding.hpp"
#include "amx_tiles.hpp"
#include "int8_linear.hpp"
#include "linear_tiles.hpp"
#include "planes.hpp"

namespace bittensor {
namespace {

template <int Bits, ZeroKind Kind>
class AmxLongGroups {
 public:
  static void run(const Int8LinearBlock& block) { AmxLongGroups(block).run(); }

 private:
  using Decoding = AmxDecoding<Bits, Kind>;

  static constexpr int step_columns = Decoding::step_columns;
  static constexpr int step_blocks = Decoding::step_blocks;
  static constexpr int step_bytes = 1024;  // decoded, of one weight tile
  static constexpr int chunk_steps = 2;
  static constexpr int panel_rows = 128;
  static constexpr int most_tiles = 4;          // side by side, where one register holds all rows
  static constexpr int sums_of_rows = 4 * 256;  // of a run of rows: four registers
  static constexpr int prefetch_bytes = 2048;   // ahead, of the codes of a tile: two chunks at 4 bits

  /// Up to 64 columns of one group.
  struct Step {
    std::int64_t group;
    std::int64_t column;  // of the activations
    std::int64_t blocks;
    const std::uint8_t* codes;  // of the first weight tile
    bool starts;                // the group
    bool ends;
  };

  struct Chunk {
    Step steps[chunk_steps];
    int count = 0;
    const float* parameters = nullptr;  // of the groups that end in it
  };

  /// Sums of a run of rows, of the groups that ended in a chunk, on their way to floats.
  struct EndedSums {
    std::int64_t groups = 0;
    const std::int32_t* sums = nullptr;
    const float* parameters = nullptr;  // of the first group
    std::int64_t factor = 0;            // of the first row and group, in x_scales, x_sums and x_totals
    std::int64_t row = 0;               // the first, of the panel
    std::int64_t begin = 0;             // rows of the run that the one before did not have
    std::int64_t end = 0;
    bool has_y = false;           // there are groups before, in y_
    float* to = nullptr;          // y_ again, or with the last group the results
    const float* bias = nullptr;  // with the last group, if there is one
    std::int64_t to_stride = 0;
  };

  /// What registers of sums hold before the products of a step: zeros, what the chunk before left in memory, or what
  /// they held.
  enum class Begin : std::uint8_t { zeros, left, held };

  explicit AmxLongGroups(const Int8LinearBlock& block) : b_(block), decoding_(block) {}

  const TileSizes& sizes() const { return decoding_.sizes; }

  void run() {
    for_each_panel(b_.rows, panel_rows, [&](std::int64_t first, std::int64_t count) {
      panel_first_ = first;
      panel_count_ = count;
      if (panel_count_ <= 16) {
        for_each_run<most_tiles>(b_.tiles, [&]<int Tiles>(std::int64_t tile) { multiply_panel<1, Tiles>(tile); });
      } else {
        for_each_run<2>(b_.tiles, [&]<int Tiles>(std::int64_t tile) { multiply_panel<2, Tiles>(tile); });
      }
    });
    release_tiles();
  }

  /// All columns of the panel's rows by `Tiles` weight tiles from `tile` on.
  template <int RowTiles, int Tiles>
  [[gnu::noinline]] void multiply_panel(std::int64_t tile) {
    constexpr std::int64_t most_rows = RowTiles * 16;
    runs_ = (panel_count_ + most_rows - 1) / most_rows;
    run_rows_ = (panel_count_ + runs_ - 1) / runs_;
    shape_tiles<RowTiles>();
    tile_ = tile;
    unstored_ = nowhere_;
    last_ = before_last_ = {};
    Step next = first_step();
    for (int turn = 0; next.group < sizes().groups; turn = (turn + 1) % 3) {
      Chunk chunk;
      float* parameters = parameters_[turn];
      chunk.parameters = parameters;
      for (; chunk.count < chunk_steps && next.group < sizes().groups; next = step_behind(next)) {
        for (int t = 0; t < Tiles; ++t) {
          decoding_.template decode<prefetch_bytes>(
              tile_ + t, next.group, next.codes + t * sizes().code_bytes, next.blocks,
              weight_ + (chunk.count * Tiles + t) * step_bytes);
          if (next.ends) decoding_.widen_parameters(tile_ + t, next.group, parameters + 2 * t * tile_rows);
        }
        if (next.ends) parameters += 2 * Tiles * tile_rows;
        chunk.steps[chunk.count++] = next;
      }
      for (std::int64_t run = 0; run < runs_; ++run) multiply_chunk<RowTiles, Tiles>(chunk, run);
    }
    const std::int64_t low = low_rows<RowTiles>();
    for_each_plane<RowTiles * Tiles>(
        [&]<int Number>() { store_tile<sums_register<Tiles>(Number)>(unstored_ + place<Tiles>(Number, low), 64); });
    add_second_half<Tiles>(before_last_);
    add_first_half<Tiles>(last_);
    add_second_half<Tiles>(last_);
  }

  Step first_step() const { return step_of_group(0, 0, b_.codes + tile_ * sizes().code_bytes); }

  Step step_of_group(std::int64_t group, std::int64_t column, const std::uint8_t* codes) const {
    const std::int64_t left = sizes().blocks - group * sizes().group_blocks;
    const std::int64_t blocks = left < sizes().group_blocks ? left : sizes().group_blocks;
    return {group, column, blocks < step_blocks ? blocks : step_blocks, codes, true, blocks <= step_blocks};
  }

  Step step_behind(const Step& step) const {
    const std::int64_t column = step.column + step.blocks * Decoding::block_columns;
    const std::uint8_t* codes = step.codes + step.blocks * tile_block_bytes;
    if (step.ends) return step_of_group(step.group + 1, column, codes);
    const std::int64_t group_end = (step.group + 1) * sizes().group_blocks;
    const std::int64_t left =
        (group_end < sizes().blocks ? group_end : sizes().blocks) - column / Decoding::block_columns;
    return {step.group, column, left < step_blocks ? left : step_blocks, codes, false, left <= step_blocks};
  }

  /// Shapes for the rows of a run. One register holds them, and registers 0 to 3 hold the sums of as many
  /// weight tiles; or two hold a half each, with the sums of the first half in 0 and 1, of the second in 2 and 3.
  template <int RowTiles>
  void shape_tiles() {
    if (run_rows_ == shaped_rows_) return;
    shaped_rows_ = run_rows_;
    const std::int64_t low = low_rows<RowTiles>();
    const std::int64_t half[2] = {low, RowTiles == 1 ? low : run_rows_ - low};
    TileConfig config;
    for (int i = 0; i < 2; ++i) {
      config.set(2 * i, half[i], 64);
      config.set(2 * i + 1, half[i], 64);
      config.set(4 + i, half[i], 64);
      config.set(6 + i, 16, 64);
    }
    configure_tiles(config);
  }

  template <int RowTiles>
  std::int64_t low_rows() const {
    return (run_rows_ + RowTiles - 1) / RowTiles;
  }

  /// A chunk for one run of rows. Behind the products of the first step comes the second half of the run before last,
  /// behind those of the last step the first half of the last run: all these sums have left the registers by then.
  template <int RowTiles, int Tiles>
  [[gnu::noinline]] void multiply_chunk(const Chunk& chunk, std::int64_t run) {
    // The last run may take some rows of the one before again, so that all have one shape; their sums are not used.
    const std::int64_t first_new = run * run_rows_;
    const std::int64_t row = first_new < panel_count_ - run_rows_ ? first_new : panel_count_ - run_rows_;
    std::int32_t* const open = open_sums_ + run * sums_of_rows;
    std::int32_t* const closed = closed_sums_[closed_turn_ ^= 1];
    const std::int8_t* x = b_.x + (panel_first_ + row) * b_.x_stride;
    const Step& first = chunk.steps[0];
    if (first.starts) {
      multiply_step<RowTiles, Tiles, Begin::zeros>(first, x, weight_, unstored_, nullptr);
    } else if (runs_ == 1) {
      multiply_step<RowTiles, Tiles, Begin::held>(first, x, weight_, nullptr, nullptr);
    } else {
      multiply_step<RowTiles, Tiles, Begin::left>(first, x, weight_, unstored_, open);
    }
    add_second_half<Tiles>(before_last_);
    std::int64_t groups = first.ends ? 1 : 0;
    bool ends = first.ends;
    if (chunk.count == 2) {
      const Step& second = chunk.steps[1];
      const std::uint8_t* weight = weight_ + Tiles * step_bytes;
      if (second.starts) {
        multiply_step<RowTiles, Tiles, Begin::zeros>(second, x, weight, closed, nullptr);
      } else {
        multiply_step<RowTiles, Tiles, Begin::held>(second, x, weight, nullptr, nullptr);
      }
      groups += second.ends ? 1 : 0;
      ends = second.ends;
    }
    add_first_half<Tiles>(last_);
    unstored_ = ends ? closed + (groups - 1) * sums_of_rows : open;
    before_last_ = last_;
    const bool is_last = first.group + groups == sizes().groups;
    last_.groups = groups;
    last_.sums = closed;
    last_.parameters = chunk.parameters;
    last_.factor = first.group * b_.x_group_stride + panel_first_ + row;
    last_.row = row;
    last_.begin = first_new - row;
    last_.end = run_rows_;
    last_.has_y = first.group != 0;
    last_.to = is_last ? b_.y + (panel_first_ + row) * b_.y_stride + tile_ * tile_rows : y_ + row * Tiles * tile_rows;
    last_.to_stride = is_last ? b_.y_stride : Tiles * tile_rows;
    last_.bias = is_last && b_.bias != nullptr ? b_.bias + tile_ * tile_rows : nullptr;
  }

  /// The products of a step. Sums that are still in the registers go to `unstored`, unless these are what it begins
  /// with; what a chunk left is in `open`.
  template <int RowTiles, int Tiles, Begin What>
  [[gnu::always_inline]] void multiply_step(
      const Step& step, const std::int8_t* x, const std::uint8_t* weight, std::int32_t* unstored,
      const std::int32_t* open) {
    const std::int64_t low = low_rows<RowTiles>();
    x += step.column;
    std::int64_t stride = b_.x_stride;
    if (step.blocks < step_blocks) [[unlikely]] {
      take_rest(x, step.blocks * Decoding::block_columns);
      x = rest_;
      stride = step_columns;
    }
    load_tile_once<4>(x, stride);
    for_each_plane<RowTiles * Tiles>([=]<int I>() __attribute__((always_inline)) {
      constexpr int r = I % RowTiles;
      constexpr int t = I / RowTiles;
      constexpr int number = r * Tiles + t;
      constexpr int sums = sums_register<Tiles>(number);
      if constexpr (r == 0) load_tile<6 + t % 2>(weight + t * step_bytes, 64);
      if constexpr (I == 1 && r == 1) load_tile_once<5>(x + low * stride, stride);
      if constexpr (What != Begin::held) store_tile<sums>(unstored + place<Tiles>(number, low), 64);
      if constexpr (What == Begin::zeros) zero_tile<sums>();
      if constexpr (What == Begin::left) load_tile<sums>(open + place<Tiles>(number, low), 64);
      multiply_tiles<sums, 4 + r, 6 + t % 2, Decoding::unsigned_weight>();
    });
  }

  /// Where sums are in memory: those of a weight tile follow each other row by row.
  template <int Tiles>
  static constexpr std::int64_t place(int number, std::int64_t low) {
    return number % Tiles * tile_sums<Tiles> + number / Tiles * low * tile_rows;
  }

  /// The sums of row tile r and weight tile t have number r * Tiles + t and are in register 2 * r + t.
  template <int Tiles>
  static constexpr int sums_register(int number) {
    return Tiles == 1 ? 2 * number : number;
  }

  template <int Tiles>
  static constexpr std::int64_t tile_sums = sums_of_rows / (Tiles > 2 ? 4 : 2);

  /// The last columns of a group that is no whole number of steps, followed by zeros.
  [[gnu::noinline]] void take_rest(const std::int8_t* x, std::int64_t columns) {
    __builtin_memset(rest_, 0, sizeof rest_);
    for (std::int64_t m = 0; m < run_rows_; ++m) {
      __builtin_memcpy(rest_ + m * step_columns, x + m * b_.x_stride, static_cast<std::size_t>(columns));
    }
  }

  /// Rows whose sums become floats at a time: 16 results in registers.
  template <int Tiles>
  static constexpr int slice_rows = Tiles == 1 ? 16 : (Tiles == 2 ? 8 : 4);

  /// The row behind the first half: whole slices.
  template <int Tiles>
  static std::int64_t half(const EndedSums& ended) {
    const std::int64_t slices = (ended.end - ended.begin + slice_rows<Tiles> - 1) / slice_rows<Tiles>;
    return ended.begin + slices / 2 * slice_rows<Tiles>;
  }

  template <int Tiles>
  [[gnu::always_inline]] void add_first_half(const EndedSums& ended) const {
    if (ended.groups != 0) add_ended<Tiles>(ended, ended.begin, half<Tiles>(ended));
  }

  template <int Tiles>
  [[gnu::always_inline]] void add_second_half(const EndedSums& ended) const {
    if (ended.groups != 0) add_ended<Tiles>(ended, half<Tiles>(ended), ended.end);
  }

  /// Adds the terms of the groups to y, for some rows of the run.
  template <int Tiles>
  [[gnu::noinline]] void add_ended(const EndedSums& ended, std::int64_t begin, std::int64_t end) const {
    constexpr int rows = slice_rows<Tiles>;
    std::int64_t m = begin;
    if (ended.to_stride == Tiles * tile_rows) {
      for (; m + rows <= end; m += rows) add_rows<Tiles, rows, Tiles * tile_rows>(ended, m);
    } else {
      for (; m + rows <= end; m += rows) add_rows<Tiles, rows>(ended, m);
    }
    for (; m < end; ++m) add_rows<Tiles, 1>(ended, m);
  }

  /// Adds the terms of a group. `factor`: of the first row, in x_scales, x_sums and x_totals.
  template <int Tiles, int Rows>
  [[gnu::always_inline]] void add_terms(
      const std::int32_t* sums, const float* parameters, std::int64_t factor, __m512 (&value)[Rows][Tiles]) const {
#pragma GCC unroll 4
    for (int t = 0; t < Tiles; ++t) {
      const __m512 scale = _mm512_load_ps(parameters + 2 * t * tile_rows);
      const __m512 second = _mm512_load_ps(parameters + (2 * t + 1) * tile_rows);  // zeros or offsets, if any
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m) {
        const __m512i of_group = _mm512_load_si512(sums + t * tile_sums<Tiles> + m * tile_rows);
        __m512 term = _mm512_mul_ps(Decoding::to_floats(of_group, second, b_.x_sums, factor + m), scale);
        if constexpr (Decoding::has_offset) {
          term = _mm512_fmadd_ps(_mm512_set1_ps(b_.x_totals[factor + m]), second, term);
        }
        value[m][t] = _mm512_fmadd_ps(term, _mm512_set1_ps(b_.x_scales[factor + m]), value[m][t]);
      }
    }
  }

  template <int Tiles, int Rows, std::int64_t ToStride = 0>
  [[gnu::always_inline]] void add_rows(const EndedSums& ended, std::int64_t row) const {
    const std::int32_t* sums = ended.sums + row * tile_rows;
    const float* parameters = ended.parameters;
    std::int64_t factor = ended.factor + row;
    const float* y = y_ + (ended.row + row) * Tiles * tile_rows;
    float* to = ended.to + row * ended.to_stride;
    const std::int64_t to_stride = ToStride != 0 ? ToStride : ended.to_stride;
    __m512 value[Rows][Tiles];
    if (ended.has_y) {
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 4
        for (int t = 0; t < Tiles; ++t) value[m][t] = _mm512_load_ps(y + (m * Tiles + t) * tile_rows);
      }
    } else {
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 4
        for (int t = 0; t < Tiles; ++t) value[m][t] = _mm512_setzero_ps();
      }
    }
    for (std::int64_t i = 0; i < ended.groups; ++i) {
      add_terms<Tiles, Rows>(sums, parameters, factor, value);
      sums += sums_of_rows;
      parameters += 2 * Tiles * tile_rows;
      factor += b_.x_group_stride;
    }
    if (ended.bias != nullptr) {
#pragma GCC unroll 4
      for (int t = 0; t < Tiles; ++t) {
        const __m512 bias = _mm512_loadu_ps(ended.bias + t * tile_rows);
#pragma GCC unroll 16
        for (int m = 0; m < Rows; ++m) value[m][t] = _mm512_add_ps(value[m][t], bias);
      }
    }
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 4
      for (int t = 0; t < Tiles; ++t) _mm512_storeu_ps(to + m * to_stride + t * tile_rows, value[m][t]);
    }
  }

  const Int8LinearBlock& b_;
  Decoding decoding_;
  std::int64_t run_rows_ = 0;
  std::int64_t shaped_rows_ = 0;
  std::int64_t panel_first_ = 0;
  std::int64_t panel_count_ = 0;
  std::int64_t tile_ = 0;  // the first of those that are side by side
  std::int64_t runs_ = 0;
  std::int32_t* unstored_ = nullptr;  // where the sums in the registers belong
  int closed_turn_ = 0;
  EndedSums last_;
  EndedSums before_last_;  // the first half is done
  alignas(64) std::uint8_t weight_[chunk_steps * most_tiles * step_bytes];
  alignas(64) std::int32_t open_sums_[(panel_rows / 32) * sums_of_rows];  // of a group that reaches past the chunk
  alignas(64) std::int32_t closed_sums_[2][chunk_steps * sums_of_rows];
  alignas(64) float parameters_[3][chunk_steps * 2 * most_tiles * tile_rows];  // slices may wait for two chunks
  alignas(64) std::int8_t rest_[32 * step_columns];
  alignas(64) std::int32_t nowhere_[sums_of_rows];  // before the first sums
  alignas(64) float y_[panel_rows * 2 * tile_rows];
};

}  // namespace
}  // namespace bittensor
