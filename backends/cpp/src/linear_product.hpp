#pragma once

/// The loop nest of the group-quantized linear: activations to int8 codes or to digits, blocks of results, epilogue.

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "bittensor/isa.hpp"
#include "bittensor/linear.hpp"
#include "rounding.hpp"
#include "scratch.hpp"
#include "shares.hpp"
#include "write_patch.hpp"

namespace bittensor {

/// Rows are quantized and multiplied in panels of equal height. Their codes stay in the second-level cache, and with
/// them the results that wait there for the epilogue.
inline constexpr std::int64_t panel_bytes = std::int64_t{640} << 10;
inline constexpr std::int64_t panel_and_results_bytes = std::int64_t{768} << 10;

/// Tall panels have a multiple of the rows for which the AMX kernel decodes the weight once.
inline constexpr std::int64_t decoded_rows = 128;

/// Tiles whose results are gathered before the epilogue: a multiple of the tiles that any kernel takes at a time.
inline constexpr std::int64_t task_tiles = 24;

/// Tiles that a thread should have at least, so that sharing them out leaves no thread idle for long.
inline constexpr std::int64_t thread_tiles = 6;

/// Rows of a range at least, where rows are shared out beside tiles.
inline constexpr std::int64_t least_range_rows = 16;

/// Tiles that are taken at a time where threads take over tiles of others: a multiple of those that any kernel takes.
inline constexpr std::int64_t helped_tiles = 6;

/// The rows that a thread needs to have rows of its own where a weight is decoded once for all of them. With few
/// outputs every thread decodes them sooner than activations travel between caches, unless a second linear follows.
inline constexpr std::int64_t outputs_of_decoded_row = 32;
inline constexpr std::int64_t least_decoded_rows = 16;
inline constexpr std::int64_t few_outputs = 512;

/// Kernels write results where they belong, if nothing but a bias is still to come and each thread has at most so many:
/// what the second-level cache does not hold is better written row by row than a few tiles at a time.
inline constexpr std::int64_t direct_result_bytes = std::int64_t{448} << 10;

/// Columns of a group from which scales are so few that codes are nearly all that is read. With codes of less than 4
/// bits the multipliers are waited for, not the memory.
inline constexpr std::int64_t few_scales_group = 128;

class Product {
 public:
  /// `digits`: 1 for the mode "int8", `activation_digits` for "float". Each is a row for the kernels.
  Product(const Linear& linear, const KernelSet& kernels, int digits)
      : l_(linear),
        layout_(linear.layout),
        kernels_(kernels.linear),
        transformer_(kernels.transformer),
        multiply_(kernels.linear.int8_linear_for(linear.layout.bits)),
        digits_(digits),
        groups_(linear.layout.groups()),
        activation_groups_(linear.layout.activation_groups()),
        outputs_(linear.outputs != 0 ? linear.outputs : linear.layout.out_features - linear.first_output),
        first_tile_(linear.first_output / tile_rows),
        tiles_(ceil_divide(linear.first_output + outputs_, tile_rows) - first_tile_),
        // 64 bytes more than needed keep rows from meeting in the same sets of the cache.
        x_stride_(round_up(linear.layout.padded_columns(), 64) + 64) {
    const std::int64_t row_bytes = digits_ * x_stride_;
    const std::int64_t result_bytes = digits_ * std::min(task_tiles, tiles_) * tile_rows * std::int64_t{sizeof(float)};
    most_rows_ = std::min(panel_bytes / row_bytes, panel_and_results_bytes / (row_bytes + result_bytes));
    most_rows_ = std::max<std::int64_t>(most_rows_, 8);
    const bool is_one_stream = layout_.group_size >= few_scales_group && layout_.bits >= 4;
    if (tuning_.row_in_order && is_one_stream && layout_.bytes() >= memory_weight_bytes) fetch_.row_tiles = 1;
  }

