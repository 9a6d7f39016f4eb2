#pragma once

#include <cstddef>
#include <cstdint>

namespace bittensor {

/// Who asks: a sequence of operations for what lies between them, an operation for memory that all its threads share,
/// or a task for its own.
enum class ScratchUse : std::uint8_t { sequence, operation, task };

/// `bytes` of working memory of the calling thread, aligned to 64 bytes, uninitialized. It is valid until the thread
/// asks again for the same use: each asks once and divides what it gets. Kept between calls, because small operations
/// would otherwise spend their time in the allocator. Throws std::bad_alloc.
std::byte* scratch(ScratchUse use, std::size_t bytes);

}  // namespace bittensor
