#pragma once

/// The loops that drive one instruction set to its limits, as plain data. The rule of kernel_set.hpp holds here too:
/// nothing inline from the standard library.

#include <cstdint>

#include "bittensor/kernel_set.hpp"

namespace bittensor {

/// Buffers are read in whole multiples of this many bytes.
inline constexpr std::int64_t read_granule = 4096;

/// Runs `rounds` rounds. What is returned depends on every operation, so that none can be left out.
using Arithmetic = std::uint64_t (*)(std::int64_t rounds);

/// Reads `bytes` bytes, a multiple of read_granule, and returns a value that depends on all of them.
using Read = std::uint64_t (*)(const std::uint8_t* data, std::int64_t bytes);

struct LimitKernels {
  Isa isa;
  Arithmetic int8_dot;
  std::int64_t int8_dot_operations;  // in a round
  Arithmetic fma;
  std::int64_t fma_operations;  // in a round
  Read read[4];                 // access patterns, of which the best counts
};

}  // namespace bittensor