  void run(const ParallelFor& parallel) {
    const ParallelFor& loop = parallel.pays(products(), tuning_.serial_products) ? parallel : ParallelFor();
    write_directly(loop);
    const std::int64_t decoded = outputs_ <= few_outputs ? least_own_rows : decoded_rows_for(outputs_);
    const std::int64_t least = least_rows(layout_.bytes(), decoded, most_rows_);
    for_rows(loop, least, [&](std::int64_t begin, std::int64_t end, const ParallelFor& inner) {
      Product own(*this);
      own.run_rows(begin, end, inner);
    });
  }

  /// Whether `run_through` can join the two: chunks of hidden columns end where tiles and groups do.
  static bool joins(const PreparedLayout& up, const PreparedLayout& down) {
    const std::int64_t unit = unit_tiles(down);
    if (up.out_features == down.in_features) return unit <= task_tiles;
    return down.in_features % tile_rows == 0 && 2 * down.in_features == up.out_features && unit <= task_tiles / 2;
  }

  /// This linear and the linear `down` of its results, or of SwiGLU of them, panel by panel. Hidden values become
  /// activations of `down` where they are computed; they are never stored.
  void run_through(Product& down, const ParallelFor& parallel) {
    const ParallelFor& loop =
        parallel.pays(products() + down.products(), tuning_.serial_products) ? parallel : ParallelFor();
    down.write_directly(loop);
    const std::int64_t weight_bytes = std::max(layout_.bytes(), down.layout_.bytes());
    const std::int64_t decoded = decoded_rows_for(std::min(outputs_, down.outputs_));
    const std::int64_t least = least_rows(weight_bytes, decoded, most_rows_with(down));
    for_rows(loop, least, [&](std::int64_t begin, std::int64_t end, const ParallelFor& inner) {
      Product own(*this);
      Product own_down(down);
      own.run_rows_through(begin, end, own_down, inner);
    });
  }

 private:
  /// Whether kernels may write results where they belong.
  void write_directly(const ParallelFor& loop) {
    const bool is_result = l_.residual == nullptr && l_.activation == Activation::none;
    const std::int64_t result_bytes = l_.rows * outputs_ * std::int64_t{sizeof(float)};
    writes_results_ = digits_ == 1 && is_result && l_.float_type == FloatType::f32 &&
                      result_bytes <= loop.thread_count() * direct_result_bytes;
  }

  static std::int64_t decoded_rows_for(std::int64_t outputs) {
    return own_rows_where_decoded(outputs, outputs_of_decoded_row, least_decoded_rows);
  }

  /// Rows that each thread needs to have rows of its own, `decoded` where a weight is decoded once for all of them. A
  /// digit counts as one.
  std::int64_t least_rows(std::int64_t weight_bytes, std::int64_t decoded, std::int64_t panel_rows) const {
    const std::int64_t rows = kernels_.decodes_once ? decoded : least_own_rows;
    return own_rows_of(weight_bytes, ceil_divide(rows, digits_), panel_rows);
  }

  /// Calls f(begin, end, loop) for all rows, which share `loop`, or on each thread for rows of its own.
  template <class F>
  void for_rows(const ParallelFor& loop, std::int64_t least, const F& f) const {
    if (!has_own_rows(loop, l_.rows, least)) return f(0, l_.rows, loop);
    if (l_.next != nullptr) loop.expect(l_.next, l_.next_bytes);
    loop(l_.rows, [&](std::int64_t begin, std::int64_t end) { f(begin, end, ParallelFor()); });
  }

  void run_rows(std::int64_t begin, std::int64_t end, const ParallelFor& loop) {
    take_panels(end - begin, most_rows_);
    const Scratch panel(ScratchUse::operation, memory());
    take_memory(panel.bytes());
    for (std::int64_t first = begin; first < end; first += panel_rows_) {
      const std::int64_t rows = std::min(panel_rows_, end - first);
      prepare_rows(first, rows, loop);
      multiply(first, rows, loop);
    }
  }

