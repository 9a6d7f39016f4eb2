// Kernels of transformers beside the linear: rows of an embedding, normalization, the gate and softmax.

#include <cstdint>
#include <stdexcept>
#include <string>

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
  const bittensor::PreparedLayout& layout = weight.layout;
  if (layout.bits != entry.bits) throw std::invalid_argument("prepared: another width than the kernel's");
  if (row < 0 || row >= layout.out_features) throw std::invalid_argument("row: expected one of the weight");
  bittensor::kernels_for(entry.isa).embedding.dequantize_row_for(entry.bits)(
      layout, weight.bytes, row, view<float>("values", values, layout.in_features + bittensor::row_padding));
}

void normalize_row(
    const std::string& kernel, const py::buffer& x, std::int64_t columns, const std::string& type,
    const py::buffer& weight, float epsilon, const py::buffer& out) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::normalize_row);
  const bittensor::FloatType x_type = float_type(type);
  bittensor::kernels_for(entry.isa).transformer.normalize_row(
      view<const std::uint8_t>("x", x, columns * bittensor::bytes_of(x_type)), x_type, columns,
      view<const float>("weight", weight, columns), epsilon, view<float>("out", out, columns));
}

void gate_row(
    const std::string& kernel, const py::buffer& x, std::int64_t columns, const std::string& type,
    const py::buffer& out) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::gate_row);
  const bittensor::FloatType x_type = float_type(type);
  bittensor::kernels_for(entry.isa).transformer.gate_row(
      view<const std::uint8_t>("x", x, 2 * columns * bittensor::bytes_of(x_type)), x_type, columns,
      view<float>("out", out, columns));
}

void softmax_row(const std::string& kernel, const py::buffer& scores, std::int64_t columns) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::softmax_row);
  if (columns < 1) throw std::invalid_argument("columns: expected at least 1");
  bittensor::kernels_for(entry.isa).transformer.softmax_row(
      view<float>("scores", scores, (columns + 15) / 16 * 16), columns);
}

}  // namespace

void bind_transformer_kernels(py::module_& module) {
  module.def(
      "dequantize_row", &dequantize_row, py::arg("kernel"), py::arg("prepared"), py::arg("row"), py::arg("values"));
  module.def(
      "normalize_row", &normalize_row, py::arg("kernel"), py::arg("x"), py::arg("columns"), py::arg("dtype"),
      py::arg("weight"), py::arg("epsilon"), py::arg("out"));
  module.def(
      "gate_row", &gate_row, py::arg("kernel"), py::arg("x"), py::arg("columns"), py::arg("dtype"), py::arg("out"));
  module.def("softmax_row", &softmax_row, py::arg("kernel"), py::arg("scores"), py::arg("columns"));
}

}  // namespace bittensor::binding
