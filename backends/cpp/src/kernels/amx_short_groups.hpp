#pragma once

/// The micro-kernel of the group-quantized linear with int8 activations on AMX for groups of up to 64 columns, which
/// are one product of 16 rows and 16 weight rows each. Its sums leave their register at once, through memory, and
/// become floats there, in the order of every other instruction set, so that the bits are the same.
///
/// That takes longer than the product. So 16 x 16 results stay in vector registers over a chunk of columns, and with
/// them a run of up to 16 rows meets one weight tile after the other. A chunk of two weight tiles, decoded, stays in
/// the first-level cache while all rows of a panel meet it. The activations of a run come from the second-level cache
/// for the first of these tiles, and from the first-level cache for the second.
///
/// Groups go in pairs. While the tile registers multiply one pair, the sums of the pair before leave their registers,
/// and those of the pair before that become floats.

#include <immintrin.h>

#include <cstdint>

#include "amx_decoding.hpp"
#include "amx_tiles.hpp"
#include "int8_linear.hpp"
#include "linear_tiles.hpp"
#include "planes.hpp"

namespace bittensor {
namespace {

/// `Together`: groups that meet one group of activations, 1 or 2.
template <int Bits, ZeroKind Kind, int Together>
class AmxShortGroups {
 public:
  static void run(const Int8LinearBlock& block) { AmxShortGroups(block).run(); }

 private:
  using Decoding = AmxDecoding<Bits, Kind>;

  static constexpr int panel_rows = 128;
  static constexpr int run_rows = 16;  // at most
  static constexpr int tiles_at_once = 2;
  static constexpr int chunk_bytes = 6144;     // decoded, of one weight tile
  static constexpr int chunk_groups = 12;      // at most: they have 32 columns or more
  static constexpr int prefetch_bytes = 1024;  // ahead, of codes that were not fetched before
  static constexpr int sums_of_group = run_rows * tile_rows;
  static constexpr int factors_of_pair = 2 / Together;  // groups of activations

  /// Groups of two weight tiles, decoded.
  struct Chunk {
    std::int64_t first;  // group
    std::int64_t pairs;  // the last of all may have one group
    bool is_last;
  };

  /// A pair of groups of a weight tile and a run of rows, in the order in which they are met.
  struct Place {
    std::int64_t pair = 0;
    std::int64_t tile = 0;
    std::int64_t run = 0;
  };

  explicit AmxShortGroups(const Int8LinearBlock& block)
      : b_(block),
        decoding_(block),
        group_columns_(decoding_.sizes.group_blocks * Decoding::block_columns),
        step_bytes_(decoding_.sizes.group_blocks * Decoding::planes * 64),
        has_rest_(decoding_.sizes.blocks % (2 * decoding_.sizes.group_blocks) != 0) {}

  void run() {
    for_each_panel(b_.rows, panel_rows, [&](std::int64_t first, std::int64_t count) {
      panel_first_ = first;
      panel_count_ = count;
      runs_ = (panel_count_ + run_rows - 1) / run_rows;
      run_count_ = (panel_count_ + runs_ - 1) / runs_;
      shape_tiles();
      for (tile_ = 0; tile_ < b_.tiles; tile_ += tiles_) {
        tiles_ = b_.tiles - tile_ < tiles_at_once ? b_.tiles - tile_ : tiles_at_once;
        if (run_count_ <= 8) {
          multiply_panel<8>();
        } else if (run_count_ <= 12) {
          multiply_panel<12>();
        } else {
          multiply_panel<16>();
        }
      }
    });
    release_tiles();
  }

  /// Registers 0 to 3 hold sums, 4 and 5 activations, 6 and 7 weights. All runs have one shape: LDTILECFG for each
  /// would cost more than rows that two runs take.
  void shape_tiles() {
    if (run_count_ == shaped_rows_) return;
    shaped_rows_ = run_count_;
    TileConfig config;
    for (int i = 0; i < 4; ++i) config.set(i, run_count_, 64);
    for (int i = 4; i < 6; ++i) config.set(i, run_count_, group_columns_);
    for (int i = 6; i < 8; ++i) config.set(i, step_bytes_ / 64, 64);
    configure_tiles(config);
  }