  void run_rows_through(std::int64_t begin, std::int64_t end, Product& down, const ParallelFor& loop) {
    take_panels(end - begin, most_rows_with(down));
    down.panel_rows_ = panel_rows_;
    const Scratch panels(ScratchUse::operation, memory() + down.memory());
    take_memory(panels.bytes());
    down.take_memory(panels.bytes() + memory());
    for (std::int64_t first = begin; first < end; first += panel_rows_) {
      const std::int64_t rows = std::min(panel_rows_, end - first);
      prepare_rows(first, rows, loop);
      multiply_hidden(rows, down, loop);
      down.multiply(first, rows, loop);
    }
  }

  std::int64_t most_rows_with(const Product& down) const { return std::min(most_rows_, down.most_rows_); }

  /// Panels of about equal height, of at most `most` rows.
  void take_panels(std::int64_t rows, std::int64_t most) {
    const std::int64_t unit = most < decoded_rows ? 8 : decoded_rows;
    panel_rows_ = std::min(rows, round_up(ceil_divide(rows, ceil_divide(rows, most / unit * unit)), unit));
  }

  std::int64_t products() const {
    return std::max(l_.rows * digits_, tuning_.least_rows) * layout_.in_features * outputs_;
  }
  std::int64_t code_bytes() const { return panel_rows_ * digits_ * x_stride_; }
  std::int64_t factor_bytes() const { return round_up(panel_rows_ * digits_ * groups_ * 4, 64); }

  /// Bytes for a panel of activations.
  std::int64_t memory() const { return round_up(code_bytes(), 64) + 2 * factor_bytes(); }
  void take_memory(std::byte* memory) {
    x_ = reinterpret_cast<std::int8_t*>(memory);
    memory += round_up(code_bytes(), 64);
    x_scales_ = reinterpret_cast<float*>(memory);
    x_sums_ = reinterpret_cast<std::int32_t*>(memory + factor_bytes());
  }

  void prepare_rows(std::int64_t first, std::int64_t rows, const ParallelFor& loop) const {
    constexpr std::int64_t serial_values = std::int64_t{1} << 15;
    const bool pays = loop.pays(rows * layout_.in_features, serial_values);
    (pays ? loop : ParallelFor())(rows, [&](std::int64_t begin, std::int64_t end) {
      const bool is_made = l_.prologue != Prologue::none || l_.patches != nullptr;
      const Scratch memory(ScratchUse::task, is_made ? layout_.in_features * 4 : 0);
      float* values = memory.floats();
      for (std::int64_t m = begin; m < end; ++m) {
        const void* x = static_cast<const std::uint8_t*>(l_.x) + (first + m) * l_.x_row_bytes;
        FloatType type = l_.float_type;
        if (l_.patches != nullptr) {
          write_patch(*l_.patches, l_.x, bytes_of(type), first + m, values);
          x = values;
        } else if (l_.prologue == Prologue::rms_norm) {
          transformer_.normalize_row(x, type, layout_.in_features, l_.norm_weight, l_.norm_epsilon, values);
        } else if (l_.prologue == Prologue::swiglu) {
          transformer_.gate_row(x, type, layout_.in_features, values);
        }
        if (l_.prologue != Prologue::none) {
          x = values;
          type = FloatType::f32;
        }
        prepare_row(x, type, layout_, m, 0, 0, 0);
      }
    });
  }

  /// Row m of a panel, or of it the columns of `part`, whose codes and factors begin at these places.
  void prepare_row(
      const void* x, FloatType type, const PreparedLayout& part, std::int64_t m, std::int64_t code,
      std::int64_t activation_group, std::int64_t group) const {
    std::int8_t* codes = x_ + m * digits_ * x_stride_ + code;
    float* scales = x_scales_ + m * digits_ * activation_groups_ + activation_group;
    std::int32_t* sums = x_sums_ + m * digits_ * groups_ + group;
    if (digits_ == 1) {
      kernels_.quantize_row(x, type, part, codes, scales, sums);
    } else {
      kernels_.split_row(x, type, part, {codes, x_stride_, scales, activation_groups_, sums, groups_});
    }
  }

