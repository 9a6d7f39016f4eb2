#pragma once

#include <cstddef>

namespace bittensor {

/// `bytes` of working memory of the calling thread, aligned to 64 bytes, uninitialized. It is valid until the thread
/// asks again: an operation asks once and divides what it gets. Kept between calls, because small operations would
/// otherwise spend their time in the allocator. Throws std::bad_alloc.
std::byte* scratch(std::size_t bytes);

}  // namespace bittensor
