// Operands of every kernel: small enough for the second-level cache, so that what is measured is the kernel.

#include "cases.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <utility>

#include "bittensor/codes.hpp"
#include "bittensor/kernel_table.hpp"
#include "bittensor/linear.hpp"
#include "bittensor/linear_gradient.hpp"
#include "bittensor/pack.hpp"
#include "bittensor/packed_matmul.hpp"
#include "bittensor/prepare.hpp"

using bittensor::FloatType;
using bittensor::KernelKind;
using bittensor::KernelSet;
using bittensor::PreparedLayout;
using bittensor::ZeroKind;
using Run = std::function<void()>;

namespace {

constexpr std::array widths = {1, 2, 4, 8};
/// A row with a tail. It is counted, but not timed: in tens of nanoseconds, where the code lies decides.
constexpr std::int64_t short_row = 100;
/// Rows that one call of an epilogue's case takes, one after the other, as the loop nests do.
constexpr std::int64_t epilogue_rows = 32;

constexpr std::array linear_widths = {2, 4, 8};
constexpr std::array float_types = {FloatType::f32, FloatType::f16, FloatType::bf16};

const char* name_of(FloatType type) {
  return type == FloatType::f32 ? "f32" : type == FloatType::f16 ? "f16" : "bf16";
}

const char* name_of(ZeroKind kind) {
  return kind == ZeroKind::symmetric ? "symmetric" : kind == ZeroKind::integer ? "integer" : "offset";
}

std::string number(std::int64_t value) {
  return std::to_string(value);
}

double real(std::int64_t value) {
  return static_cast<double>(value);
}

/// Values of a float type whose magnitudes lie between 0.5 and 1.
void* values_of(Operands& operands, FloatType type, std::int64_t count) {
  if (type == FloatType::f32) return operands.floats(count);
  const std::int64_t half = type == FloatType::f16 ? 0x3800 : 0x3F00;
  const std::int64_t mantissa = type == FloatType::f16 ? 0x3FF : 0x7F;
  auto* bits = operands.integers<std::uint16_t>(count, half, half + mantissa);
  for (std::int64_t i = 0; i < count; i += 2) bits[i] = static_cast<std::uint16_t>(bits[i] | 0x8000);
  return bits;
}

PreparedLayout layout_of(
    std::int64_t out_features, std::int64_t in_features, std::int64_t group_size, int bits, ZeroKind kind) {
  return {out_features, in_features, group_size, bits, FloatType::f16, kind};
}

/// A prepared weight with random content.
const std::uint8_t* weight_of(Operands& operands, const PreparedLayout& layout, const KernelSet& kernels) {
  const std::int64_t groups = layout.out_features * layout.groups();
  const bittensor::GroupQuantized weight = {
      operands.words(layout.out_features * bittensor::words_per_row(layout.in_features, layout.bits)),
      values_of(operands, layout.scale_type, groups),
      operands.integers<std::uint8_t>(groups, 0, bittensor::max_code(layout.bits)),
      values_of(operands, layout.scale_type, groups)};
  auto* prepared = operands.array<std::uint8_t>(layout.bytes());
  bittensor::prepare(weight, layout, prepared, kernels);
  return prepared;
}

/// Collects the cases of one instruction set.
class Cases {
 public:
  explicit Cases(const KernelSet& kernels) : kernels_(kernels), isa_(bittensor::isa_name(kernels.isa)) {}