  /// Rows of a panel, and the factors of their digits as kernels read them: group by group, so that those of the rows
  /// that a kernel takes at a time share cache lines. Where kernels read totals, there are no sums.
  struct Rows {
    std::int64_t first;
    std::int64_t count;
    const float* scales;
    const std::int32_t* sums;
    const float* totals;
  };

  /// Every thread takes a run of consecutive tiles. Where there are few tiles, rows are shared out as well.
  void multiply(std::int64_t first, std::int64_t rows, const ParallelFor& loop) const {
    const std::int64_t wanted = loop.thread_count() == 1 ? 1 : ceil_divide(loop.thread_count() * thread_tiles, tiles_);
    const std::int64_t ranges = std::clamp<std::int64_t>(wanted, 1, ceil_divide(rows, least_range_rows));
    const Shared shared{rows, ceil_divide(rows, ranges), tiles_, task_tiles, helped_tiles, digits_ * tile_rows};
    share(loop, shared, [&](const Rows& range, Tiles tiles, float* y) {
      tiles.first += first_tile_;
      multiply_block(first, range, tiles, y);
    });
  }

  /// The same for hidden columns, which go to `down`. With SwiGLU they are made of tiles of gates and, half of all
  /// tiles behind, of what these multiply.
  void multiply_hidden(std::int64_t rows, const Product& down, const ParallelFor& loop) const {
    const std::int64_t parts = down.l_.prologue == Prologue::swiglu ? 2 : 1;
    const std::int64_t unit = unit_tiles(down.layout_);
    const std::int64_t tiles = tiles_ / parts;
    const std::int64_t units = ceil_divide(tiles, unit);
    const std::int64_t most = task_tiles / parts / unit;
    const std::int64_t ranges = even_ranges(units, loop.thread_count(), ceil_divide(rows, least_range_rows));
    const std::int64_t values = digits_ * parts * unit * tile_rows;
    share(
        loop, {rows, ceil_divide(rows, ranges), units, most, most, values},
        [&](const Rows& range, const Tiles& of, float* y) {
          const std::int64_t tile = of.first * unit;
          const auto until_end = [&](std::int64_t count) { return std::min(count * unit, tiles - tile); };
          multiply_chunk(range, down, {tile, until_end(of.count), until_end(of.to_come)}, y);
        });
  }

  /// How threads share the rows of a panel and units of columns.
  struct Shared {
    std::int64_t rows;
    std::int64_t range_rows;  // the rows are shared out in ranges of so many
    std::int64_t units;
    std::int64_t most;    // units at a time
    std::int64_t helped;  // units that threads take over from others at a time
    std::int64_t values;  // for each row and unit, in memory for one row more
  };

  /// A run of tiles, or of units of them, and how many the thread takes with those behind it.
  struct Tiles {
    std::int64_t first;
    std::int64_t count;
    std::int64_t to_come;
  };

  /// Calls f(range, units, memory) for ranges of rows and runs of units that cover all.
  template <class F>
  void share(const ParallelFor& loop, const Shared& shared, const F& f) const {
    const std::int64_t units = shared.units;
    const std::int64_t count = ceil_divide(shared.rows, shared.range_rows) * units;
    const bool helps = help_pays(loop, products()) && count >= loop.thread_count() * 2 * shared.helped;
    if (l_.next != nullptr) loop.expect(l_.next, l_.next_bytes);
    share_out(loop, count, helps ? shared.helped : 0, [&](const auto& next) {
      const std::int64_t values = (shared.range_rows + 1) * shared.values * std::min(shared.most, units);
      const std::int64_t floats = values + gathered(shared.range_rows);
      const Scratch scratch(ScratchUse::task, floats * 4);
      float* memory = scratch.floats();
      Rows range{};
      for (Taken own; next(own);) {
        for (std::int64_t begin = own.begin; begin < own.end;) {
          const std::int64_t m = begin / units * shared.range_rows;
          if (range.count == 0 || range.first != m) {
            range = gather(m, std::min(shared.range_rows, shared.rows - m), memory + values);
          }
          const std::int64_t end_of_range = (begin / units + 1) * units;
          for (const std::int64_t last = std::min(own.end, end_of_range); begin < last;) {
            const std::int64_t taken = std::min(shared.most, last - begin);
            f(range, {begin % units, taken, std::min(own.to_come, end_of_range) - begin}, memory);
            begin += taken;
          }
        }
      }
    });
  }

