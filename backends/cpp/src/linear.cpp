// The loop nest of the group-quantized linear: activations to int8, blocks of results, epilogue.

#include "bittensor/linear.hpp"

#include <algorithm>
#include <utility>

#include "bittensor/kernel_table.hpp"
#include "rounding.hpp"
#include "scratch.hpp"
#include "write_patch.hpp"

namespace bittensor {
namespace {

/// Below this many products a second thread costs more than it saves: waking it takes about a microsecond.
constexpr std::int64_t serial_products = std::int64_t{3} << 19;

/// Rows are quantized and multiplied in panels of equal height whose codes stay in the second-level cache.
constexpr std::int64_t panel_bytes = std::int64_t{640} << 10;

/// Tiles whose results are gathered before the epilogue: a multiple of the tiles that any kernel takes at a time.
constexpr std::int64_t task_tiles = 24;

/// Tiles that a thread should have at least, so that sharing them out leaves no thread idle for long.
constexpr std::int64_t thread_tiles = 6;

/// What the two modes do differently: the form of the activations, and the kernels.
struct Int8Mode {
  using Block = Int8LinearBlock;
  using Value = std::int8_t;

  static Int8Linear kernel(const LinearKernels& kernels, int bits) { return kernels.int8_linear_for(bits); }
  static void count_calls(const KernelSet& kernels, int bits) {
    count_call(KernelKind::quantize_row, 0, kernels.isa);
    count_call(KernelKind::int8_linear, bits, kernels.isa);
  }
  static void prepare_row(
      const LinearKernels& kernels, const void* x, FloatType type, const PreparedLayout& layout, Value* values,
      float* scales, std::int32_t* sums) {
    kernels.quantize_row(x, type, layout, values, scales, sums);
  }
  static void set_factors(Block& block, const float* scales, const std::int32_t* sums) {
    block.x_scales = scales;
    block.x_sums = sums;
  }
};

struct FloatMode {
  using Block = FloatLinearBlock;
  using Value = float;

  static FloatLinear kernel(const LinearKernels& kernels, int bits) { return kernels.float_linear_for(bits); }
  static void count_calls(const KernelSet& kernels, int bits) {
    count_call(KernelKind::widen_row, 0, kernels.isa);
    count_call(KernelKind::float_linear, bits, kernels.isa);
  }
  static void prepare_row(
      const LinearKernels& kernels, const void* x, FloatType type, const PreparedLayout& layout, Value* values,
      float* sums, std::int32_t* /*unused*/) {
    kernels.widen_row(x, type, layout, values, layout.zero_kind == ZeroKind::offset ? sums : nullptr);
  }
  static void set_factors(Block& block, const float* sums, const std::int32_t* /*unused*/) { block.x_sums = sums; }
};

template <class Mode>
class Product {
 public:
  using Value = typename Mode::Value;

  Product(const Linear& linear, const KernelSet& kernels)
      : l_(linear),
        layout_(linear.layout),
        kernels_(kernels.linear),
        transformer_(kernels.transformer),
        multiply_(Mode::kernel(kernels.linear, linear.layout.bits)),
        groups_(linear.layout.groups()),
        outputs_(linear.outputs != 0 ? linear.outputs : linear.layout.out_features),
        first_tile_(linear.first_output / tile_rows),
        tiles_(ceil_divide(linear.first_output + outputs_, tile_rows) - first_tile_),
        // 64 bytes more than needed keep rows from meeting in the same sets of the cache.
        x_stride_(round_up(linear.layout.padded_columns(), 64) + 64 / static_cast<std::int64_t>(sizeof(Value))) {
    const std::int64_t most = std::max<std::int64_t>(panel_bytes / (x_stride_ * std::int64_t{sizeof(Value)}), 8);
    panel_rows_ = std::min(linear.rows, round_up(ceil_divide(linear.rows, ceil_divide(linear.rows, most)), 8));
  }

  void run(const ParallelFor& parallel) {
    const std::int64_t values = panel_rows_ * x_stride_ * static_cast<std::int64_t>(sizeof(Value));
    const std::int64_t factors = round_up(panel_rows_ * groups_ * 4, 64);
    std::byte* memory = scratch(ScratchUse::operation, static_cast<std::size_t>(values + 2 * factors));
    x_ = reinterpret_cast<Value*>(memory);
    x_factors_ = reinterpret_cast<float*>(memory + values);
    x_sums_ = reinterpret_cast<std::int32_t*>(memory + values + factors);
    const bool serial = l_.rows * layout_.in_features * outputs_ < serial_products;
    const ParallelFor& loop = serial ? ParallelFor() : parallel;
    for (std::int64_t first = 0; first < l_.rows; first += panel_rows_) {
      const std::int64_t rows = std::min(panel_rows_, l_.rows - first);
      prepare_rows(first, rows, loop);
      multiply(first, rows, loop);
    }
  }

