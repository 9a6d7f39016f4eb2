#pragma once

#include <cstddef>
#include <cstdint>

namespace bittensor {

/// Who asks: a sequence of operations for what lies between them, an operation for memory that all its threads share,
/// or a task for its own.
enum class ScratchUse : std::uint8_t { sequence, operation, task };

/// Working memory to the end of the scope, aligned to 64 bytes, uninitialized. The thread keeps one buffer for each use
/// between calls, because small operations would otherwise spend their time in the allocator. While that is taken,
/// because the thread runs another operation in the middle of one, there are others.
class Scratch {
 public:
  /// Throws std::bad_alloc. No memory is taken for 0 bytes.
  Scratch(ScratchUse use, std::int64_t bytes) : use_(use) {
    if (bytes > 0) take(static_cast<std::size_t>(bytes));
  }
  ~Scratch() {
    if (memory_ != nullptr) give_back();
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  std::byte* bytes() const { return memory_; }
  float* floats() const { return reinterpret_cast<float*>(memory_); }

 private:
  void take(std::size_t bytes);
  void grow(std::size_t bytes);
  void give_back() noexcept;

  std::byte* memory_ = nullptr;
  std::size_t capacity_ = 0;
  ScratchUse use_;
};

}  // namespace bittensor
