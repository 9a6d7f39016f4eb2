// The group-quantized linear, and two of them in a row.

#include "bittensor/linear.hpp"

#include "linear_product.hpp"

namespace bittensor {
namespace {

template <class Mode>
void count_kernels(const Linear& linear, const KernelSet& kernels) {
  Mode::count_calls(kernels, linear.layout.bits);
  count_call(KernelKind::store_outputs, 0, kernels.isa);
  if (linear.prologue == Prologue::rms_norm) count_call(KernelKind::normalize_row, 0, kernels.isa);
  if (linear.prologue == Prologue::swiglu) count_call(KernelKind::gate_row, 0, kernels.isa);
}

template <class Mode>
void run_linear(const Linear& linear, const KernelSet& kernels, const ParallelFor& parallel) {
  count_kernels<Mode>(linear, kernels);
  if (linear.rows > 0) Product<Mode>(linear, kernels).run(parallel);
}

template <class Mode>
void run_mlp(const Linear& up, const Linear& down, const KernelSet& kernels, const ParallelFor& parallel) {
  count_kernels<Mode>(up, kernels);
  count_kernels<Mode>(down, kernels);
  Product<Mode> first(up, kernels);
  Product<Mode> second(down, kernels);
  first.run_through(second, parallel);
}

}  // namespace

void linear_int8(const Linear& linear, const KernelSet& kernels, const ParallelFor& parallel) {
  run_linear<Int8Mode>(linear, kernels, parallel);
}

void linear_float(const Linear& linear, const KernelSet& kernels, const ParallelFor& parallel) {
  run_linear<FloatMode>(linear, kernels, parallel);
}

bool joins_in_mlp(const PreparedLayout& up, const PreparedLayout& down) {
  return Product<Int8Mode>::joins(up, down);
}

void mlp_int8(const Linear& up, const Linear& down, const KernelSet& kernels, const ParallelFor& parallel) {
  run_mlp<Int8Mode>(up, down, kernels, parallel);
}

void mlp_float(const Linear& up, const Linear& down, const KernelSet& kernels, const ParallelFor& parallel) {
  run_mlp<FloatMode>(up, down, kernels, parallel);
}

}  // namespace bittensor
