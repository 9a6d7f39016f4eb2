// Kernels of the linear: activations that become codes, the product and its outputs; and of its gradient: panels of a
// weight as floats, and products of gradients with a weight.

#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bittensor/isa.hpp"
#include "bittensor/kernel_table.hpp"
#include "bittensor/prepare.hpp"
#include "kernel_operands.hpp"
#include "native_module.hpp"

namespace bittensor::binding {
namespace {

Activation activation_named(const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "gelu") return Activation::gelu;
  if (name == "silu") return Activation::silu;
  throw std::invalid_argument("activation: expected none, relu, gelu or silu, got '" + name + "'");
}

const LinearKernels& linear_kernels(const KernelEntry& entry) {
  return kernels_for(entry.isa).linear;
}

std::int64_t prepared_bytes(
    std::int64_t out_features, std::int64_t in_features, int bits, std::int64_t group_size, int zero,
    const std::string& scale_type) {
  if (zero < 0 || zero > 2) throw std::invalid_argument("zero: expected 0, 1 or 2");
  const PreparedLayout layout = {
      out_features, in_features, group_size, bits, float_type(scale_type), static_cast<ZeroKind>(zero)};
  check_layout(layout);
  return layout.bytes();
}

void quantize_row(
    const std::string& kernel, const py::buffer& prepared, const py::buffer& x, const std::string& type,
    const py::buffer& codes, const py::buffer& scales, const py::buffer& sums) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::quantize_row);
  const Prepared weight(prepared);
  const FloatType x_type = float_type(type);
  linear_kernels(entry).quantize_row(
      view<const std::uint8_t>("x", x, weight.layout.in_features * bytes_of(x_type)), x_type, weight.layout,
      view<std::int8_t>("codes", codes, weight.layout.padded_columns()),
      view<float>("scales", scales, weight.layout.activation_groups()),
      view<std::int32_t>("sums", sums, weight.layout.groups()));
}

void widen_row(
    const std::string& kernel, const py::buffer& prepared, const py::buffer& x, const std::string& type,
    const py::buffer& values) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::widen_row);
  const Prepared weight(prepared);
  const FloatType x_type = float_type(type);
  linear_kernels(entry).widen_row(
      view<const std::uint8_t>("x", x, weight.layout.in_features * bytes_of(x_type)), x_type, weight.layout,
      view<float>("values", values, weight.layout.padded_columns()));
}

/// Codes, scales and sums have a row for each digit.
void split_row(
    const std::string& kernel, const py::buffer& prepared, const py::buffer& x, const std::string& type,
    const py::buffer& codes, const py::buffer& scales, const py::buffer& sums) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::split_row);
  const Prepared weight(prepared);
  const PreparedLayout& layout = weight.layout;
  const FloatType x_type = float_type(type);
  constexpr std::int64_t digits = activation_digits;
  linear_kernels(entry).split_row(
      view<const std::uint8_t>("x", x, layout.in_features * bytes_of(x_type)), x_type, layout,
      {view<std::int8_t>("codes", codes, digits * layout.padded_columns()), layout.padded_columns(),
       view<float>("scales", scales, digits * layout.activation_groups()), layout.activation_groups(),
       view<std::int32_t>("sums", sums, digits * layout.groups()), layout.groups()});
}

void add_digits(const std::string& kernel, const py::buffer& y, std::int64_t rows, std::int64_t columns) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::add_digits);
  if (rows < 1 || columns < 1 || columns % tile_rows != 0) {
    throw std::invalid_argument("rows, columns: expected at least one row, and whole tiles of columns");
  }
  linear_kernels(entry).add_digits(
      view<float>("y", y, count_of(activation_digits, rows, columns)), rows, columns, columns);
}

void int8_linear(
    const std::string& kernel, const py::buffer& prepared, std::int64_t rows, const py::buffer& x,
    const py::buffer& scales, const py::buffer& sums, const py::buffer& y, std::int64_t row_tiles, bool next_run,
    bool decodes) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::int8_linear);
  const Prepared weight(prepared);
  if (weight.layout.bits != entry.bits) throw std::invalid_argument("prepared: another width than the kernel's");
  if (rows < 1) throw std::invalid_argument("rows: expected at least 1");
  if (row_tiles < 1 || row_tiles > 3) throw std::invalid_argument("row_tiles: expected 1 to 3");
  const PreparedLayout& layout = weight.layout;
  Int8LinearBlock block{};  // all tiles, all groups, rows without gaps
  block.layout = &layout;
  block.codes = weight.bytes + layout.codes_begin();
  block.scales = weight.bytes + layout.scales_begin();
  block.zeros = weight.bytes + layout.zeros_begin();
  block.tiles = layout.tiles();
  block.x_stride = layout.padded_columns();
  block.rows = rows;
  block.y_stride = layout.tiles() * tile_rows;
  block.y = view<float>("y", y, count_of(rows, block.y_stride));
  block.x = view<const std::int8_t>("x", x, count_of(rows, block.x_stride));
  block.x_group_stride = rows;
  block.x_scales = view<const float>("scales", scales, count_of(rows, layout.activation_groups()));
  block.x_sums = view<const std::int32_t>("sums", sums, count_of(rows, layout.groups()));
  const std::vector<float> totals(block.x_sums, block.x_sums + rows * layout.groups());
  block.x_totals = totals.data();
  block.tiles_to_come = block.tiles;
  block.fetch.row_tiles = row_tiles;
  block.fetch.next_run = next_run;
  block.is_large = true;
  block.decodes = decodes;
  linear_kernels(entry).int8_linear_for(entry.bits)(block);
}