  std::vector<Case> all() {
    for (const int bits : widths) {
      for (const std::int64_t columns : {std::int64_t{16384}, short_row}) rows_of_codes(bits, columns);
      for (const std::int64_t rows : {1, 4, 32}) integer_dot(bits, rows, bittensor::WordFetch::none);
      for (const bool scaled : {false, true}) store_codes(bits, scaled);
    }
    integer_dot(4, 1, bittensor::WordFetch::in_order);
    store_sums();
    for (const FloatType type : float_types) {
      for (const std::int64_t group_size : {32, 128}) activations(type, group_size);
    }
    add_digits();
    using bittensor::Activation;
    for (const FloatType type : float_types) {
      for (const bool residual : {false, true}) store_outputs(type, Activation::none, "none", residual);
    }
    store_outputs(FloatType::f32, Activation::relu, "relu");
    store_outputs(FloatType::f32, Activation::gelu, "gelu");
    store_outputs(FloatType::f32, Activation::silu, "silu");
    for (const int bits : linear_widths) {
      for (const std::int64_t rows : {1, 3, 16}) linear(bits, rows, 128, ZeroKind::symmetric);
      linear(bits, 16, 32, ZeroKind::symmetric);
      linear(bits, 16, 128, ZeroKind::integer);
      linear(bits, 16, 128, ZeroKind::offset);
      for (const ZeroKind kind : {ZeroKind::symmetric, ZeroKind::offset}) {
        dequantize_panel(bits, kind);
        dequantize_row(bits, kind);
      }
    }
    for (const std::int64_t rows : {1, 16}) panel_product(rows);
    for (const int bits : linear_widths) {
      for (const std::int64_t group_size : {32, 128}) codes_product(bits, group_size);
    }
    for (const int bits : linear_widths) {
      for (const ZeroKind kind : {ZeroKind::symmetric, ZeroKind::offset}) lanes(bits, kind);
    }
    for (const FloatType type : float_types) transformer(type);
    operations();
    return std::move(found_);
  }

 private:
  std::string table_name(KernelKind kind, int bits) const {
    return bittensor::kind_name(kind) + (bits == 0 ? "" : "_b" + number(bits)) + "_" + isa_;
  }

  void add(
      KernelKind kind, int bits, const std::string& operands, double operations, double bytes,
      std::function<Run(Operands&)> make) {
    const bool timed = operands != "k" + number(short_row);
    const std::string kernel = table_name(kind, bits);
    found_.push_back({kernel, kernel + "/" + operands, isa_, operations, bytes, timed, std::move(make)});
  }

  void add(
      const std::string& operation, const std::string& operands, double operations, double bytes,
      std::function<Run(Operands&)> make) {
    found_.push_back({"", operation + "_" + isa_ + "/" + operands, isa_, operations, bytes, true, std::move(make)});
  }

  static std::int64_t planes_of(std::int64_t columns, int bits) {
    const std::int64_t bytes = bittensor::words_per_row(columns, bits) * 8;
    return (bytes + bittensor::block_bytes - 1) / bittensor::block_bytes * bittensor::block_bytes * (8 / bits);
  }

  void rows_of_codes(int bits, std::int64_t columns) {
    const bittensor::CodeKernels& codes = kernels_.for_bits(bits);
    const std::int64_t words = bittensor::words_per_row(columns, bits);
    const std::string place = "k" + number(columns);
    add(KernelKind::pack_row, bits, place, real(columns), real(columns + words * 8), [=](Operands& o) -> Run {
      const auto* from = o.integers<std::uint8_t>(columns, 0, bittensor::max_code(bits));
      auto* to = o.array<std::uint64_t>(words);
      return [=] { codes.pack_row(from, columns, to); };
    });
    add(KernelKind::unpack_row, bits, place, real(columns), real(columns + words * 8), [=](Operands& o) -> Run {
      auto* from = o.words(words);
      auto* to = o.array<std::uint8_t>(columns);
      return [=] { codes.unpack_row(from, columns, to); };
    });
    const std::int64_t planes = planes_of(columns, bits);
    add(KernelKind::expand_planes, bits, place, real(columns), real(words * 8 + planes), [=](Operands& o) -> Run {
      auto* from = o.words(words);
      auto* to = o.array<std::int8_t>(planes);
      return [=] { codes.expand_planes(from, columns, bits == 8 ? 128 : 3 % (1 << bits), to); };
    });
  }

