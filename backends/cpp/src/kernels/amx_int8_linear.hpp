#pragma once

/// The micro-kernel of the group-quantized linear with int8 activations on AMX. A block of the prepared layout,
/// decoded, is a row of a tile register: 16 weight rows x 4 columns. 16 such rows, a step of 64 columns, meet 16 rows
/// of activations in one instruction of 16 cycles.
///
/// Decoding costs about as much as one such instruction. So a panel of up to `panel_rows` rows shares what was decoded:
/// a chunk of columns of a few weight tiles, which stays in the first-level cache. It is met by runs of up to 32 rows
/// of equal length.
///
/// Sums leave the registers through memory at the end of each group and become floats there, in the order of every
/// other instruction set, so that the bits are the same. That takes the vector units about as long as the products
/// take, and one core reorders too few instructions to overlap the two by itself. Therefore they are interleaved here:
/// the sums of one run become floats between the products of the run that follows.
///
/// Where code - zero fits a signed byte, which is everywhere but in 8 bits with zeros of their own, it is what is
/// decoded, and no zero term remains.

#include <immintrin.h>

#include <cstdint>

#include "amx_tiles.hpp"
#include "avx512vnni.hpp"
#include "int8_linear.hpp"
#include "linear_tiles.hpp"
#include "planes.hpp"

namespace bittensor {
namespace {

/// The matrix by which GF2P8AFFINEQB moves `bits` bits from bit `shift` of each byte to bit 0. Where `extend` is set,
/// the highest of them fills the bits above.
constexpr std::uint64_t code_matrix(int bits, int shift, bool extend) {
  std::uint64_t matrix = 0;
  for (int to = 0; to < 8; ++to) {
    if (to >= bits && !extend) continue;
    const int from = shift + (to < bits ? to : bits - 1);
    matrix |= std::uint64_t{1} << (8 * (7 - to) + from);
  }
  return matrix;
}

template <int Bits, ZeroKind Kind>
class AmxInt8Linear {
 public:
  static void run(const Int8LinearBlock& block) { AmxInt8Linear(block).run(); }

 private:
  static constexpr int planes = 8 / Bits;
  static constexpr int block_columns = 32 / Bits;
  static constexpr int step_columns = 64;
  static constexpr int step_blocks = step_columns / block_columns;
  static constexpr int step_bytes = 1024;  // decoded, of one weight tile
  static constexpr int chunk_steps = 2;
  static constexpr int panel_rows = 128;
  static constexpr int most_tiles = 4;          // side by side, where one register holds all rows
  static constexpr int sums_of_rows = 4 * 256;  // of a run of rows: four registers
  static constexpr int prefetch_bytes = 2048;   // ahead, of the codes of a tile: two chunks at 4 bits
  static constexpr bool unsigned_weight = Bits == 8 && Kind != ZeroKind::symmetric;
  static constexpr bool has_zero_term = unsigned_weight && Kind == ZeroKind::integer;

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
  };

  /// Sums of groups that wait in memory to become floats: those that ended in a chunk, of up to 32 rows.
  struct Waiting {
    const std::int32_t* sums = nullptr;
    std::int64_t first_group = 0;
    int groups = 0;
    std::int64_t row = 0;
    std::int64_t rows = 0;
    std::int64_t slices = 0;
    std::int64_t slices_done = 0;
  };

  explicit AmxInt8Linear(const Int8LinearBlock& block)
      : b_(block),
        layout_(*block.layout),
        sizes_(layout_),
        step_rows_(sizes_.group_blocks < step_blocks ? sizes_.group_blocks * planes : 16) {}

  void run() {
    const std::int64_t panels = (b_.rows + panel_rows - 1) / panel_rows;
    for (std::int64_t i = 0; i < panels; ++i) {
      panel_first_ = b_.rows * i / panels;
      panel_count_ = b_.rows * (i + 1) / panels - panel_first_;
      if (panel_count_ <= 16) {
        for_each_run<most_tiles>(b_.tiles, [&]<int Tiles>(std::int64_t tile) { multiply_panel<1, Tiles>(tile); });
      } else {
        for_each_run<2>(b_.tiles, [&]<int Tiles>(std::int64_t tile) { multiply_panel<2, Tiles>(tile); });
      }
    }
    release_tiles();
  }

