#include "scratch.hpp"

#include <new>
#include <utility>

namespace bittensor {
namespace {

constexpr std::size_t alignment = 64;

struct Buffer {
  std::byte* memory;
  std::size_t capacity;
};

/// What a thread keeps. It has no destructor, and so is there for the destructors of static objects, which run when
/// those of the thread's objects have run.
struct Kept {
  Buffer buffers[3];
  bool has_ended;  // the thread, which keeps nothing any more
};
constinit thread_local Kept kept{};

void free_memory(std::byte* memory) {
  ::operator delete(memory, std::align_val_t{alignment});
}

struct Cleaner {
  Cleaner() = default;
  ~Cleaner() {
    for (Buffer& buffer : kept.buffers) free_memory(std::exchange(buffer, {}).memory);
    kept.has_ended = true;
  }
  Cleaner(const Cleaner&) = delete;
  Cleaner& operator=(const Cleaner&) = delete;
};

}  // namespace

void Scratch::take(std::size_t bytes) {
  const Buffer buffer = std::exchange(kept.buffers[static_cast<std::size_t>(use_)], {});
  memory_ = buffer.memory;
  capacity_ = buffer.capacity;
  if (bytes > capacity_) grow(bytes);
}

[[gnu::noinline]] void Scratch::grow(std::size_t bytes) {
  if (!kept.has_ended) {
    [[maybe_unused]] thread_local const Cleaner cleaner;
  }
  free_memory(memory_);
  memory_ = static_cast<std::byte*>(::operator new(bytes, std::align_val_t{alignment}));
  capacity_ = bytes;
}

/// Of two buffers the thread keeps the larger. It may be another thread than the one that took the memory, where
/// operations wait as tasks that move between threads.
void Scratch::give_back() noexcept {
  Buffer& buffer = kept.buffers[static_cast<std::size_t>(use_)];
  if (capacity_ > buffer.capacity && !kept.has_ended) {
    std::swap(memory_, buffer.memory);
    buffer.capacity = capacity_;
  }
  if (memory_ != nullptr) free_memory(memory_);
}

}  // namespace bittensor