  /// All columns of the panel's rows, by the weight tiles from `tile_` on. `Rows`: those of a run, rounded up.
  template <int Rows>
  void multiply_panel() {
    const std::int64_t groups = decoding_.sizes.groups;
    const std::int64_t pairs = (groups + 1) / 2;
    const std::int64_t most =
        step_bytes_ * chunk_groups > chunk_bytes ? chunk_bytes / step_bytes_ / 2 : chunk_groups / 2;
    const std::int64_t chunks = (pairs + most - 1) / most;
    for (std::int64_t i = 0; i < chunks; ++i) {
      const std::int64_t begin = pairs * i / chunks;
      const Chunk chunk{2 * begin, pairs * (i + 1) / chunks - begin, i + 1 == chunks};
      for (std::int64_t t = 0; t < tiles_; ++t) decode(chunk, t);
      fetched_tile_ = chunk.is_last ? tile_ + tiles_ : tile_;
      fetched_group_ = chunk.is_last ? 0 : 2 * (begin + chunk.pairs);
      multiply_chunk<Rows>(chunk);
    }
  }

  [[gnu::noinline]] void decode(const Chunk& chunk, std::int64_t t) {
    const TileSizes& sizes = decoding_.sizes;
    const std::uint8_t* codes =
        b_.codes + (tile_ + t) * sizes.code_bytes + chunk.first * sizes.group_blocks * tile_block_bytes;
    std::uint8_t* weight = weight_ + t * chunk_bytes;
    float* parameters = parameters_ + t * chunk_groups * 2 * tile_rows;
    for (std::int64_t i = 0; i < 2 * chunk.pairs; ++i, parameters += 2 * tile_rows) {
      const std::int64_t group = chunk.first + i;
      if (group == sizes.groups) {
        // What meets a group that does not exist is -0, which changes no result when it is added.
        _mm512_store_ps(parameters, _mm512_set1_ps(-0.0F));
        _mm512_store_ps(parameters + tile_rows, _mm512_set1_ps(-0.0F));
        continue;
      }
      decoding_.template decode<prefetch_bytes>(tile_ + t, group, codes, blocks_of(group), weight);
      decoding_.widen_parameters(tile_ + t, group, parameters);
      codes += sizes.group_blocks * tile_block_bytes;
      weight += step_bytes_;
    }
  }

  std::int64_t blocks_of(std::int64_t group) const {
    const std::int64_t left = decoding_.sizes.blocks - group * decoding_.sizes.group_blocks;
    return left < decoding_.sizes.group_blocks ? left : decoding_.sizes.group_blocks;
  }

  /// The first row of a run, in the panel. The last run may take some rows of the one before as well.
  std::int64_t first_row(std::int64_t run) const {
    return run < runs_ - 1 ? run * run_count_ : panel_count_ - run_count_;
  }

  /// All that the loop over pairs reads is in registers: it has no instructions to spare, and memory would be read
  /// again behind each instruction on tiles.
  template <int Rows>
  [[gnu::noinline]] void multiply_chunk(const Chunk& chunk) {
    const std::int64_t x_stride = b_.x_stride;
    const std::int64_t columns = group_columns_;
    const std::int64_t bytes = step_bytes_;
    const std::int64_t pairs = chunk.pairs;
    const std::int64_t total = runs_ * tiles_ * pairs;
    const std::int64_t rest_pair = has_rest_ && chunk.is_last ? pairs - 1 : -1;
    Place ahead;
    const std::int8_t* x = nullptr;
    const std::uint8_t* weight = nullptr;
    Place behind;
    const float* parameters = nullptr;
    std::int64_t factor = 0;
    __m512 y[Rows];
    const auto turn = [&]<int Set>(std::int64_t i) __attribute__((always_inline)) {
      if (i < total) {
        if (ahead.pair == 0) {
          x = b_.x + (panel_first_ + first_row(ahead.run)) * x_stride + chunk.first * columns;
          weight = weight_ + ahead.tile * chunk_bytes;
        }
        if (ahead.pair == rest_pair) [[unlikely]] {
          multiply_rest<2 * Set>(x, weight);
        } else {
          multiply_group<2 * Set, 0>(x, x_stride, weight);
          multiply_group<2 * Set, 1>(x + columns, x_stride, weight + bytes);
        }
        if (ahead.run == 0) fetch_next(ahead);
        x += 2 * columns;
        weight += 2 * bytes;
        if (++ahead.pair == pairs) ahead = next_tile(ahead);
      }
      store_tile<2 - 2 * Set>(sums_[1 - Set], 64);
      store_tile<3 - 2 * Set>(sums_[1 - Set] + sums_of_group, 64);
      if (i < 2) return;
      if (behind.pair == 0) {
        parameters = parameters_ + behind.tile * chunk_groups * 2 * tile_rows;
        factor = 0;
        if (behind.tile == 0) take_factors(chunk, first_row(behind.run));
        read_results<Rows>(chunk, behind, y);
      }
      add_pair<Rows>(sums_[Set], parameters, factor, y);
      parameters += 2 * 2 * tile_rows;
      factor += factors_of_pair * run_rows;
      if (++behind.pair == pairs) {
        write_results<Rows>(chunk, behind, y);
        behind = next_tile(behind);
      }
    };
    for (std::int64_t i = 0; i < total + 2; i += 2) {
      turn.template operator()<0>(i);
      if (i + 1 < total + 2) turn.template operator()<1>(i + 1);
    }
  }

