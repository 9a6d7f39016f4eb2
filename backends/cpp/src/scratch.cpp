#include "scratch.hpp"

#include <memory>
#include <new>

namespace bittensor {
namespace {

constexpr std::size_t alignment = 64;

struct AlignedDelete {
  void operator()(std::byte* memory) const { ::operator delete(memory, std::align_val_t{alignment}); }
};

struct Buffer {
  std::unique_ptr<std::byte, AlignedDelete> memory;
  std::size_t capacity = 0;
};

}  // namespace

std::byte* scratch(ScratchUse use, std::size_t bytes) {
  thread_local Buffer buffers[3];
  Buffer& buffer = buffers[static_cast<std::size_t>(use)];
  if (bytes > buffer.capacity) {
    buffer.memory.reset();
    buffer.capacity = 0;
    buffer.memory.reset(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{alignment})));
    buffer.capacity = bytes;
  }
  return buffer.memory.get();
}

}  // namespace bittensor