  void integer_dot(int bits, std::int64_t rows, bittensor::WordFetch fetch) {
    constexpr std::int64_t columns = 1024;
    constexpr std::int64_t outputs = bittensor::block_columns;
    const bittensor::CodeKernels& codes = kernels_.for_bits(bits);
    const std::int64_t words = bittensor::words_per_row(columns, bits);
    const std::int64_t stride = planes_of(columns, bits) + 64;
    const double bytes = real(rows * columns + outputs * words * 8 + rows * outputs * 4);
    const std::string order = fetch == bittensor::WordFetch::in_order ? "-in-order" : "";
    add(KernelKind::integer_dot, bits, "m" + number(rows) + order, real(2 * rows * columns * outputs), bytes,
        [=](Operands& o) -> Run {
          bittensor::IntegerDotBlock block{};
          const int largest = bits == 8 ? 127 : bittensor::max_code(bits);
          block.planes = o.integers<std::int8_t>(rows * stride, -largest, largest);
          block.plane_stride = stride;
          block.rows = rows;
          block.words = o.words(outputs * words);
          block.word_stride = words;
          block.row_words = words;
          block.columns = outputs;
          block.fetch = fetch;
          block.acc = o.array<std::int32_t>(rows * outputs);
          return [=] { codes.integer_dot(block); };
        });
  }

  void store_codes(int bits, bool scaled) {
    constexpr std::int64_t columns = bittensor::block_columns;
    const bittensor::CodeKernels& codes = kernels_.for_bits(bits);
    const std::int64_t words = bittensor::words_per_row(columns, bits);
    const double bytes = real(epilogue_rows * (columns * 4 + words * 8) + columns * (scaled ? 8 : 4));
    const double values = real(epilogue_rows * columns);
    add(KernelKind::store_codes, bits, scaled ? "scale" : "no-scale", values, bytes, [=](Operands& o) -> Run {
      bittensor::CodeEpilogue row{};
      row.acc = o.integers<std::int32_t>(epilogue_rows * columns, -400, 400);
      row.column_add = o.integers<std::int32_t>(columns, -100, 100);
      row.row_add = 7;
      row.scale = scaled ? o.floats(columns) : nullptr;
      row.out_zero = scaled ? 1 : 0;
      auto* to = o.array<std::uint64_t>(epilogue_rows * words);
      return [=] {
        bittensor::CodeEpilogue each = row;
        for (std::int64_t m = 0; m < epilogue_rows; ++m, each.acc += columns) {
          codes.store_codes(each, columns, to + m * words);
        }
      };
    });
  }

  void store_sums() {
    constexpr std::int64_t columns = bittensor::block_columns;
    const bittensor::StoreSums kernel = kernels_.store_sums;
    const double bytes = real(columns * 4 * (2 * epilogue_rows + 1));
    add(KernelKind::store_sums, 0, "n64", real(epilogue_rows * columns), bytes, [=](Operands& o) -> Run {
      const auto* acc = o.integers<std::int32_t>(epilogue_rows * columns, -400, 400);
      const auto* column_add = o.integers<std::int32_t>(columns, -100, 100);
      auto* to = o.array<std::int32_t>(epilogue_rows * columns);
      return [=] {
        for (std::int64_t m = 0; m < epilogue_rows; ++m) {
          kernel(acc + m * columns, column_add, 7, columns, to + m * columns);
        }
      };
    });
  }

  void activations(FloatType type, std::int64_t group_size) {
    constexpr std::int64_t columns = 4096;
    const bittensor::LinearKernels kernels = kernels_.linear;
    const PreparedLayout layout = layout_of(16, columns, group_size, 4, ZeroKind::symmetric);
    const std::string place = std::string(name_of(type)) + "-g" + number(group_size);
    const std::int64_t read = columns * bittensor::bytes_of(type);
    const std::int64_t factor_bytes = 4 * (layout.groups() + layout.activation_groups());
    add(KernelKind::quantize_row, 0, place, real(columns), real(read + columns + factor_bytes),
        [=](Operands& o) -> Run {
          const void* x = values_of(o, type, columns);
          auto* codes = o.array<std::int8_t>(layout.padded_columns());
          auto* scales = o.array<float>(layout.activation_groups());
          auto* sums = o.array<std::int32_t>(layout.groups());
          return [=] { kernels.quantize_row(x, type, layout, codes, scales, sums); };
        });
    add(KernelKind::widen_row, 0, place, real(columns), real(read + columns * 4), [=](Operands& o) -> Run {
      const void* x = values_of(o, type, columns);
      auto* values = o.array<float>(layout.padded_columns());
      return [=] { kernels.widen_row(x, type, layout, values); };
    });
    constexpr std::int64_t digits = bittensor::activation_digits;
    add(KernelKind::split_row, 0, place, real(columns), real(read + digits * (columns + factor_bytes)),
        [=](Operands& o) -> Run {
          const void* x = values_of(o, type, columns);
          const bittensor::DigitRows to = {
              o.array<std::int8_t>(digits * layout.padded_columns()), layout.padded_columns(),
              o.array<float>(digits * layout.activation_groups()),    layout.activation_groups(),
              o.array<std::int32_t>(digits * layout.groups()),        layout.groups()};
          return [=] { kernels.split_row(x, type, layout, to); };
        });
  }

