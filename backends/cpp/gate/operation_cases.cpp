// Cases of whole operations on one thread: the loop nests around the kernels.

#include <cstdint>
#include <cstdlib>
#include <string>

#include "bittensor/codes.hpp"
#include "bittensor/isa.hpp"
#include "bittensor/linear.hpp"
#include "bittensor/linear_gradient.hpp"
#include "bittensor/packed_matmul.hpp"
#include "bittensor/prepare.hpp"
#include "case_list.hpp"
#include "weight_operands.hpp"

using bittensor::KernelSet;
using bittensor::PreparedLayout;
using bittensor::ZeroKind;

void add_operation_cases(CaseList& cases) {
  const KernelSet& set = cases.kernels();
  constexpr std::int64_t rows = 12;
  constexpr std::int64_t columns = 300;
  constexpr std::int64_t outputs = 200;
  const std::string place = number(rows) + "x" + number(outputs) + "x" + number(columns);
  const double work = real(2 * rows * columns * outputs);
  for (const int bits : {4, 8}) {
    const std::int64_t row_words = bittensor::words_per_row(columns, bits);
    const double bytes = real(rows * columns + outputs * row_words * 8 + rows * outputs * 4);
    cases.add("packed_matmul_b" + number(bits), place, work, bytes, [=, &set](Operands& o) -> Run {
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
    cases.add(int8 ? "linear_int8" : "linear_float", place, work, bytes, [=, &set](Operands& o) -> Run {
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
  cases.add("linear_input_grad", place, work, bytes, [=, &set](Operands& o) -> Run {
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
  cases.add("prepare", place, real(outputs * columns), real(words * 8 + weight_bytes), [=, &set](Operands& o) -> Run {
    const std::int64_t groups = outputs * layout.groups();
    const bittensor::GroupQuantized weight = {
        o.words(words), values_of(o, layout.scale_type, groups), o.integers<std::uint8_t>(groups, 0, 15), nullptr};
    auto* prepared = o.array<std::uint8_t>(layout.bytes());
    return [=, &set] { bittensor::prepare(weight, layout, prepared, set); };
  });
  cases.add("restore", place, real(outputs * columns), real(words * 8 + weight_bytes), [=, &set](Operands& o) -> Run {
    const std::uint8_t* prepared = weight_of(o, layout, set);
    const std::int64_t groups = outputs * layout.groups();
    const bittensor::GroupQuantizedOutput weight = {
        o.array<std::uint64_t>(words), o.array<std::uint16_t>(groups), o.array<std::uint8_t>(groups), nullptr};
    return [=, &set] { bittensor::restore(prepared, layout, weight, set); };
  });
}