  /// Fetches the codes of the next chunk while the first rows meet this one, for they are decoded in one go.
  [[gnu::always_inline]] void fetch_next(const Place& place) const {
    const std::int64_t tile = fetched_tile_ + place.tile;
    if (tile >= b_.tiles && tile >= b_.tiles_to_come) return;
    const TileSizes& sizes = decoding_.sizes;
    const std::int64_t blocks = 2 * sizes.group_blocks;
    const std::uint8_t* codes = b_.codes + tile * sizes.code_bytes +
                                (fetched_group_ * sizes.group_blocks + place.pair * blocks) * tile_block_bytes;
    for (std::int64_t i = 0; i < blocks; ++i) __builtin_prefetch(codes + i * tile_block_bytes);
  }

  /// The next weight tile or the next run of rows.
  [[gnu::always_inline]] Place next_tile(const Place& place) const {
    return place.tile + 1 < tiles_ ? Place{0, place.tile + 1, place.run} : Place{0, 0, place.run + 1};
  }

  template <int Sums, int Which>
  [[gnu::always_inline]] static void multiply_group(
      const std::int8_t* x, std::int64_t x_stride, const std::uint8_t* weight) {
    zero_tile<Sums + Which>();
    load_tile<6 + Which>(weight, 64);
    load_tile<4 + Which>(x, x_stride);
    multiply_tiles<Sums + Which, 4 + Which, 6 + Which, Decoding::unsigned_weight>();
  }

  /// The last pair, of which one may be shorter than others, and one may be missing.
  template <int Sums>
  [[gnu::noinline]] void multiply_rest(const std::int8_t* x, const std::uint8_t* weight) {
    const std::int64_t group = (decoding_.sizes.groups - 1) / 2 * 2;
    const auto multiply = [&]<int Which>() {
      if (group + Which == decoding_.sizes.groups) {
        zero_tile<Sums + Which>();
        return;
      }
      const std::int64_t columns = blocks_of(group + Which) * Decoding::block_columns;
      const std::int8_t* from = x + Which * group_columns_;
      std::int64_t stride = b_.x_stride;
      if (columns != group_columns_) {
        for (std::int64_t m = 0; m < run_count_; ++m) {
          __builtin_memcpy(rest_ + m * Decoding::step_columns, from + m * stride, static_cast<std::size_t>(columns));
        }
        from = rest_;
        stride = Decoding::step_columns;
      }
      multiply_group<Sums, Which>(from, stride, weight + Which * step_bytes_);
    };
    multiply.template operator()<0>();
    multiply.template operator()<1>();
  }

  /// What each group of activations of a run and a chunk brings: scales, and totals or sums where they are needed.
  [[gnu::noinline]] void take_factors(const Chunk& chunk, std::int64_t row) {
    const auto mask = static_cast<__mmask16>((1U << run_count_) - 1);
    const std::int64_t groups = decoding_.sizes.groups;
    const std::int64_t all = (groups + Together - 1) / Together;
    for (std::int64_t i = 0; i < factors_of_pair * chunk.pairs; ++i) {
      const std::int64_t factor = chunk.first / Together + i;
      const std::int64_t at = factor < all ? factor * b_.x_group_stride + panel_first_ + row : 0;
      const __mmask16 which = factor < all ? mask : __mmask16{0};
      _mm512_store_ps(x_scales_ + i * run_rows, _mm512_maskz_loadu_ps(which, b_.x_scales + at));
      if constexpr (Decoding::has_offset) {
        _mm512_store_ps(x_totals_ + i * run_rows, _mm512_maskz_loadu_ps(which, b_.x_totals + at));
      }
      if constexpr (Decoding::has_zero_term) {
        _mm512_store_si512(x_sums_ + i * run_rows, _mm512_maskz_loadu_epi32(which, b_.x_sums + at));
      }
    }
  }

