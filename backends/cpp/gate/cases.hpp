#pragma once

/// Every kernel of the library on fixed operands.

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "bittensor/isa.hpp"

/// Memory of the operands of one case, in huge pages where the system grants them. Arrays follow each other in the
/// order of their making, so that they lie alike in two modules that make the same ones.
class Operands {
 public:
  Operands() : memory_(static_cast<std::byte*>(::operator new(capacity, std::align_val_t{alignment}))), random_(2026) {
    madvise(memory_, capacity, MADV_HUGEPAGE);  // a wish: failing is no error
  }
  ~Operands() { ::operator delete(memory_, std::align_val_t{alignment}); }
  Operands(const Operands&) = delete;
  Operands& operator=(const Operands&) = delete;

  /// Zeros, beginning a cache line.
  template <class T>
  T* array(std::int64_t count) {
    const std::size_t bytes = (static_cast<std::size_t>(count) * sizeof(T) + 127) / 64 * 64;
    if (used_ + bytes > capacity) throw std::length_error("the operands of a case take more than their room");
    std::byte* begin = memory_ + used_;
    used_ += bytes;
    for (std::size_t i = 0; i < bytes; ++i) begin[i] = std::byte{0};
    return reinterpret_cast<T*>(begin);
  }

  /// Integers in [low, high].
  template <class T>
  T* integers(std::int64_t count, std::int64_t low, std::int64_t high) {
    T* values = array<T>(count);
    const auto span = static_cast<std::uint64_t>(high - low) + 1;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::uint64_t drawn = random_();
      values[i] = static_cast<T>(low + static_cast<std::int64_t>(span == 0 ? drawn : drawn % span));
    }
    return values;
  }

  /// Any 64 bits.
  std::uint64_t* words(std::int64_t count) {
    auto* values = array<std::uint64_t>(count);
    for (std::int64_t i = 0; i < count; ++i) values[i] = random_();
    return values;
  }

  /// Floats in [-1, 1].
  float* floats(std::int64_t count) {
    auto* values = array<float>(count);
    for (std::int64_t i = 0; i < count; ++i) {
      values[i] = static_cast<float>(static_cast<std::int64_t>(random_() % 20001) - 10000) / 10000.0F;
    }
    return values;
  }

 private:
  static constexpr std::size_t alignment = std::size_t{1} << 21;
  static constexpr std::size_t capacity = std::size_t{1} << 22;
  std::byte* memory_;
  std::size_t used_ = 0;
  std::mt19937_64 random_;
};

struct Case {
  std::string kernel;  // of the kernel table; empty for an operation
  std::string name;    // kernel or operation, and what tells this case from others of it
  std::string isa;
  double operations;  // a multiply-add counts as two; of kernels without products, a value counts as one
  double bytes;       // of operands and results, each once
  bool timed;         // long enough for times to be compared
  /// Makes operands, and the call that is measured.
  std::function<std::function<void()>(Operands&)> make;
};

/// The cases of one instruction set.
std::vector<Case> cases_of(const bittensor::KernelSet& kernels);
