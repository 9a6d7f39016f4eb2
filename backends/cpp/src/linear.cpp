// The group-quantized linear, and two of them in a row.

#include "bittensor/linear.hpp"

#include <stdexcept>
#include <string>

#include "count_call.hpp"
#include "linear_product.hpp"

namespace bittensor {
namespace {

[[noreturn]] void refuse_outputs(const Linear& linear) {
  throw std::invalid_argument(
      "first_output, outputs: expected rows of the weight, which has " + std::to_string(linear.layout.out_features) +
      ", got " + std::to_string(linear.outputs) + " from " + std::to_string(linear.first_output) + " on");
}

void check_operands(const Linear& linear) {
  const std::int64_t rows = linear.layout.out_features;
  const std::int64_t first = linear.first_output;
  if (first < 0 || first >= rows || linear.outputs < 0 || linear.outputs > rows - first) refuse_outputs(linear);
  if (linear.patches != nullptr && linear.prologue != Prologue::none) {
    throw std::invalid_argument("prologue: expected none with patches");
  }
}

void count_kernels(const Linear& linear, const KernelSet& kernels, int digits) {
  count_call(digits == 1 ? KernelKind::quantize_row : KernelKind::split_row, 0, kernels.isa);
  count_call(KernelKind::int8_linear, linear.layout.bits, kernels.isa);
  if (digits > 1) count_call(KernelKind::add_digits, 0, kernels.isa);
  count_call(KernelKind::store_outputs, 0, kernels.isa);
  if (linear.prologue == Prologue::rms_norm) count_call(KernelKind::normalize_row, 0, kernels.isa);
  if (linear.prologue == Prologue::swiglu) count_call(KernelKind::gate_row, 0, kernels.isa);
}

void run_linear(const Linear& linear, const KernelSet& kernels, const ParallelFor& parallel, int digits) {
  check_operands(linear);
  count_kernels(linear, kernels, digits);
  if (linear.rows > 0) Product(linear, kernels, digits).run(parallel);
}

void run_mlp(const Linear& up, const Linear& down, const KernelSet& kernels, const ParallelFor& parallel, int digits) {
  check_operands(up);
  check_operands(down);
  count_kernels(up, kernels, digits);
  count_kernels(down, kernels, digits);
  Product first(up, kernels, digits);
  Product second(down, kernels, digits);
  first.run_through(second, parallel);
}

}  // namespace

void linear_int8(const Linear& linear, const KernelSet& kernels, const ParallelFor& parallel) {
  run_linear(linear, kernels, parallel, 1);
}

void linear_float(const Linear& linear, const KernelSet& kernels, const ParallelFor& parallel) {
  run_linear(linear, kernels, parallel, activation_digits);
}

bool joins_in_mlp(const PreparedLayout& up, const PreparedLayout& down) {
  return Product::joins(up, down);
}

void mlp_int8(const Linear& up, const Linear& down, const KernelSet& kernels, const ParallelFor& parallel) {
  run_mlp(up, down, kernels, parallel, 1);
}

void mlp_float(const Linear& up, const Linear& down, const KernelSet& kernels, const ParallelFor& parallel) {
  run_mlp(up, down, kernels, parallel, activation_digits);
}

}  // namespace bittensor