  /// All columns of the panel's rows by `Tiles` weight tiles from `tile` on.
  template <int RowTiles, int Tiles>
  [[gnu::noinline]] void multiply_panel(std::int64_t tile) {
    constexpr std::int64_t most_rows = RowTiles * 16;
    const std::int64_t runs = (panel_count_ + most_rows - 1) / most_rows;
    tile_ = tile;
    waiting_ = {};
    __builtin_memset(y_, 0, static_cast<std::size_t>(panel_count_ * Tiles * tile_rows * 4));
    Step next = first_step();
    while (next.group < sizes_.groups) {
      Chunk chunk;
      for (; chunk.count < chunk_steps && next.group < sizes_.groups; next = step_behind(next)) {
        for (int t = 0; t < Tiles; ++t) decode(next, t, weight_ + (chunk.count * Tiles + t) * step_bytes);
        chunk.steps[chunk.count++] = next;
      }
      for (std::int64_t run = 0; run < runs; ++run) {
        const std::int64_t row = panel_count_ * run / runs;
        const std::int64_t rows = panel_count_ * (run + 1) / runs - row;
        shape_tiles<RowTiles>(rows);
        multiply_chunk<RowTiles, Tiles>(chunk, run, row, rows);
      }
    }
    while (waiting_.slices_done < waiting_.slices) add_slice<Tiles>();
    for (std::int64_t m = 0; m < panel_count_; ++m) {
      float* y = b_.y + (panel_first_ + m) * b_.y_stride + tile * tile_rows;
      for (int t = 0; t < Tiles; ++t) {
        _mm512_storeu_ps(y + t * tile_rows, _mm512_load_ps(y_ + (m * Tiles + t) * tile_rows));
      }
    }
  }

  Step first_step() const { return step_of_group(0, 0, b_.codes + tile_ * sizes_.code_bytes); }

  Step step_of_group(std::int64_t group, std::int64_t column, const std::uint8_t* codes) const {
    const std::int64_t left = sizes_.blocks - group * sizes_.group_blocks;
    const std::int64_t blocks = left < sizes_.group_blocks ? left : sizes_.group_blocks;
    return {group, column, blocks < step_blocks ? blocks : step_blocks, codes, true, blocks <= step_blocks};
  }

  Step step_behind(const Step& step) const {
    const std::int64_t column = step.column + step.blocks * block_columns;
    const std::uint8_t* codes = step.codes + step.blocks * tile_block_bytes;
    if (step.ends) return step_of_group(step.group + 1, column, codes);
    const std::int64_t group_end = (step.group + 1) * sizes_.group_blocks;
    const std::int64_t left = (group_end < sizes_.blocks ? group_end : sizes_.blocks) - column / block_columns;
    return {step.group, column, left < step_blocks ? left : step_blocks, codes, false, left <= step_blocks};
  }

  /// Shapes for `rows` rows of activations. One register holds them, and registers 0 to 3 hold the sums of as many
  /// weight tiles; or two hold a half each, with the sums of the first half in 0 and 1, of the second in 2 and 3.
  template <int RowTiles>
  void shape_tiles(std::int64_t rows) {
    if (rows == shaped_rows_) return;
    shaped_rows_ = rows;
    const std::int64_t half[2] = {low_rows<RowTiles>(rows), RowTiles == 1 ? rows : rows - low_rows<RowTiles>(rows)};
    TileConfig config;
    for (int i = 0; i < 2; ++i) {
      config.set(2 * i, half[i], 64);
      config.set(2 * i + 1, half[i], 64);
      config.set(4 + i, half[i], 4 * step_rows_);
      config.set(6 + i, step_rows_, 64);
    }
    configure_tiles(config);
  }