  void add_digits() {
    constexpr std::int64_t columns = 384;
    const bittensor::AddDigits kernel = kernels_.linear.add_digits;
    const std::int64_t values = bittensor::activation_digits * epilogue_rows * columns;
    add(KernelKind::add_digits, 0, "n384", real(values), real(4 * (values + epilogue_rows * columns)),
        [=](Operands& o) -> Run {
          auto* y = o.array<float>(values);
          return [=] { kernel(y, epilogue_rows, columns, columns); };
        });
  }

  void store_outputs(FloatType type, bittensor::Activation activation, const char* name, bool residual = false) {
    constexpr std::int64_t columns = 384;
    const bittensor::StoreOutputs kernel = kernels_.linear.store_outputs;
    const std::int64_t row_bytes = columns * bittensor::bytes_of(type);
    const double bytes = real(epilogue_rows * (columns * 4 + row_bytes * (residual ? 2 : 1)) + columns * 4);
    const std::string place = std::string(name_of(type)) + "-" + name + (residual ? "-residual" : "");
    add(KernelKind::store_outputs, 0, place, real(epilogue_rows * columns), bytes, [=](Operands& o) -> Run {
      const float* y = o.floats(epilogue_rows * columns);
      const float* bias = o.floats(columns);
      const auto* added = residual ? static_cast<std::uint8_t*>(values_of(o, type, epilogue_rows * columns)) : nullptr;
      auto* out = o.array<std::uint8_t>(epilogue_rows * row_bytes);
      return [=] {
        for (std::int64_t m = 0; m < epilogue_rows; ++m) {
          const auto* other = added == nullptr ? nullptr : added + m * row_bytes;
          kernel(y + m * columns, columns, bias, activation, other, type, out + m * row_bytes);
        }
      };
    });
  }

  void linear(int bits, std::int64_t rows, std::int64_t group_size, ZeroKind kind) {
    constexpr std::int64_t columns = 512;
    const PreparedLayout layout = layout_of(192, columns, group_size, bits, kind);
    const std::int64_t outputs = layout.tiles() * bittensor::tile_rows;
    const std::string place = "m" + number(rows) + "-g" + number(group_size) + "-" + name_of(kind);
    const double work = real(2 * rows * columns * outputs);
    const std::int64_t weight_bytes = layout.bytes() - layout.codes_begin();
    const KernelSet& set = kernels_;
    const std::int64_t factor_bytes = 4 * (layout.groups() + layout.activation_groups());
    const double int8_bytes = real(weight_bytes + rows * (columns + factor_bytes + 4 * outputs));
    add(KernelKind::int8_linear, bits, place, work, int8_bytes, [=, &set](Operands& o) -> Run {
      const std::uint8_t* prepared = weight_of(o, layout, set);
      bittensor::Int8LinearBlock block{};
      block.x_stride = (layout.padded_columns() + 63) / 64 * 64 + 64;
      auto* codes = o.array<std::int8_t>(rows * block.x_stride);
      auto* scales = o.array<float>(rows * layout.activation_groups());
      auto* sums = o.array<std::int32_t>(rows * layout.groups());
      auto* totals = o.array<float>(rows * layout.groups());
      const float* x = o.floats(rows * columns);
      for (std::int64_t m = 0; m < rows; ++m) {
        set.linear.quantize_row(
            x + m * columns, FloatType::f32, layout, codes + m * block.x_stride,
            scales + m * layout.activation_groups(), sums + m * layout.groups());
      }
      for (std::int64_t i = 0; i < rows * layout.groups(); ++i) totals[i] = static_cast<float>(sums[i]);
      block.x_group_stride = rows;  // factors of rows and groups have changed places, which no kernel's time shows
      block.codes = prepared + layout.codes_begin();
      block.scales = prepared + layout.scales_begin();
      block.zeros = prepared + layout.zeros_begin();
      block.tiles = layout.tiles();
      block.x = codes;
      block.x_scales = scales;
      block.x_sums = sums;
      block.x_totals = totals;
      block.rows = rows;
      block.y_stride = outputs;
      block.y = o.array<float>(rows * outputs);
      return [=, kernel = set.linear.int8_linear_for(bits)]() mutable {
        block.layout = &layout;
        kernel(block);
      };
    });
  }

