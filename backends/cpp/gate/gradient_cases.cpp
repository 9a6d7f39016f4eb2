// Cases of the kernels of the linear's gradient: panels of a weight as floats, and products with them or with codes.

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

void dequantize_panel(CaseList& cases, int bits, ZeroKind kind) {
  constexpr std::int64_t columns = 256;
  constexpr std::int64_t rows = 96;
  const PreparedLayout layout = layout_of(rows, columns, 128, bits, kind);
  const KernelSet& set = cases.kernels();
  const double bytes = real(layout.bytes() - layout.codes_begin() + rows * columns * 4);
  cases.add(
      KernelKind::dequantize_panel, bits, name_of(kind), real(rows * columns), bytes, [=, &set](Operands& o) -> Run {
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

void panel_product(CaseList& cases, std::int64_t rows) {
  constexpr std::int64_t depth = 96;
  constexpr std::int64_t columns = 256;
  const bittensor::PanelProduct kernel = cases.kernels().gradient.panel_product;
  const double bytes = real(4 * (rows * depth + depth * columns + 2 * rows * columns));
  cases.add(
      KernelKind::panel_product, 0, "m" + number(rows), real(2 * rows * depth * columns), bytes,
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

void codes_product(CaseList& cases, int bits, std::int64_t group_size) {
  constexpr std::int64_t columns = 1024;
  constexpr std::int64_t rows = 96;
  const PreparedLayout layout = layout_of(rows, columns, group_size, bits, ZeroKind::symmetric);
  const KernelSet& set = cases.kernels();
  const double bytes = real(layout.bytes() - layout.codes_begin() + 4 * (rows + columns));
  cases.add(
      KernelKind::codes_product, bits, "g" + number(group_size), real(2 * rows * columns), bytes,
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

}  // namespace

void add_gradient_cases(CaseList& cases) {
  for (const int bits : linear_widths) {
    for (const ZeroKind kind : {ZeroKind::symmetric, ZeroKind::offset}) dequantize_panel(cases, bits, kind);
  }
  for (const std::int64_t rows : {1, 16}) panel_product(cases, rows);
  for (const int bits : linear_widths) {
    for (const std::int64_t group_size : {32, 128}) codes_product(cases, bits, group_size);
  }
}