  /// Adds the terms of a pair of groups.
  template <int Rows>
  [[gnu::always_inline]] void add_pair(
      const std::int32_t* sums, const float* parameters, std::int64_t factor, __m512 (&y)[Rows]) const {
    if constexpr (Together == 2) {
      const __m512 scale[2] = {_mm512_load_ps(parameters), _mm512_load_ps(parameters + 2 * tile_rows)};
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m) {
        const __m512 first = _mm512_cvtepi32_ps(_mm512_load_si512(sums + m * tile_rows));
        const __m512 second = _mm512_cvtepi32_ps(_mm512_load_si512(sums + sums_of_group + m * tile_rows));
        const __m512 term = _mm512_fmadd_ps(second, scale[1], _mm512_mul_ps(first, scale[0]));
        y[m] = _mm512_fmadd_ps(term, _mm512_set1_ps(x_scales_[factor + m]), y[m]);
      }
    } else {
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        const __m512 scale = _mm512_load_ps(parameters + i * 2 * tile_rows);
        const __m512 second = _mm512_load_ps(parameters + (2 * i + 1) * tile_rows);  // zeros or offsets, if any
#pragma GCC unroll 16
        for (int m = 0; m < Rows; ++m) {
          const std::int64_t at = factor + i * run_rows + m;
          const __m512i of_group = _mm512_load_si512(sums + i * sums_of_group + m * tile_rows);
          __m512 term = _mm512_mul_ps(Decoding::to_floats(of_group, second, x_sums_, at), scale);
          if constexpr (Decoding::has_offset) {
            term = _mm512_fmadd_ps(_mm512_set1_ps(x_totals_[at]), second, term);
          }
          y[m] = _mm512_fmadd_ps(term, _mm512_set1_ps(x_scales_[at]), y[m]);
        }
      }
    }
  }

  /// Where results of a run wait for the next chunk. Rows that two runs take are there twice.
  std::int64_t waiting(const Place& place) const {
    return (place.tile * panel_rows + place.run * run_rows) * tile_rows;
  }

  template <int Rows>
  [[gnu::always_inline]] void read_results(const Chunk& chunk, const Place& place, __m512 (&y)[Rows]) const {
    if (chunk.first == 0) {
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m) y[m] = _mm512_setzero_ps();
    } else {
      const float* from = y_ + waiting(place);
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m) y[m] = _mm512_load_ps(from + m * tile_rows);
    }
  }

  template <int Rows>
  [[gnu::always_inline]] void write_results(const Chunk& chunk, const Place& place, __m512 (&y)[Rows]) {
    if (!chunk.is_last) {
      float* to = y_ + waiting(place);
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m) _mm512_store_ps(to + m * tile_rows, y[m]);
      return;
    }
    const std::int64_t column = (tile_ + place.tile) * tile_rows;
    float* to = b_.y + (panel_first_ + first_row(place.run)) * b_.y_stride + column;
    if (b_.bias != nullptr) {
      const __m512 bias = _mm512_loadu_ps(b_.bias + column);
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m) y[m] = _mm512_add_ps(y[m], bias);
    }
    const std::int64_t stride = b_.y_stride;
    const std::int64_t rows = run_count_;
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
      if (m < rows) _mm512_storeu_ps(to + m * stride, y[m]);
    }
  }

  const Int8LinearBlock& b_;
  Decoding decoding_;
  std::int64_t group_columns_;
  std::int64_t step_bytes_;  // of a group of a weight tile, decoded
  bool has_rest_;            // the last pair is not like the others
  std::int64_t shaped_rows_ = 0;
  std::int64_t panel_first_ = 0;
  std::int64_t panel_count_ = 0;
  std::int64_t runs_ = 0;
  std::int64_t run_count_ = 0;  // rows of each run
  std::int64_t tile_ = 0;       // the first of those that are decoded
  std::int64_t tiles_ = 0;
  std::int64_t fetched_tile_ = 0;  // the first of the next chunk
  std::int64_t fetched_group_ = 0;
  alignas(64) std::uint8_t weight_[tiles_at_once * chunk_bytes];
  alignas(64) float parameters_[tiles_at_once * chunk_groups * 2 * tile_rows];
  alignas(64) std::int32_t sums_[2][2 * sums_of_group] = {};  // rows that runs do not have stay zero
  alignas(64) float x_scales_[chunk_groups * run_rows];
  alignas(64) float x_totals_[chunk_groups * run_rows];
  alignas(64) std::int32_t x_sums_[chunk_groups * run_rows];
  alignas(64) std::int8_t rest_[run_rows * Decoding::step_columns] = {};
  alignas(64) float y_[tiles_at_once * panel_rows * tile_rows];
};

}  // namespace
}  // namespace bittensor
