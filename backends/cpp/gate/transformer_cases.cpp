// Cases of the kernels of transformers beside the linear: rows of an embedding, normalization, the gate and softmax.

#include <algorithm>
#include <cstdint>

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

/// As an embedding takes rows: here every third.
void dequantize_row(CaseList& cases, int bits, ZeroKind kind) {
  constexpr std::int64_t columns = 1024;
  constexpr std::int64_t rows = 32;
  constexpr std::int64_t step = 3;
  const PreparedLayout layout = layout_of(step * rows, columns, 64, bits, kind);
  const KernelSet& set = cases.kernels();
  const double bytes = real((layout.bytes() - layout.codes_begin()) / step + rows * columns * 4);
  cases.add(
      KernelKind::dequantize_row, bits, name_of(kind), real(rows * columns), bytes, [=, &set](Operands& o) -> Run {
        const std::uint8_t* prepared = weight_of(o, layout, set);
        auto* values = o.array<float>(rows * columns);
        return [=, kernel = set.embedding.dequantize_row_for(bits)] {
          for (std::int64_t r = 0; r < rows; ++r) kernel(layout, prepared, step * r, values + r * columns);
        };
      });
}

void transformer(CaseList& cases, FloatType type) {
  constexpr std::int64_t columns = 4096;
  const bittensor::TransformerKernels kernels = cases.kernels().transformer;
  const std::int64_t size = bittensor::bytes_of(type);
  cases.add(
      KernelKind::normalize_row, 0, name_of(type), real(columns), real(columns * (size + 8)), [=](Operands& o) -> Run {
        const void* x = values_of(o, type, columns);
        const float* weight = o.floats(columns);
        auto* out = o.array<float>(columns);
        return [=] { kernels.normalize_row(x, type, columns, weight, 1e-5F, out); };
      });
  cases.add(
      KernelKind::gate_row, 0, name_of(type), real(columns), real(columns * (2 * size + 4)), [=](Operands& o) -> Run {
        const void* x = values_of(o, type, 2 * columns);
        auto* out = o.array<float>(columns);
        return [=] { kernels.gate_row(x, type, columns, out); };
      });
  if (type != FloatType::f32) return;  // scores are float32 always
  for (const std::int64_t scored : {std::int64_t{32}, columns}) {
    cases.add(
        KernelKind::softmax_row, 0, "k" + number(scored), real(scored), real(scored * 8), [=](Operands& o) -> Run {
          const float* scores = o.floats(scored);
          auto* weights = o.array<float>(scored);
          return [=] {
            std::copy_n(scores, scored, weights);
            kernels.softmax_row(weights, scored);
          };
        });
  }
}

}  // namespace

void add_transformer_cases(CaseList& cases) {
  for (const int bits : linear_widths) {
    for (const ZeroKind kind : {ZeroKind::symmetric, ZeroKind::offset}) dequantize_row(cases, bits, kind);
  }
  for (const FloatType type : float_types) transformer(cases, type);
}