  template <int RowTiles>
  static constexpr std::int64_t low_rows(std::int64_t rows) {
    return (rows + RowTiles - 1) / RowTiles;
  }

  /// A step of weight tile t as rows of a tile register; rows behind the last keep what they have, which meets
  /// activations of zero.
  [[gnu::always_inline]] void decode(const Step& step, int t, std::uint8_t* to) const {
    // NOLINTNEXTLINE(misc-const-correctness): constant for some kinds of zero only
    __m512i zero = _mm512_setzero_si512();
    if constexpr (Kind == ZeroKind::integer && !unsigned_weight) {
      // The zero of each of the 16 rows, four times.
      const __m128i zeros = _mm_loadu_si128(
          reinterpret_cast<const __m128i*>(b_.zeros + (tile_ + t) * sizes_.zero_bytes + step.group * tile_rows));
      zero = _mm512_mullo_epi32(_mm512_cvtepu8_epi32(zeros), _mm512_set1_epi32(0x01010101));
    }
    const std::uint8_t* codes = step.codes + t * sizes_.code_bytes;
    if (step.blocks == step_blocks) [[likely]] {
#pragma GCC unroll 16
      for (int i = 0; i < step_blocks; ++i) decode_block(codes + i * tile_block_bytes, zero, to + i * planes * 64);
    } else {
      for (std::int64_t i = 0; i < step.blocks; ++i) {
        decode_block(codes + i * tile_block_bytes, zero, to + i * planes * 64);
      }
    }
  }

  [[gnu::always_inline]] static void decode_block(
      const std::uint8_t* codes, [[maybe_unused]] __m512i zero, std::uint8_t* to) {
    const __m512i packed = _mm512_loadu_si512(codes);
    __builtin_prefetch(codes + prefetch_bytes);
    for_each_plane<planes>([&]<int Plane>() {
      // code - 2^(Bits - 1) is the code with its highest bit turned over, as a signed number of so many bits.
      constexpr bool is_signed = Kind == ZeroKind::symmetric;
      constexpr int flip = is_signed ? 0xFF << (Bits - 1) & 0xFF : 0;
      const __m512i matrix = _mm512_set1_epi64(static_cast<std::int64_t>(code_matrix(Bits, Bits * Plane, is_signed)));
      // NOLINTNEXTLINE(misc-const-correctness): constant for some kinds of zero only
      __m512i weight = _mm512_gf2p8affine_epi64_epi8(packed, matrix, flip);
      if constexpr (Kind == ZeroKind::integer && !unsigned_weight) weight = _mm512_sub_epi8(weight, zero);
      _mm512_store_si512(to + Plane * 64, weight);
    });
  }

