// Cases of the kernels of convolutions with few channels in a group.

#include <cstdint>

#include "bittensor/isa.hpp"
#include "bittensor/kernel_table.hpp"
#include "bittensor/prepare.hpp"
#include "case_list.hpp"
#include "weight_operands.hpp"

using bittensor::KernelKind;
using bittensor::KernelSet;
using bittensor::PreparedLayout;
using bittensor::ZeroKind;

namespace {

/// As a depthwise convolution of 3 x 3 takes lines of an image.
void lanes(CaseList& cases, int bits, ZeroKind kind) {
  constexpr std::int64_t columns = 9;
  constexpr std::int64_t positions = 56;
  constexpr std::int64_t vector = bittensor::tile_rows;
  constexpr std::int64_t line = (positions + 2) * vector;
  const PreparedLayout layout = layout_of(vector, columns, columns, bits, kind);
  const KernelSet& set = cases.kernels();
  for (const KernelKind kernel_kind : {KernelKind::int8_lanes, KernelKind::float_lanes}) {
    const auto kernel = kernel_kind == KernelKind::int8_lanes ? set.convolution.int8_lanes_for(bits)
                                                              : set.convolution.float_lanes_for(bits);
    cases.add(
        kernel_kind, bits, name_of(kind), real(2 * positions * columns * vector),
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

}  // namespace

void add_convolution_cases(CaseList& cases) {
  for (const int bits : linear_widths) {
    for (const ZeroKind kind : {ZeroKind::symmetric, ZeroKind::offset}) lanes(cases, bits, kind);
  }
}
