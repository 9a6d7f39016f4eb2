// Kernels of other layers: rows of embeddings, normalization, gates and attention; and convolutions with few channels
// in a group, where every row of a tile has activations of its own.

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

void dequantize_row(const std::string& kernel, const py::buffer& prepared, std::int64_t row, const py::buffer& values) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::dequantize_row);
  const Prepared weight(prepared);
  const PreparedLayout& layout = weight.layout;
  if (layout.bits != entry.bits) throw std::invalid_argument("prepared: another width than the kernel's");
  if (row < 0 || row >= layout.out_features) throw std::invalid_argument("row: expected one of the weight");
  kernels_for(entry.isa).embedding.dequantize_row_for(entry.bits)(
      layout, weight.bytes, row, view<float>("values", values, layout.in_features + row_padding));
}

void normalize_row(
    const std::string& kernel, const py::buffer& x, std::int64_t columns, const std::string& type,
    const py::buffer& weight, float epsilon, const py::buffer& out) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::normalize_row);
  const FloatType x_type = float_type(type);
  kernels_for(entry.isa).transformer.normalize_row(
      view<const std::uint8_t>("x", x, count_of(columns, bytes_of(x_type))), x_type, columns,
      view<const float>("weight", weight, columns), epsilon, view<float>("out", out, columns));
}

void gate_row(
    const std::string& kernel, const py::buffer& x, std::int64_t columns, const std::string& type,
    const py::buffer& out) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::gate_row);
  const FloatType x_type = float_type(type);
  kernels_for(entry.isa).transformer.gate_row(
      view<const std::uint8_t>("x", x, count_of(2, columns, bytes_of(x_type))), x_type, columns,
      view<float>("out", out, columns));
}

void softmax_row(const std::string& kernel, const py::buffer& scores, std::int64_t columns) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::softmax_row);
  if (columns < 1) throw std::invalid_argument("columns: expected at least 1");
  kernels_for(entry.isa).transformer.softmax_row(
      view<float>("scores", scores, count_of((columns - 1) / 16 + 1, 16)), columns);
}

/// Patches that follow each other, [positions, in_features, tile_rows], against the first tile of the weight.
void multiply_lanes(
    const KernelEntry& entry, const py::buffer& prepared, std::int64_t positions, const py::buffer& x,
    const py::buffer& y) {
  const Prepared weight(prepared);
  const PreparedLayout& layout = weight.layout;
  if (layout.bits != entry.bits) throw std::invalid_argument("prepared: another width than the kernel's");
  const bool int8 = entry.kind == KernelKind::int8_lanes;
  if (int8 && layout.group_size > most_int8_lanes_columns(layout.bits)) {
    throw std::invalid_argument("prepared: groups of more columns than are exact");
  }
  if (positions < 0) throw std::invalid_argument("positions: expected at least 0");
  constexpr std::int64_t vector = tile_rows;
  std::vector<std::int64_t> offsets(static_cast<std::size_t>(layout.in_features));
  for (std::size_t k = 0; k < offsets.size(); ++k) offsets[k] = static_cast<std::int64_t>(k) * vector;
  std::vector<float> weights(static_cast<std::size_t>((layout.in_features + vector) * vector));
  LanesBlock block{};
  block.layout = &layout;
  block.codes = weight.bytes + layout.codes_begin();
  block.scales = weight.bytes + layout.scales_begin();
  block.zeros = weight.bytes + layout.zeros_begin();
  block.x = view<const float>("x", x, count_of(positions, layout.in_features, vector));
  block.offsets = offsets.data();
  block.rows = positions > 0 ? 1 : 0;
  block.positions = positions;
  block.position_stride = layout.in_features * vector;
  block.weights = weights.data();
  block.y = view<float>("y", y, count_of(positions, vector));
  block.y_stride = vector;
  const ConvolutionKernels& kernels = kernels_for(entry.isa).convolution;
  (int8 ? kernels.int8_lanes_for(entry.bits) : kernels.float_lanes_for(entry.bits))(block);
}

void int8_lanes(
    const std::string& kernel, const py::buffer& prepared, std::int64_t positions, const py::buffer& x,
    const py::buffer& y) {
  multiply_lanes(find_kernel(kernel, KernelKind::int8_lanes), prepared, positions, x, y);
}

void float_lanes(
    const std::string& kernel, const py::buffer& prepared, std::int64_t positions, const py::buffer& x,
    const py::buffer& y) {
  multiply_lanes(find_kernel(kernel, KernelKind::float_lanes), prepared, positions, x, y);
}

}  // namespace

void bind_layer_kernels(py::module_& module) {
  module.def(
      "dequantize_row", &dequantize_row, py::arg("kernel"), py::arg("prepared"), py::arg("row"), py::arg("values"));
  module.def(
      "normalize_row", &normalize_row, py::arg("kernel"), py::arg("x"), py::arg("columns"), py::arg("dtype"),
      py::arg("weight"), py::arg("epsilon"), py::arg("out"));
  module.def(
      "gate_row", &gate_row, py::arg("kernel"), py::arg("x"), py::arg("columns"), py::arg("dtype"), py::arg("out"));
  module.def("softmax_row", &softmax_row, py::arg("kernel"), py::arg("scores"), py::arg("columns"));
  module.def(
      "int8_lanes", &int8_lanes, py::arg("kernel"), py::arg("prepared"), py::arg("positions"), py::arg("x"),
      py::arg("y"));
  module.def(
      "float_lanes", &float_lanes, py::arg("kernel"), py::arg("prepared"), py::arg("positions"), py::arg("x"),
      py::arg("y"));
}

}  // namespace bittensor::binding