  /// A chunk for one run of rows, and between its products the sums that wait.
  template <int RowTiles, int Tiles>
  [[gnu::noinline]] void multiply_chunk(const Chunk& chunk, std::int64_t run, std::int64_t row, std::int64_t rows) {
    constexpr int registers = RowTiles * Tiles;
    const std::int64_t low = low_rows<RowTiles>(rows);
    // In memory the sums of a weight tile follow each other row by row.
    const auto place = [low](int number) {
      return number % Tiles * tile_sums<Tiles> + number / Tiles * low * tile_rows;
    };
    std::int32_t* const open = open_sums_ + run * sums_of_rows;
    std::int32_t* const closed =
        waiting_.sums == closed_sums_ ? closed_sums_ + chunk_steps * sums_of_rows : closed_sums_;
    Waiting ended{closed, 0, 0, row, rows, 0, 0};
    const std::int64_t products = chunk.count * registers;
    std::int64_t product = 0;
    const auto work_beside = [&] {
      ++product;
      while (waiting_.slices_done * products < product * waiting_.slices) add_slice<Tiles>();
    };
    for (int i = 0; i < chunk.count; ++i) {
      const Step& step = chunk.steps[i];
      for_each_plane<registers>([&]<int Number>() {
        if (step.starts) {
          zero_tile<sums_register<Tiles>(Number)>();
        } else if (i == 0) {
          load_tile<sums_register<Tiles>(Number)>(open + place(Number), 64);
        }
      });
      const std::int8_t* x = b_.x + (panel_first_ + row) * b_.x_stride + step.column;
      std::int64_t stride = b_.x_stride;
      if (step.blocks * planes < step_rows_) [[unlikely]] {
        take_rest(x, rows, step.blocks * block_columns);
        x = rest_;
        stride = step_columns;
      }
      const std::uint8_t* weight = weight_ + i * Tiles * step_bytes;
      load_tile<4>(x, stride);
      if constexpr (RowTiles == 2) load_tile<5>(x + low * stride, stride);
      for_each_plane<Tiles>([&]<int T>() {
        load_tile<6 + T % 2>(weight + T * step_bytes, 64);
        multiply_tiles<sums_register<Tiles>(T), 4, 6 + T % 2, unsigned_weight>();
        work_beside();
        if constexpr (RowTiles == 2) {
          multiply_tiles<sums_register<Tiles>(Tiles + T), 5, 6 + T % 2, unsigned_weight>();
          work_beside();
        }
      });
      if (!step.ends && i + 1 < chunk.count) continue;
      std::int32_t* to = open;
      if (step.ends) {
        if (ended.groups == 0) ended.first_group = step.group;
        to = closed + ended.groups++ * sums_of_rows;
      }
      for_each_plane<registers>(
          [&]<int Number>() { store_tile<sums_register<Tiles>(Number)>(to + place(Number), 64); });
    }
    if (ended.groups > 0) ended.slices = (rows + slice_rows<Tiles> - 1) / slice_rows<Tiles>;
    waiting_ = ended;
  }

  /// The sums of row tile r and weight tile t have number r * Tiles + t and are in register 2 * r + t.
  template <int Tiles>
  static constexpr int sums_register(int number) {
    return Tiles == 1 ? 2 * number : number;
  }

  template <int Tiles>
  static constexpr std::int64_t tile_sums = sums_of_rows / (Tiles > 2 ? 4 : 2);

  /// The last columns of a group that is no whole number of steps, followed by zeros.
  [[gnu::noinline]] void take_rest(const std::int8_t* x, std::int64_t rows, std::int64_t columns) {
    __builtin_memset(rest_, 0, sizeof rest_);
    for (std::int64_t m = 0; m < rows; ++m) {
      __builtin_memcpy(rest_ + m * step_columns, x + m * b_.x_stride, static_cast<std::size_t>(columns));
    }
  }

  /// Rows whose sums become floats at a time: 16 results in registers.
  template <int Tiles>
  static constexpr int slice_rows = Tiles == 1 ? 16 : (Tiles == 2 ? 8 : 4);

  /// y of the next few rows that wait += the terms of their groups.
  template <int Tiles>
  [[gnu::noinline]] void add_slice() {
    const std::int64_t row = waiting_.slices_done++ * slice_rows<Tiles>;
    if (waiting_.rows - row >= slice_rows<Tiles>) {
      add_rows<Tiles, slice_rows<Tiles>>(row);
    } else {
      for (std::int64_t m = row; m < waiting_.rows; ++m) add_rows<Tiles, 1>(m);
    }
  }

