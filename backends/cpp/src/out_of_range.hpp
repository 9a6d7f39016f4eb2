#pragma once

#include "bittensor/pack.hpp"

namespace bittensor {

/// The first code above max_code(bits) in row-major order, if there is one.
std::optional<CodeOutOfRange> first_out_of_range(
    const std::uint8_t* codes, std::int64_t rows, std::int64_t columns, int bits);

}  // namespace bittensor
