// The loop nest of the linear's gradient: panels of the weight as floats, and their products with rows of dy.

#include "bittensor/linear_gradient.hpp"

#include <algorithm>

#include "count_call.hpp"
#include "rounding.hpp"
#include "scratch.hpp"
#include "shares.hpp"

namespace bittensor {
namespace {

/// Below this many products a second thread costs more than it saves.
constexpr std::int64_t serial_products = std::int64_t{1} << 20;

/// Rows of dy that meet a panel of the weight before the next is made: with the widest span, sums of 192 KiB. Only
/// every so many rows is the weight dequantized again.
constexpr std::int64_t largest_rows = 192;

/// Columns of the weight that a task takes at most. Its panels and sums stay in the second-level cache.
constexpr std::int64_t largest_span = 256;

/// Rows of a panel. A strip of a tall one, as wide as a register tile, fills half of the first-level cache; a low one,
/// for few rows of dy, fits it in its full width.
constexpr std::int64_t tall_panel = 96;
constexpr std::int64_t low_panel = 16;
constexpr std::int64_t few_rows = 8;

/// Up to so many rows, codes are decoded where they are multiplied.
constexpr std::int64_t rows_without_panel = 4;

/// How the columns of the weight are shared out: runs of whole groups, or parts of one group.
class Spans {
 public:
  Spans(const PreparedLayout& layout, std::int64_t threads) : layout_(layout) {
    const std::int64_t wanted = round_up(ceil_divide(layout.in_features, largest_span), threads);
    const std::int64_t columns = round_up(ceil_divide(layout.in_features, wanted), panel_unit);
    if (layout.group_size > columns) {
      parts_ = ceil_divide(layout.group_size, columns);
      columns_ = round_up(ceil_divide(layout.group_size, parts_), panel_unit);
    } else {
      groups_ = columns / layout.group_size;
      columns_ = groups_ * layout.group_size;
    }
  }

  std::int64_t count() const { return ceil_divide(layout_.groups(), groups_) * parts_; }
  /// Columns of the widest.
  std::int64_t columns() const { return columns_; }
  std::int64_t begin(std::int64_t span) const {
    return span / parts_ * groups_ * layout_.group_size + span % parts_ * columns_;
  }
  /// Not above `begin` for the parts that a shorter last group lacks.
  std::int64_t end(std::int64_t span) const {
    const std::int64_t groups_end = (span / parts_ + 1) * groups_ * layout_.group_size;
    return std::min({begin(span) + columns_, groups_end, layout_.in_features});
  }

 private:
  const PreparedLayout& layout_;
  std::int64_t groups_ = 1;  // of a span
  std::int64_t parts_ = 1;   // of a group
  std::int64_t columns_;
};

class Gradient {
 public:
  Gradient(const LinearInputGrad& gradient, const KernelSet& kernels, const ParallelFor& loop)
      : g_(gradient),
        layout_(gradient.layout),
        kernels_(kernels),
        dequantize_(kernels.gradient.dequantize_panel_for(gradient.layout.bits)),
        loop_(loop),
        spans_(gradient.layout, loop.thread_count()),
        panel_(gradient.rows <= few_rows ? low_panel : tall_panel),
        rows_(ceil_divide(gradient.rows, ceil_divide(gradient.rows, largest_rows))),
        stride_(round_up(spans_.columns(), panel_unit) + panel_unit) {}

  void run() {
    const std::int64_t values = ceil_divide(layout_.out_features, panel_) * panel_ * rows_;
    const Scratch dy(ScratchUse::operation, values * 4);
    dy_ = dy.floats();
    for (std::int64_t first = 0; first < g_.rows; first += rows_) {
      const std::int64_t rows = std::min(rows_, g_.rows - first);
      widen(first, rows);
      multiply(first, rows);
    }
  }

 private:
  /// Rows of dy as floats, in [panel][row][row of the panel].
  void widen(std::int64_t first, std::int64_t rows) const {
    constexpr std::int64_t serial_values = std::int64_t{1} << 15;
    const bool serial = rows * layout_.out_features < serial_values;
    (serial ? ParallelFor() : loop_)(rows, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t m = begin; m < end; ++m) {
        const auto* from = static_cast<const std::uint8_t*>(g_.dy) + (first + m) * g_.dy_row_bytes;
        for (std::int64_t n = 0; n < layout_.out_features; n += panel_) {
          const std::int64_t depth = std::min(panel_, layout_.out_features - n);
          const PreparedLayout one_group = {1, depth, depth, 8, FloatType::f32, ZeroKind::symmetric};
          kernels_.linear.widen_row(
              from + n * bytes_of(g_.float_type), g_.float_type, one_group, dy_ + n * rows + m * panel_);
        }
      }
    });
  }

  /// Columns are shared out, and rows as well where threads would get too few columns or different numbers of them.
  void multiply(std::int64_t first, std::int64_t rows) const {
    constexpr std::int64_t fewest_rows = 24;
    const std::int64_t ranges = even_ranges(spans_.count(), loop_.thread_count(), ceil_divide(rows, fewest_rows));
    const std::int64_t range_rows = ceil_divide(rows, ranges);
    loop_(spans_.count() * ranges, [&](std::int64_t begin, std::int64_t end) {
      const Scratch memory(ScratchUse::task, (panel_ + range_rows) * stride_ * 4);
      for (std::int64_t task = begin; task < end; ++task) {
        const std::int64_t m = task % ranges * range_rows;
        multiply_span(task / ranges, first, rows, m, std::min(range_rows, rows - m), memory.floats());
      }
    });
  }

