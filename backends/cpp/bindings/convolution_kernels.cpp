// Kernels of convolutions with few channels in a group: every row of a tile has activations of its own.

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

/// Patches that follow each other, [positions, in_features, tile_rows], against the first tile of the weight.
void multiply_lanes(
    const KernelEntry& entry, const py::buffer& prepared, std::int64_t positions, const py::buffer& x,
    const py::buffer& y) {
  const Prepared weight(prepared);
  const bittensor::PreparedLayout& layout = weight.layout;
  if (layout.bits != entry.bits) throw std::invalid_argument("prepared: another width than the kernel's");
  const bool int8 = entry.kind == KernelKind::int8_lanes;
  if (int8 && layout.group_size > bittensor::most_int8_lanes_columns(layout.bits)) {
    throw std::invalid_argument("prepared: groups of more columns than are exact");
  }
  if (positions < 0) throw std::invalid_argument("positions: expected at least 0");
  constexpr std::int64_t vector = bittensor::tile_rows;
  std::vector<std::int64_t> offsets(static_cast<std::size_t>(layout.in_features));
  for (std::size_t k = 0; k < offsets.size(); ++k) offsets[k] = static_cast<std::int64_t>(k) * vector;
  std::vector<float> weights(static_cast<std::size_t>((layout.in_features + vector) * vector));
  bittensor::LanesBlock block{};
  block.layout = &layout;
  block.codes = weight.bytes + layout.codes_begin();
  block.scales = weight.bytes + layout.scales_begin();
  block.zeros = weight.bytes + layout.zeros_begin();
  block.x = view<const float>("x", x, positions * layout.in_features * vector);
  block.offsets = offsets.data();
  block.rows = positions > 0 ? 1 : 0;
  block.positions = positions;
  block.position_stride = layout.in_features * vector;
  block.weights = weights.data();
  block.y = view<float>("y", y, positions * vector);
  block.y_stride = vector;
  const bittensor::ConvolutionKernels& kernels = bittensor::kernels_for(entry.isa).convolution;
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

void bind_convolution_kernels(py::module_& module) {
  module.def(
      "int8_lanes", &int8_lanes, py::arg("kernel"), py::arg("prepared"), py::arg("positions"), py::arg("x"),
      py::arg("y"));
  module.def(
      "float_lanes", &float_lanes, py::arg("kernel"), py::arg("prepared"), py::arg("positions"), py::arg("x"),
      py::arg("y"));
}

}  // namespace bittensor::binding