  void dequantize_panel(int bits, ZeroKind kind) {
    constexpr std::int64_t columns = 256;
    constexpr std::int64_t rows = 96;
    const PreparedLayout layout = layout_of(rows, columns, 128, bits, kind);
    const KernelSet& set = kernels_;
    const double bytes = real(layout.bytes() - layout.codes_begin() + rows * columns * 4);
    add(KernelKind::dequantize_panel, bits, name_of(kind), real(rows * columns), bytes, [=, &set](Operands& o) -> Run {
      bittensor::WeightPanel panel{};
      panel.prepared = weight_of(o, layout, set);
      panel.tiles = layout.tiles();
      panel.columns = columns;
      panel.stride = columns + bittensor::panel_unit;
      panel.values = o.array<float>(rows * panel.stride);
      return [=, kernel = set.gradient.dequantize_panel_for(bits)]() mutable {
        panel.layout = &layout;
        kernel(panel);
      };
    });
  }

  /// As an embedding takes rows: here every third.
  void dequantize_row(int bits, ZeroKind kind) {
    constexpr std::int64_t columns = 1024;
    constexpr std::int64_t rows = 32;
    constexpr std::int64_t step = 3;
    const PreparedLayout layout = layout_of(step * rows, columns, 64, bits, kind);
    const KernelSet& set = kernels_;
    const double bytes = real((layout.bytes() - layout.codes_begin()) / step + rows * columns * 4);
    add(KernelKind::dequantize_row, bits, name_of(kind), real(rows * columns), bytes, [=, &set](Operands& o) -> Run {
      const std::uint8_t* prepared = weight_of(o, layout, set);
      auto* values = o.array<float>(rows * columns);
      return [=, kernel = set.embedding.dequantize_row_for(bits)] {
        for (std::int64_t r = 0; r < rows; ++r) kernel(layout, prepared, step * r, values + r * columns);
      };
    });
  }

  /// As a depthwise convolution of 3 x 3 takes lines of an image.
  void lanes(int bits, ZeroKind kind) {
    constexpr std::int64_t columns = 9;
    constexpr std::int64_t positions = 56;
    constexpr std::int64_t vector = bittensor::tile_rows;
    constexpr std::int64_t line = (positions + 2) * vector;
    const PreparedLayout layout = layout_of(vector, columns, columns, bits, kind);
    const KernelSet& set = kernels_;
    for (const KernelKind kernel_kind : {KernelKind::int8_lanes, KernelKind::float_lanes}) {
      const auto kernel = kernel_kind == KernelKind::int8_lanes ? set.convolution.int8_lanes_for(bits)
                                                                : set.convolution.float_lanes_for(bits);
      add(kernel_kind, bits, name_of(kind), real(2 * positions * columns * vector),
          real(4 * (3 * line + positions * vector)), [=, &set](Operands& o) -> Run {
            const std::uint8_t* prepared = weight_of(o, layout, set);
            auto* offsets = o.array<std::int64_t>(columns);
            for (std::int64_t k = 0; k < columns; ++k) offsets[k] = k / 3 * line + k % 3 * vector;
            bittensor::LanesBlock block{};
            block.codes = prepared + layout.codes_begin();
            block.scales = prepared + layout.scales_begin();
            block.zeros = prepared + layout.zeros_begin();
            block.x = o.floats(3 * line);
            block.offsets = offsets;
            block.rows = 1;
            block.positions = positions;
            block.position_stride = vector;
            block.weights = o.array<float>((columns + vector) * vector);
            block.y = o.array<float>(positions * vector);
            block.y_stride = vector;
            return [=]() mutable {
              block.layout = &layout;
              kernel(block);
            };
          });
    }
  }