  /// `rows` rows from `m` on, of the `all_rows` that `dy_` holds.
  void multiply_span(
      std::int64_t span, std::int64_t first, std::int64_t all_rows, std::int64_t m, std::int64_t rows,
      float* memory) const {
    const std::int64_t column = spans_.begin(span);
    const std::int64_t columns = spans_.end(span) - column;
    if (columns <= 0 || rows <= 0) return;
    WeightPanel panel{};
    panel.layout = &layout_;
    panel.prepared = g_.prepared;
    panel.first_column = column;
    panel.columns = columns;
    panel.values = memory;
    panel.stride = stride_;
    PanelProductBlock block{};
    block.dy_stride = panel_;
    block.rows = rows;
    block.panel = memory;
    block.panel_stride = stride_;
    block.tiles = ceil_divide(columns, panel_unit);
    block.sums = memory + panel_ * stride_;
    block.sums_stride = stride_;
    for (std::int64_t n = 0; n < layout_.out_features; n += panel_) {
      block.depth = std::min(panel_, layout_.out_features - n);
      panel.first_tile = n / tile_rows;
      panel.tiles = ceil_divide(block.depth, tile_rows);
      dequantize_(panel);
      block.dy = dy_ + n * all_rows + m * panel_;
      block.continues = n > 0;
      kernels_.gradient.panel_product(block);
    }
    const std::int64_t size = bytes_of(g_.float_type);
    for (std::int64_t i = 0; i < rows; ++i) {
      kernels_.linear.store_outputs(
          block.sums + i * stride_, columns, nullptr, Activation::none, nullptr, g_.float_type,
          static_cast<std::uint8_t*>(g_.out) + ((first + m + i) * layout_.in_features + column) * size);
    }
  }

  const LinearInputGrad& g_;
  const PreparedLayout& layout_;
  const KernelSet& kernels_;
  DequantizePanel dequantize_;
  const ParallelFor& loop_;
  Spans spans_;
  std::int64_t panel_;   // rows of a panel of the weight
  std::int64_t rows_;    // rows of dy at a time
  std::int64_t stride_;  // floats
  float* dy_ = nullptr;
};

/// A few rows, without a panel: every thread takes a run of strips of columns, and all rows of the weight.
void multiply_codes(const LinearInputGrad& gradient, const KernelSet& kernels, const ParallelFor& loop) {
  const PreparedLayout& layout = gradient.layout;
  const std::int64_t dy_stride = round_up(layout.out_features, panel_unit);
  const Scratch widened(ScratchUse::operation, gradient.rows * dy_stride * 4);
  float* dy = widened.floats();
  const PreparedLayout one_group = {1, layout.out_features, layout.out_features,
                                    8, FloatType::f32,      ZeroKind::symmetric};
  for (std::int64_t m = 0; m < gradient.rows; ++m) {
    const auto* from = static_cast<const std::uint8_t*>(gradient.dy) + m * gradient.dy_row_bytes;
    kernels.linear.widen_row(from, gradient.float_type, one_group, dy + m * dy_stride);
  }
  const std::int64_t strip = kernels.gradient.strip_blocks;
  const auto column_of = [&](std::int64_t block) {
    const std::int64_t group = block / layout.group_blocks();
    const std::int64_t in_group = block % layout.group_blocks() * layout.block_columns();
    return std::min(group * layout.group_size + in_group, layout.in_features);
  };
  loop(ceil_divide(layout.blocks(), strip), [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t first = begin * strip;
    const std::int64_t last = std::min(end * strip, layout.blocks());
    const std::int64_t column = column_of(first);
    const std::int64_t columns = (last == layout.blocks() ? layout.in_features : column_of(last)) - column;
    const std::int64_t sums = gradient.rows * (end - begin) * strip * layout.block_columns();
    const std::int64_t out_stride = round_up(columns, panel_unit);
    const Scratch memory(ScratchUse::task, (sums + gradient.rows * out_stride) * 4);
    float* out = memory.floats() + sums;
    kernels.gradient.codes_product_for(layout.bits)(
        {&layout, gradient.prepared, dy, dy_stride, gradient.rows, first, last - first, memory.floats(), out,
         out_stride});
    const std::int64_t size = bytes_of(gradient.float_type);
    for (std::int64_t m = 0; m < gradient.rows; ++m) {
      kernels.linear.store_outputs(
          out + m * out_stride, columns, nullptr, Activation::none, nullptr, gradient.float_type,
          static_cast<std::uint8_t*>(gradient.out) + (m * layout.in_features + column) * size);
    }
  });
}

}  // namespace

void linear_input_grad(const LinearInputGrad& gradient, const KernelSet& kernels, const ParallelFor& parallel) {
  const PreparedLayout& layout = gradient.layout;
  const bool serial = gradient.rows * layout.in_features * layout.out_features < serial_products;
  const ParallelFor alone;
  const ParallelFor& loop = serial ? alone : parallel;
  // A strip of columns belongs to one thread; panels are narrower, and can be shared out where strips are too few.
  const bool without_panel = gradient.rows <= rows_without_panel &&
                             ceil_divide(layout.blocks(), kernels.gradient.strip_blocks) >= loop.thread_count();
  count_call(KernelKind::widen_row, 0, kernels.isa);
  if (without_panel) {
    count_call(KernelKind::codes_product, layout.bits, kernels.isa);
  } else {
    count_call(KernelKind::dequantize_panel, layout.bits, kernels.isa);
    count_call(KernelKind::panel_product, 0, kernels.isa);
  }
  count_call(KernelKind::store_outputs, 0, kernels.isa);
  if (gradient.rows == 0) return;
  if (without_panel) {
    multiply_codes(gradient, kernels, loop);
  } else {
    Gradient(gradient, kernels, loop).run();
  }
}

}  // namespace bittensor