  /// Hidden columns of `chunk`, of rows of a panel.
  void multiply_chunk(const Rows& rows, const Product& down, const Tiles& chunk, float* y) const {
    const bool gated = down.l_.prologue == Prologue::swiglu;
    const std::int64_t parts = gated ? 2 : 1;
    const std::int64_t y_stride = parts * chunk.count * tile_rows;
    const std::int64_t column = chunk.first * tile_rows;
    const std::int64_t columns = std::min(chunk.count * tile_rows, down.layout_.in_features - column);
    for (std::int64_t part = 0; part < parts; ++part) {
      const Tiles tiles{part * tiles_ / parts + chunk.first, chunk.count, chunk.to_come};
      multiply_tiles(rows, tiles, y + part * chunk.count * tile_rows, y_stride);
    }
    float* hidden = y + rows.count * digits_ * y_stride;
    for (std::int64_t m = 0; m < rows.count; ++m) {
      if (gated) {
        transformer_.gate_row(y + m * y_stride, FloatType::f32, columns, hidden);
      } else {
        kernels_.store_outputs(
            y + m * y_stride, columns, l_.bias != nullptr ? l_.bias + column : nullptr, l_.activation, nullptr,
            FloatType::f32, hidden);
      }
      down.take_columns(rows.first + m, column, columns, hidden);
    }
  }

  /// Columns from the begin of a group of activations to the end of one, of row m of a panel.
  void take_columns(std::int64_t m, std::int64_t column, std::int64_t columns, const float* values) const {
    PreparedLayout part = layout_;
    part.in_features = columns;
    const std::int64_t group = column / layout_.group_size;
    const std::int64_t activation_group = groups_ == activation_groups_ ? group : group / layout_.groups_together();
    const std::int64_t code = group * layout_.group_blocks() * layout_.block_columns();
    prepare_row(values, FloatType::f32, part, m, code, activation_group, group);
  }

  /// Tiles of which the columns that follow each other are whole groups of activations.
  static std::int64_t unit_tiles(const PreparedLayout& layout) {
    const std::int64_t columns = layout.group_size * layout.groups_together();
    if (columns >= layout.in_features) return ceil_divide(layout.in_features, tile_rows);
    return std::lcm<std::int64_t>(tile_rows, columns) / tile_rows;
  }

  /// Values that `gather` needs for so many rows.
  std::int64_t gathered(std::int64_t rows) const {
    return rows * digits_ > 1 || reads_totals() ? rows * digits_ * (activation_groups_ + groups_) : 0;
  }

  bool reads_totals() const { return layout_.zero_kind == ZeroKind::offset; }

  Rows gather(std::int64_t m, std::int64_t rows, float* memory) const {
    const float* scales = x_scales_ + m * digits_ * activation_groups_;
    const std::int32_t* sums = x_sums_ + m * digits_ * groups_;
    if (gathered(rows) == 0) return {m, rows, scales, sums, nullptr};
    turn(scales, rows * digits_, activation_groups_, memory);
    float* second = memory + rows * digits_ * activation_groups_;
    if (reads_totals()) {
      turn(sums, rows * digits_, groups_, second);
      return {m, rows, memory, nullptr, second};
    }
    auto* sums_by_group = reinterpret_cast<std::int32_t*>(second);
    turn(sums, rows * digits_, groups_, sums_by_group);
    return {m, rows, memory, sums_by_group, nullptr};
  }