  void panel_product(std::int64_t rows) {
    constexpr std::int64_t depth = 96;
    constexpr std::int64_t columns = 256;
    const bittensor::PanelProduct kernel = kernels_.gradient.panel_product;
    const double bytes = real(4 * (rows * depth + depth * columns + 2 * rows * columns));
    add(KernelKind::panel_product, 0, "m" + number(rows), real(2 * rows * depth * columns), bytes,
        [=](Operands& o) -> Run {
          bittensor::PanelProductBlock block{};
          block.dy_stride = depth;
          block.dy = o.floats(rows * depth);
          block.rows = rows;
          block.panel_stride = columns + bittensor::panel_unit;
          block.panel = o.floats(depth * block.panel_stride);
          block.depth = depth;
          block.tiles = columns / bittensor::panel_unit;
          block.sums_stride = block.panel_stride;
          block.sums = o.array<float>(rows * block.sums_stride);
          return [=] { kernel(block); };
        });
  }

  void codes_product(int bits, std::int64_t group_size) {
    constexpr std::int64_t columns = 1024;
    constexpr std::int64_t rows = 96;
    const PreparedLayout layout = layout_of(rows, columns, group_size, bits, ZeroKind::symmetric);
    const KernelSet& set = kernels_;
    const double bytes = real(layout.bytes() - layout.codes_begin() + 4 * (rows + columns));
    add(KernelKind::codes_product, bits, "g" + number(group_size), real(2 * rows * columns), bytes,
        [=, &set](Operands& o) -> Run {
          bittensor::CodesProductBlock block{};
          block.prepared = weight_of(o, layout, set);
          block.dy = o.floats(rows);
          block.dy_stride = rows;
          block.rows = 1;
          block.blocks = layout.blocks();
          block.sums = o.array<float>(columns);
          block.out = o.array<float>(columns);
          block.out_stride = columns;
          return [=, kernel = set.gradient.codes_product_for(bits)]() mutable {
            block.layout = &layout;
            kernel(block);
          };
        });
  }

  void transformer(FloatType type) {
    constexpr std::int64_t columns = 4096;
    const bittensor::TransformerKernels kernels = kernels_.transformer;
    const std::int64_t size = bittensor::bytes_of(type);
    add(KernelKind::normalize_row, 0, name_of(type), real(columns), real(columns * (size + 8)),
        [=](Operands& o) -> Run {
          const void* x = values_of(o, type, columns);
          const float* weight = o.floats(columns);
          auto* out = o.array<float>(columns);
          return [=] { kernels.normalize_row(x, type, columns, weight, 1e-5F, out); };
        });
    add(KernelKind::gate_row, 0, name_of(type), real(columns), real(columns * (2 * size + 4)), [=](Operands& o) -> Run {
      const void* x = values_of(o, type, 2 * columns);
      auto* out = o.array<float>(columns);
      return [=] { kernels.gate_row(x, type, columns, out); };
    });
    if (type != FloatType::f32) return;  // scores are float32 always
    for (const std::int64_t scored : {std::int64_t{32}, columns}) {
      add(KernelKind::softmax_row, 0, "k" + number(scored), real(scored), real(scored * 8), [=](Operands& o) -> Run {
        const float* scores = o.floats(scored);
        auto* weights = o.array<float>(scored);
        return [=] {
          std::copy_n(scores, scored, weights);
          kernels.softmax_row(weights, scored);
        };
      });
    }
  }

