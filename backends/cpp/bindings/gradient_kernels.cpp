// Kernels of the linear's gradient: panels of a weight as floats, and products of gradients with a weight.

#include <cstddef>
#include <cstdint>
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

void dequantize_panel(
    const std::string& kernel, const py::buffer& prepared, std::int64_t first_column, std::int64_t columns,
    const py::buffer& values) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::dequantize_panel);
  const Prepared weight(prepared);
  const bittensor::PreparedLayout& layout = weight.layout;
  if (layout.bits != entry.bits) throw std::invalid_argument("prepared: another width than the kernel's");
  if (first_column < 0 || columns < 1 || first_column >= layout.in_features ||
      columns > layout.in_features - first_column || first_column % layout.group_size % bittensor::panel_unit != 0) {
    throw std::invalid_argument("first_column, columns: expected columns of the weight, from the begin of a unit on");
  }
  const std::int64_t stride = columns + bittensor::panel_unit;
  bittensor::kernels_for(entry.isa).gradient.dequantize_panel_for(entry.bits)(
      {&layout, weight.bytes, 0, layout.tiles(), first_column, columns,
       view<float>("values", values, layout.tiles() * bittensor::tile_rows * stride), stride});
}

void panel_product(
    const std::string& kernel, std::int64_t rows, std::int64_t depth, std::int64_t tiles, const py::buffer& dy,
    const py::buffer& panel, bool continues, const py::buffer& sums) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::panel_product);
  if (rows < 1 || depth < 1 || tiles < 1) throw std::invalid_argument("rows, depth, tiles: expected at least 1");
  const std::int64_t columns = tiles * bittensor::panel_unit;
  bittensor::kernels_for(entry.isa).gradient.panel_product(
      {view<const float>("dy", dy, rows * depth), depth, rows, view<const float>("panel", panel, depth * columns),
       columns, depth, tiles, view<float>("sums", sums, rows * columns), columns, continues});
}

void codes_product(
    const std::string& kernel, const py::buffer& prepared, std::int64_t rows, const py::buffer& dy,
    const py::buffer& out) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::codes_product);
  const Prepared weight(prepared);
  const bittensor::PreparedLayout& layout = weight.layout;
  if (layout.bits != entry.bits) throw std::invalid_argument("prepared: another width than the kernel's");
  if (rows < 1) throw std::invalid_argument("rows: expected at least 1");
  const bittensor::GradientKernels& kernels = bittensor::kernels_for(entry.isa).gradient;
  const std::int64_t strips = (layout.blocks() + kernels.strip_blocks - 1) / kernels.strip_blocks;
  std::vector<float> sums(static_cast<std::size_t>(rows * strips * kernels.strip_blocks * layout.block_columns()));
  kernels.codes_product_for(entry.bits)(
      {&layout, weight.bytes, view<const float>("dy", dy, rows * layout.out_features), layout.out_features, rows, 0,
       layout.blocks(), sums.data(), view<float>("out", out, rows * layout.in_features), layout.in_features});
}

}  // namespace

void bind_gradient_kernels(py::module_& module) {
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
