#pragma once

/// The kernel set of an instruction set: every template instantiated with its traits.

#include "epilogue.hpp"
#include "integer_dot.hpp"
#include "packing.hpp"

namespace bittensor {
namespace {

template <class V, int Bits>
constexpr CodeKernels code_kernels() {
  return {pack_row<V, Bits>, unpack_row<V, Bits>, expand_planes<V, Bits>, integer_dot<V, Bits>, store_codes<V, Bits>};
}

template <class V>
constexpr KernelSet assemble() {
  return {V::isa, {code_kernels<V, 1>(), code_kernels<V, 2>(), code_kernels<V, 4>(), code_kernels<V, 8>()},
          store_sums<V>};
}

}  // namespace
}  // namespace bittensor