  /// Whole operations on one thread: the loop nests around the kernels.
  void operations() {
    const KernelSet& set = kernels_;
    constexpr std::int64_t rows = 12;
    constexpr std::int64_t columns = 300;
    constexpr std::int64_t outputs = 200;
    const std::string place = number(rows) + "x" + number(outputs) + "x" + number(columns);
    const double work = real(2 * rows * columns * outputs);
    for (const int bits : {4, 8}) {
      const std::int64_t row_words = bittensor::words_per_row(columns, bits);
      const double bytes = real(rows * columns + outputs * row_words * 8 + rows * outputs * 4);
      add("packed_matmul_b" + number(bits), place, work, bytes, [=, &set](Operands& o) -> Run {
        bittensor::PackedMatmul product;
        product.rows = rows;
        product.in_features = columns;
        product.out_features = outputs;
        product.bits = bits;
        product.x_codes = o.integers<std::uint8_t>(rows * columns, 0, bittensor::max_code(bits));
        product.weight = o.words(outputs * row_words);
        product.bias = o.integers<std::int32_t>(outputs, -100, 100);
        product.x_zero = 3;
        product.weight_zero = 5;
        product.out_sums = o.array<std::int32_t>(rows * outputs);
        return [=, &set] {
          if (bittensor::packed_matmul(product, set)) std::abort();
        };
      });
    }
    const PreparedLayout layout = layout_of(outputs, columns, 64, 4, ZeroKind::integer);
    const std::int64_t weight_bytes = layout.bytes() - layout.codes_begin();
    const double bytes = real(weight_bytes + 4 * rows * (columns + outputs));
    for (const bool int8 : {true, false}) {
      add(int8 ? "linear_int8" : "linear_float", place, work, bytes, [=, &set](Operands& o) -> Run {
        bittensor::Linear linear;
        linear.x = o.floats(rows * columns);
        linear.x_row_bytes = columns * 4;
        linear.rows = rows;
        linear.prepared = weight_of(o, layout, set);
        linear.layout = layout;
        linear.bias = o.floats(outputs);
        linear.activation = bittensor::Activation::gelu;
        linear.out = o.array<float>(rows * outputs);
        return [=, &set] { (int8 ? bittensor::linear_int8 : bittensor::linear_float)(linear, set, {}); };
      });
    }
    add("linear_input_grad", place, work, bytes, [=, &set](Operands& o) -> Run {
      bittensor::LinearInputGrad gradient;
      gradient.dy = o.floats(rows * outputs);
      gradient.dy_row_bytes = outputs * 4;
      gradient.rows = rows;
      gradient.prepared = weight_of(o, layout, set);
      gradient.layout = layout;
      gradient.out = o.array<float>(rows * columns);
      return [=, &set] { bittensor::linear_input_grad(gradient, set); };
    });
    const std::int64_t words = outputs * bittensor::words_per_row(columns, 4);
    add("prepare", place, real(outputs * columns), real(words * 8 + weight_bytes), [=, &set](Operands& o) -> Run {
      const std::int64_t groups = outputs * layout.groups();
      const bittensor::GroupQuantized weight = {
          o.words(words), values_of(o, layout.scale_type, groups), o.integers<std::uint8_t>(groups, 0, 15), nullptr};
      auto* prepared = o.array<std::uint8_t>(layout.bytes());
      return [=, &set] { bittensor::prepare(weight, layout, prepared, set); };
    });
    add("restore", place, real(outputs * columns), real(words * 8 + weight_bytes), [=, &set](Operands& o) -> Run {
      const std::uint8_t* prepared = weight_of(o, layout, set);
      const std::int64_t groups = outputs * layout.groups();
      const bittensor::GroupQuantizedOutput weight = {
          o.array<std::uint64_t>(words), o.array<std::uint16_t>(groups), o.array<std::uint8_t>(groups), nullptr};
      return [=, &set] { bittensor::restore(prepared, layout, weight, set); };
    });
  }

  const KernelSet& kernels_;
  std::string isa_;
  std::vector<Case> found_;
};

}  // namespace

std::vector<Case> cases_of(const KernelSet& kernels) {
  return Cases(kernels).all();
}