  /// `count` values of each row, group by group.
  template <class From, class To>
  static void turn(const From* from, std::int64_t rows, std::int64_t count, To* to) {
    for (std::int64_t begin = 0; begin < rows; begin += 16) {  // a cache line of each group
      const std::int64_t end = std::min<std::int64_t>(begin + 16, rows);
      for (std::int64_t g = 0; g < count; ++g) {
        for (std::int64_t i = begin; i < end; ++i) to[g * rows + i] = static_cast<To>(from[i * count + g]);
      }
    }
  }

  /// Results of a panel's rows. `y` has room for those of all digits.
  void multiply_tiles(
      const Rows& rows, const Tiles& tiles, float* y, std::int64_t y_stride, const float* bias = nullptr) const {
    Int8LinearBlock block{};
    block.layout = &layout_;
    block.codes = l_.prepared + layout_.codes_begin() + tiles.first * layout_.tile_code_bytes();
    block.scales = l_.prepared + layout_.scales_begin() + tiles.first * layout_.tile_scale_bytes();
    block.zeros = l_.prepared + layout_.zeros_begin() + tiles.first * layout_.tile_zero_bytes();
    block.tiles = tiles.count;
    block.tiles_to_come = tiles.to_come;
    block.x = x_ + rows.first * digits_ * x_stride_;
    block.x_stride = x_stride_;
    block.x_scales = rows.scales;
    block.x_sums = rows.sums;
    block.x_totals = rows.totals;
    block.x_group_stride = rows.count * digits_;
    block.rows = rows.count * digits_;
    block.bias = bias;
    block.y = y;
    block.y_stride = y_stride;
    block.fetch = fetch_;
    block.is_large = layout_.bytes() > cached_weight_bytes;
    block.decodes = tuning_.decodes;
    multiply_(block);
    if (digits_ > 1) kernels_.add_digits(y, rows.count, tiles.count * tile_rows, y_stride);
  }

  void multiply_block(std::int64_t first, const Rows& rows, const Tiles& tiles, float* y) const {
    const std::int64_t y_stride = tiles.count * tile_rows;
    const std::int64_t begin = tiles.first * tile_rows;
    const std::int64_t column = std::max(begin, l_.first_output);
    const std::int64_t columns = std::min(begin + y_stride, l_.first_output + outputs_) - column;
    const std::int64_t size = bytes_of(l_.float_type);
    if (writes_results_ && columns == y_stride) {
      const std::int64_t offset = ((first + rows.first) * layout_.out_features + column) * size;
      multiply_tiles(
          rows, tiles, reinterpret_cast<float*>(static_cast<std::uint8_t*>(l_.out) + offset), layout_.out_features,
          l_.bias != nullptr ? l_.bias + column : nullptr);
      return;
    }
    multiply_tiles(rows, tiles, y, y_stride);
    y += column - begin;
    for (std::int64_t i = 0; i < rows.count; ++i) {
      const std::int64_t offset = ((first + rows.first + i) * layout_.out_features + column) * size;
      kernels_.store_outputs(
          y + i * y_stride, columns, l_.bias != nullptr ? l_.bias + column : nullptr, l_.activation,
          l_.residual != nullptr ? static_cast<const std::uint8_t*>(l_.residual) + offset : nullptr, l_.float_type,
          static_cast<std::uint8_t*>(l_.out) + offset);
    }
  }

  const Linear& l_;
  const PreparedLayout& layout_;
  const LinearKernels& kernels_;
  const TransformerKernels& transformer_;
  Int8Linear multiply_;
  const Tuning& tuning_ = tuning();
  CodeFetch fetch_ = tuning_.fetch;
  std::int64_t digits_;
  std::int64_t groups_;
  std::int64_t activation_groups_;
  std::int64_t outputs_;
  std::int64_t first_tile_;
  std::int64_t tiles_;
  std::int64_t x_stride_;        // bytes
  bool writes_results_ = false;  // kernels do, where they belong
  std::int64_t most_rows_ = 0;   // of a panel
  std::int64_t panel_rows_ = 0;
  std::int8_t* x_ = nullptr;  // [rows, digits, columns]
  float* x_scales_ = nullptr;
  std::int32_t* x_sums_ = nullptr;
};

}  // namespace bittensor
