#pragma once

/// From canonical words to the layout of the linear kernels, and back (docs/numerics.md, section 3).

#include <cstdint>

#include "bittensor/export.hpp"
#include "bittensor/group_quantized.hpp"
#include "bittensor/isa.hpp"
#include "bittensor/parallel.hpp"

namespace bittensor {

/// A group-quantized weight in canonical form. Rows follow each other without gaps.
struct GroupQuantized {
  const std::uint64_t* words;  // [N, words_per_row(K, bits)]
  const void* scales;          // [N, groups], of the layout's scale type, finite
  const std::uint8_t* zeros;   // [N, groups] codes, for ZeroKind::integer
  const void* offsets;         // [N, groups] of the scale type, finite, for ZeroKind::offset
};

/// The same, to be filled.
struct GroupQuantizedOutput {
  std::uint64_t* words;
  void* scales;
  std::uint8_t* zeros;
  void* offsets;
};

/// Checks that the fields fit together and are small enough to count in; throws std::invalid_argument.
BITTENSOR_API void check_layout(const PreparedLayout& layout);

/// Writes layout.bytes() bytes: a header that describes the layout, codes, scales, and zeros or offsets. Throws
/// std::invalid_argument as check_layout does, and if a zero is no code or a scale or an offset is not finite; what is
/// written is then unspecified.
BITTENSOR_API void prepare(
    const GroupQuantized& weight, const PreparedLayout& layout, std::uint8_t* prepared, const KernelSet& kernels,
    const ParallelFor& parallel = {});

/// Reads the header of `bytes` bytes of a prepared weight. Throws std::invalid_argument if they are none, or are of
/// another version of the layout, if check_layout refuses what it says, or if it says another number of bytes. What
/// follows the header is not looked at.
BITTENSOR_API PreparedLayout read_layout(const std::uint8_t* prepared, std::int64_t bytes);

/// The exact inverse of `prepare`.
BITTENSOR_API void restore(
    const std::uint8_t* prepared, const PreparedLayout& layout, const GroupQuantizedOutput& weight,
    const KernelSet& kernels, const ParallelFor& parallel = {});

}  // namespace bittensor
