#pragma once

/// The kernel set of an instruction set: every template instantiated with its traits.

#include "activations.hpp"
#include "codes_product.hpp"
#include "epilogue.hpp"
#include "int8_linear.hpp"
#include "integer_dot.hpp"
#include "lanes_product.hpp"
#include "packing.hpp"
#include "panel_product.hpp"
#include "store_outputs.hpp"
#include "transformer.hpp"
#include "weight_panel.hpp"

namespace bittensor {
namespace {

template <class V, int Bits>
constexpr CodeKernels code_kernels() {
  return {pack_row<V, Bits>,    unpack_row<V, Bits>,  expand_planes<V, Bits>,
          integer_dot<V, Bits>, store_codes<V, Bits>, false};
}

template <class V>
constexpr KernelSet assemble() {
  return {
      V::isa,
      {code_kernels<V, 1>(), code_kernels<V, 2>(), code_kernels<V, 4>(), code_kernels<V, 8>()},
      store_sums<V>,
      {quantize_row<V>,
       store_outputs<V>,
       widen_row<V>,
       split_row<V>,
       add_digits<V>,
       {int8_linear<V, 2>, int8_linear<V, 4>, int8_linear<V, 8>},
       false},
      {{dequantize_panel<V, 2>, dequantize_panel<V, 4>, dequantize_panel<V, 8>},
       panel_product<V>,
       {codes_product<V, 2>, codes_product<V, 4>, codes_product<V, 8>},
       V::lanes},
      {normalize_row<V>, gate_row<V>, softmax_row<V>},
      {{dequantize_row<V, 2>, dequantize_row<V, 4>, dequantize_row<V, 8>}},
      {{multiply_lanes<V, 2, true>, multiply_lanes<V, 4, true>, multiply_lanes<V, 8, true>},
       {multiply_lanes<V, 2, false>, multiply_lanes<V, 4, false>, multiply_lanes<V, 8, false>}}};
}

}  // namespace
}  // namespace bittensor