 private:
  void prepare_rows(std::int64_t first, std::int64_t rows, const ParallelFor& loop) const {
    constexpr std::int64_t serial_values = std::int64_t{1} << 15;
    const bool serial = rows * layout_.in_features < serial_values;
    (serial ? ParallelFor() : loop)(rows, [&](std::int64_t begin, std::int64_t end) {
      const bool is_made = l_.prologue != Prologue::none || l_.patches != nullptr;
      auto* values =
          is_made
              ? reinterpret_cast<float*>(scratch(ScratchUse::task, static_cast<std::size_t>(layout_.in_features) * 4))
              : nullptr;
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
        Mode::prepare_row(
            kernels_, x, type, layout_, x_ + m * x_stride_, x_factors_ + m * groups_, x_sums_ + m * groups_);
      }
    });
  }

  /// Every thread takes one run of consecutive tiles. Where there are few tiles, rows are shared out as well.
  void multiply(std::int64_t first, std::int64_t rows, const ParallelFor& loop) const {
    const std::int64_t wanted = loop.thread_count() == 1 ? 1 : ceil_divide(loop.thread_count() * thread_tiles, tiles_);
    const std::int64_t range_rows = ceil_divide(rows, std::clamp<std::int64_t>(wanted, 1, ceil_divide(rows, 16)));
    const std::int64_t ranges = ceil_divide(rows, range_rows);
    loop(ranges * tiles_, [&](std::int64_t begin, std::int64_t end) {
      auto* y = reinterpret_cast<float*>(scratch(
          ScratchUse::task, static_cast<std::size_t>(range_rows * std::min(task_tiles, tiles_) * tile_rows * 4)));
      while (begin < end) {
        const std::int64_t m = begin / tiles_ * range_rows;
        const std::int64_t tile = begin % tiles_;
        const std::int64_t count = std::min({task_tiles, tiles_ - tile, end - begin});
        multiply_block(first, m, std::min(range_rows, rows - m), first_tile_ + tile, count, y);
        begin += count;
      }
    });
  }

  void multiply_block(
      std::int64_t first, std::int64_t m, std::int64_t rows, std::int64_t tile, std::int64_t tiles, float* y) const {
    typename Mode::Block block{};
    block.layout = &layout_;
    block.codes = l_.prepared + layout_.codes_begin() + tile * layout_.tile_code_bytes();
    block.scales = l_.prepared + layout_.scales_begin() + tile * layout_.tile_scale_bytes();
    block.zeros = l_.prepared + layout_.zeros_begin() + tile * layout_.tile_zero_bytes();
    block.tiles = tiles;
    block.x = x_ + m * x_stride_;
    block.x_stride = x_stride_;
    Mode::set_factors(block, x_factors_ + m * groups_, x_sums_ + m * groups_);
    block.rows = rows;
    block.y = y;
    block.y_stride = tiles * tile_rows;
    multiply_(block);
    const std::int64_t column = std::max(tile * tile_rows, l_.first_output);
    const std::int64_t columns = std::min((tile + tiles) * tile_rows, l_.first_output + outputs_) - column;
    y += column - tile * tile_rows;
    const std::int64_t size = bytes_of(l_.float_type);
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::int64_t offset = ((first + m + i) * layout_.out_features + column) * size;
      kernels_.store_outputs(
          y + i * block.y_stride, columns, l_.bias != nullptr ? l_.bias + column : nullptr, l_.activation,
          l_.residual != nullptr ? static_cast<const std::uint8_t*>(l_.residual) + offset : nullptr, l_.float_type,
          static_cast<std::uint8_t*>(l_.out) + offset);
    }
  }

  const Linear& l_;
  const PreparedLayout& layout_;
  const LinearKernels& kernels_;
  const TransformerKernels& transformer_;
  decltype(Mode::kernel(std::declval<const LinearKernels&>(), 4)) multiply_;
  std::int64_t groups_;
  std::int64_t outputs_;
  std::int64_t first_tile_;
  std::int64_t tiles_;
  std::int64_t x_stride_;  // values
  std::int64_t panel_rows_ = 0;
  Value* x_ = nullptr;
  float* x_factors_ = nullptr;  // scales of the codes, or sums of the floats
  std::int32_t* x_sums_ = nullptr;
};

template <class Mode>
void run_linear(const Linear& linear, const KernelSet& kernels, const ParallelFor& parallel) {
  Mode::count_calls(kernels, linear.layout.bits);
  count_call(KernelKind::store_outputs, 0, kernels.isa);
  if (linear.prologue == Prologue::rms_norm) count_call(KernelKind::normalize_row, 0, kernels.isa);
  if (linear.prologue == Prologue::swiglu) count_call(KernelKind::gate_row, 0, kernels.isa);
  if (linear.rows > 0) Product<Mode>(linear, kernels).run(parallel);
}

}  // namespace

void linear_int8(const Linear& linear, const KernelSet& kernels, const ParallelFor& parallel) {
  run_linear<Int8Mode>(linear, kernels, parallel);
}

void linear_float(const Linear& linear, const KernelSet& kernels, const ParallelFor& parallel) {
  run_linear<FloatMode>(linear, kernels, parallel);
}

}  // namespace bittensor
