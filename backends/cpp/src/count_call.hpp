#pragma once

#include "bittensor/kernel_table.hpp"

namespace bittensor {

/// Notes that an operation uses a kernel. Called once per operation, not per row.
void count_call(KernelKind kind, int bits, Isa isa);

}  // namespace bittensor