  template <int Tiles, int Rows>
  [[gnu::always_inline]] void add_rows(std::int64_t row) {
    const FloatType type = layout_.scale_type;
    float* y = y_ + (waiting_.row + row) * Tiles * tile_rows;
    __m512 value[Rows][Tiles];
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 4
      for (int t = 0; t < Tiles; ++t) value[m][t] = _mm512_load_ps(y + (m * Tiles + t) * tile_rows);
    }
    const std::int64_t factor = (panel_first_ + waiting_.row + row) * sizes_.groups + waiting_.first_group;
    const std::int32_t* sums = waiting_.sums + row * tile_rows;
    for (int i = 0; i < waiting_.groups; ++i) {
      const std::int64_t group = waiting_.first_group + i;
      const float* x_scale = b_.x_scales + factor + i;
      const std::int32_t* x_sum = b_.x_sums + factor + i;
#pragma GCC unroll 4
      for (int t = 0; t < Tiles; ++t) {
        const std::int64_t scale_at = group * tile_rows * bytes_of(type);
        const std::uint8_t* zeros = b_.zeros + (tile_ + t) * sizes_.zero_bytes;
        const __m512 scale = Avx512Vnni::load_float(b_.scales + (tile_ + t) * sizes_.scale_bytes + scale_at, type);
        [[maybe_unused]] __m512 offset;
        [[maybe_unused]] __m512i zero;
        if constexpr (Kind == ZeroKind::offset) offset = Avx512Vnni::load_float(zeros + scale_at, type);
        if constexpr (has_zero_term) zero = Avx512Vnni::load_u8_as_i32(zeros + group * tile_rows);
#pragma GCC unroll 16
        for (int m = 0; m < Rows; ++m) {
          // NOLINTNEXTLINE(misc-const-correctness): constant for some kinds of zero only
          __m512i sum = _mm512_load_si512(sums + t * tile_sums<Tiles> + m * tile_rows);
          const __m512 x_factor = _mm512_set1_ps(x_scale[m * sizes_.groups]);
          if constexpr (has_zero_term) {
            sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(_mm512_set1_epi32(x_sum[m * sizes_.groups]), zero));
          }
          value[m][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(x_factor, scale), value[m][t]);
          if constexpr (Kind == ZeroKind::offset) {
            const __m512 total = _mm512_cvtepi32_ps(_mm512_set1_epi32(x_sum[m * sizes_.groups]));
            value[m][t] = _mm512_fmadd_ps(total, _mm512_mul_ps(x_factor, offset), value[m][t]);
          }
        }
      }
      sums += sums_of_rows;
    }
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 4
      for (int t = 0; t < Tiles; ++t) _mm512_store_ps(y + (m * Tiles + t) * tile_rows, value[m][t]);
    }
  }

  const Int8LinearBlock& b_;
  const PreparedLayout& layout_;
  TileSizes sizes_;
  std::int64_t step_rows_;  // of a weight in its register: fewer than 16 where groups are shorter than a step
  std::int64_t shaped_rows_ = 0;
  std::int64_t panel_first_ = 0;
  std::int64_t panel_count_ = 0;
  std::int64_t tile_ = 0;  // the first of those that are side by side
  Waiting waiting_;
  alignas(64) std::uint8_t weight_[chunk_steps * most_tiles * step_bytes];
  alignas(64) std::int32_t open_sums_[(panel_rows / 32) * sums_of_rows];  // of a group that reaches past the chunk
  alignas(64) std::int32_t closed_sums_[2 * chunk_steps * sums_of_rows];
  alignas(64) std::int8_t rest_[32 * step_columns];
  alignas(64) float y_[panel_rows * 2 * tile_rows];
};

/// Whether tiles are faster than vectors. With few rows they would be mostly empty, and decoding costs more than it
/// saves; with short groups the sums leave them too often.
inline bool tiles_pay(const PreparedLayout& layout, std::int64_t rows) {
  const std::int64_t columns = layout.group_blocks() * layout.block_columns();
  return columns >= 64 ? rows >= 5 : columns >= 32 && rows >= 12;
}

template <int Bits>
void amx_int8_linear(const Int8LinearBlock& block) {
  if (!tiles_pay(*block.layout, block.rows)) return int8_linear<Avx512Vnni, Bits>(block);
  switch (block.layout->zero_kind) {
    case ZeroKind::symmetric: return AmxInt8Linear<Bits, ZeroKind::symmetric>::run(block);
    case ZeroKind::integer: return AmxInt8Linear<Bits, ZeroKind::integer>::run(block);
    case ZeroKind::offset: return AmxInt8Linear<Bits, ZeroKind::offset>::run(block);
  }
}

}  // namespace
}  // namespace bittensor