void store_outputs(
    const std::string& kernel, const py::buffer& y, std::int64_t columns, const std::optional<py::buffer>& bias,
    const std::string& activation, const std::string& type, const py::buffer& out) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::store_outputs);
  const FloatType out_type = float_type(type);
  linear_kernels(entry).store_outputs(
      view<const float>("y", y, columns), columns, bias ? view<const float>("bias", *bias, columns) : nullptr,
      activation_named(activation), nullptr, out_type,
      view<std::uint8_t>("out", out, count_of(columns, bytes_of(out_type))));
}

void dequantize_panel(
    const std::string& kernel, const py::buffer& prepared, std::int64_t first_column, std::int64_t columns,
    const py::buffer& values) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::dequantize_panel);
  const Prepared weight(prepared);
  const PreparedLayout& layout = weight.layout;
  if (layout.bits != entry.bits) throw std::invalid_argument("prepared: another width than the kernel's");
  if (first_column < 0 || columns < 1 || first_column >= layout.in_features ||
      columns > layout.in_features - first_column || first_column % layout.group_size % panel_unit != 0) {
    throw std::invalid_argument("first_column, columns: expected columns of the weight, from the begin of a unit on");
  }
  const std::int64_t stride = columns + panel_unit;
  kernels_for(entry.isa).gradient.dequantize_panel_for(entry.bits)(
      {&layout, weight.bytes, 0, layout.tiles(), first_column, columns,
       view<float>("values", values, layout.tiles() * tile_rows * stride), stride});
}

void panel_product(
    const std::string& kernel, std::int64_t rows, std::int64_t depth, std::int64_t tiles, const py::buffer& dy,
    const py::buffer& panel, bool continues, const py::buffer& sums) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::panel_product);
  if (rows < 1 || depth < 1 || tiles < 1) throw std::invalid_argument("rows, depth, tiles: expected at least 1");
  const std::int64_t columns = count_of(tiles, panel_unit);
  kernels_for(entry.isa).gradient.panel_product(
      {view<const float>("dy", dy, count_of(rows, depth)), depth, rows,
       view<const float>("panel", panel, count_of(depth, columns)), columns, depth, tiles,
       view<float>("sums", sums, count_of(rows, columns)), columns, continues});
}

void codes_product(
    const std::string& kernel, const py::buffer& prepared, std::int64_t rows, const py::buffer& dy,
    const py::buffer& out) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::codes_product);
  const Prepared weight(prepared);
  const PreparedLayout& layout = weight.layout;
  if (layout.bits != entry.bits) throw std::invalid_argument("prepared: another width than the kernel's");
  if (rows < 1) throw std::invalid_argument("rows: expected at least 1");
  const GradientKernels& kernels = kernels_for(entry.isa).gradient;
  const std::int64_t strips = (layout.blocks() + kernels.strip_blocks - 1) / kernels.strip_blocks;
  const auto* dy_values = view<const float>("dy", dy, count_of(rows, layout.out_features));
  auto* out_values = view<float>("out", out, count_of(rows, layout.in_features));
  std::vector<float> sums(
      static_cast<std::size_t>(count_of(rows, strips, kernels.strip_blocks, layout.block_columns())));
  kernels.codes_product_for(entry.bits)(
      {&layout, weight.bytes, dy_values, layout.out_features, rows, 0, layout.blocks(), sums.data(), out_values,
       layout.in_features});
}

}  // namespace

void bind_linear_kernels(py::module_& module) {
  module.def(
      "prepared_bytes", &prepared_bytes, py::arg("out_features"), py::arg("in_features"), py::arg("bits"),
      py::arg("group_size"), py::arg("zero"), py::arg("scale_type"), "Bytes of a prepared weight of that form.");
  module.def(
      "quantize_row", &quantize_row, py::arg("kernel"), py::arg("prepared"), py::arg("x"), py::arg("dtype"),
      py::arg("codes"), py::arg("scales"), py::arg("sums"));
  module.def(
      "widen_row", &widen_row, py::arg("kernel"), py::arg("prepared"), py::arg("x"), py::arg("dtype"),
      py::arg("values"));
  module.def(
      "split_row", &split_row, py::arg("kernel"), py::arg("prepared"), py::arg("x"), py::arg("dtype"), py::arg("codes"),
      py::arg("scales"), py::arg("sums"));
  module.def("add_digits", &add_digits, py::arg("kernel"), py::arg("y"), py::arg("rows"), py::arg("columns"));
  module.def(
      "int8_linear", &int8_linear, py::arg("kernel"), py::arg("prepared"), py::arg("rows"), py::arg("x"),
      py::arg("scales"), py::arg("sums"), py::arg("y"), py::arg("row_tiles") = 2, py::arg("next_run") = false,
      py::arg("decodes") = false);
  module.def(
      "store_outputs", &store_outputs, py::arg("kernel"), py::arg("y"), py::arg("columns"), py::arg("bias"),
      py::arg("activation"), py::arg("dtype"), py::arg("out"));
  module.def(
      "dequantize_panel", &dequantize_panel, py::arg("kernel"), py::arg("prepared"), py::arg("first_column"),
      py::arg("columns"), py::arg("values"));
  module.def(
      "panel_product", &panel_product, py::arg("kernel"), py::arg("rows"), py::arg("depth"), py::arg("tiles"),
      py::arg("dy"), py::arg("panel"), py::arg("continues"), py::arg("sums"));
  module.def(
      "codes_product", &codes_product, py::arg("kernel"), py::arg("prepared"), py::arg("rows"), py::arg("dy"),
      py::arg("out"));
}

}  // namespace bittensor::binding
