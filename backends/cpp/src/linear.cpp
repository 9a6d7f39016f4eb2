// The group-quantized linear, and two of them in a row.

#include "bittensor/linear.hpp"

#include "linear_product.hpp"

namespace bittensor {
namespace {

void count_kernels(const Linear& linear, const KernelSet& kernels, int digits) {
  count_call(digits == 1 ? KernelKind::quantize_row : KernelKind::split_row, 0, kernels.isa);
  count_call(KernelKind::int8_linear, linear.layout.bits, kernels.isa);
  if (digits > 1) count_call(KernelKind::add_digits, 0, kernels.isa);
  count_call(KernelKind::store_outputs, 0, kernels.isa);
  if (linear.prologue == Prologue::rms_norm) count_call(KernelKind::normalize_row, 0, kernels.isa);
  if (linear.prologue == Prologue::swiglu) count_call(KernelKind::gate_row, 0, kernels.isa);
}

void run_linear(const Linear& linear, const KernelSet& kernels, const ParallelFor& parallel, int digits) {
  count_kernels(linear, kernels, digits);
  if (linear.rows > 0) Product(linear, kernels, digits).run(parallel);
}

void run_mlp(const Linear& up, const Linear& down, const KernelSet& kernels, const ParallelFor& parallel, int digits) {
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
