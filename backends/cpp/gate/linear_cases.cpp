// Cases of the kernels of the linear: activations that become codes, the product, and its outputs.

#include <cstdint>
#include <string>

#include "bittensor/isa.hpp"
#include "bittensor/kernel_table.hpp"
#include "bittensor/prepare.hpp"
#include "case_list.hpp"
#include "weight_operands.hpp"

using bittensor::FloatType;
using bittensor::KernelKind;
using bittensor::KernelSet;
using bittensor::PreparedLayout;
using bittensor::ZeroKind;

namespace {

void activations(CaseList& cases, FloatType type, std::int64_t group_size) {
  constexpr std::int64_t columns = 4096;
  const bittensor::LinearKernels kernels = cases.kernels().linear;
  const PreparedLayout layout = layout_of(16, columns, group_size, 4, ZeroKind::symmetric);
  const std::string place = std::string(name_of(type)) + "-g" + number(group_size);
  const std::int64_t read = columns * bittensor::bytes_of(type);
  const std::int64_t factor_bytes = 4 * (layout.groups() + layout.activation_groups());
  cases.add(
      KernelKind::quantize_row, 0, place, real(columns), real(read + columns + factor_bytes), [=](Operands& o) -> Run {
        const void* x = values_of(o, type, columns);
        auto* codes = o.array<std::int8_t>(layout.padded_columns());
        auto* scales = o.array<float>(layout.activation_groups());
        auto* sums = o.array<std::int32_t>(layout.groups());
        return [=] { kernels.quantize_row(x, type, layout, codes, scales, sums); };
      });
  cases.add(KernelKind::widen_row, 0, place, real(columns), real(read + columns * 4), [=](Operands& o) -> Run {
    const void* x = values_of(o, type, columns);
    auto* values = o.array<float>(layout.padded_columns());
    return [=] { kernels.widen_row(x, type, layout, values); };
  });
  constexpr std::int64_t digits = bittensor::activation_digits;
  cases.add(
      KernelKind::split_row, 0, place, real(columns), real(read + digits * (columns + factor_bytes)),
      [=](Operands& o) -> Run {
        const void* x = values_of(o, type, columns);
        const bittensor::DigitRows to = {
            o.array<std::int8_t>(digits * layout.padded_columns()), layout.padded_columns(),
            o.array<float>(digits * layout.activation_groups()),    layout.activation_groups(),
            o.array<std::int32_t>(digits * layout.groups()),        layout.groups()};
        return [=] { kernels.split_row(x, type, layout, to); };
      });
}

void add_digits(CaseList& cases) {
  constexpr std::int64_t columns = 384;
  const bittensor::AddDigits kernel = cases.kernels().linear.add_digits;
  const std::int64_t values = bittensor::activation_digits * epilogue_rows * columns;
  cases.add(
      KernelKind::add_digits, 0, "n384", real(values), real(4 * (values + epilogue_rows * columns)),
      [=](Operands& o) -> Run {
        auto* y = o.array<float>(values);
        return [=] { kernel(y, epilogue_rows, columns, columns); };
      });
}

void store_outputs(
    CaseList& cases, FloatType type, bittensor::Activation activation, const char* name, bool residual = false) {
  constexpr std::int64_t columns = 384;
  const bittensor::StoreOutputs kernel = cases.kernels().linear.store_outputs;
  const std::int64_t row_bytes = columns * bittensor::bytes_of(type);
  const double bytes = real(epilogue_rows * (columns * 4 + row_bytes * (residual ? 2 : 1)) + columns * 4);
  const std::string place = std::string(name_of(type)) + "-" + name + (residual ? "-residual" : "");
  cases.add(KernelKind::store_outputs, 0, place, real(epilogue_rows * columns), bytes, [=](Operands& o) -> Run {
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

void linear(CaseList& cases, int bits, std::int64_t rows, std::int64_t group_size, ZeroKind kind) {
  constexpr std::int64_t columns = 512;
  const PreparedLayout layout = layout_of(192, columns, group_size, bits, kind);
  const std::int64_t outputs = layout.tiles() * bittensor::tile_rows;
  const std::string place = "m" + number(rows) + "-g" + number(group_size) + "-" + name_of(kind);
  const double work = real(2 * rows * columns * outputs);
  const std::int64_t weight_bytes = layout.bytes() - layout.codes_begin();
  const KernelSet& set = cases.kernels();
  const std::int64_t factor_bytes = 4 * (layout.groups() + layout.activation_groups());
  const double int8_bytes = real(weight_bytes + rows * (columns + factor_bytes + 4 * outputs));
  cases.add(KernelKind::int8_linear, bits, place, work, int8_bytes, [=, &set](Operands& o) -> Run {
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
          x + m * columns, FloatType::f32, layout, codes + m * block.x_stride, scales + m * layout.activation_groups(),
          sums + m * layout.groups());
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
    block.decodes = true;
    block.y_stride = outputs;
    block.y = o.array<float>(rows * outputs);
    return [=, kernel = set.linear.int8_linear_for(bits)]() mutable {
      block.layout = &layout;
      kernel(block);
    };
  });
}

}  // namespace

void add_linear_cases(CaseList& cases) {
  for (const FloatType type : float_types) {
    for (const std::int64_t group_size : {32, 128}) activations(cases, type, group_size);
  }
  add_digits(cases);
  using bittensor::Activation;
  for (const FloatType type : float_types) {
    for (const bool residual : {false, true}) store_outputs(cases, type, Activation::none, "none", residual);
  }
  store_outputs(cases, FloatType::f32, Activation::relu, "relu");
  store_outputs(cases, FloatType::f32, Activation::gelu, "gelu");
  store_outputs(cases, FloatType::f32, Activation::silu, "silu");
  for (const int bits : linear_widths) {
    for (const std::int64_t rows : {1, 3, 16}) linear(cases, bits, rows, 128, ZeroKind::symmetric);
    linear(cases, bits, 16, 32, ZeroKind::symmetric);
    linear(cases, bits, 16, 128, ZeroKind::integer);
    linear(cases, bits, 16, 128, ZeroKind::offset);
  }
}
