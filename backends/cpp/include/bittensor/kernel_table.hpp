#pragma once

/// The kernels by name, with a count of how often each was used: what tests and `bittensor info` look at.

#include <cstdint>
#include <string>
#include <vector>

#include "bittensor/export.hpp"
#include "bittensor/kernel_set.hpp"

namespace bittensor {

enum class KernelKind : std::uint8_t {
  pack_row,
  unpack_row,
  expand_planes,
  integer_dot,
  store_codes,
  store_sums,
  quantize_row,
  int8_linear,
  store_outputs,
  widen_row,
  split_row,
  add_digits,
  dequantize_panel,
  panel_product,
  codes_product,
  normalize_row,
  gate_row,
  softmax_row,
  dequantize_row,
  int8_lanes,
  float_lanes,
};

/// Name of a kind: "pack_row".
BITTENSOR_API const char* kind_name(KernelKind kind);

/// One row of the table. `name` is kind, width and instruction set: "integer_dot_b4_avx2", "store_sums_avx2".
struct KernelEntry {
  std::string name;
  KernelKind kind;
  int bits;  // 0 for kernels that do not depend on it
  Isa isa;
  bool supported;       // this machine can run it
  std::uint64_t calls;  // operations of this process that used it
};

/// Every kernel of the library, on every instruction set.
BITTENSOR_API std::vector<KernelEntry> kernel_table();

}  // namespace bittensor
