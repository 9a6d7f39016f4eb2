#pragma once

#include <cstdint>

#include "bittensor/patches.hpp"

namespace bittensor {

/// Writes patch `index`, counted through all images, of values of `size` bytes.
void write_patch(const Patches& patches, const void* images, std::int64_t size, std::int64_t index, void* to);

}  // namespace bittensor
