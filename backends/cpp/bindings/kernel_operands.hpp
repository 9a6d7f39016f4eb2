#pragma once

/// A kernel that Python calls by its name, and its operands.

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "bittensor/isa.hpp"
#include "bittensor/kernel_table.hpp"
#include "bittensor/prepare.hpp"

namespace bittensor::binding {

namespace py = pybind11;

/// A kernel of the table that this machine can run.
inline KernelEntry find_kernel(const std::string& name, KernelKind kind) {
  for (const KernelEntry& entry : bittensor::kernel_table()) {
    if (entry.name != name) continue;
    if (entry.kind != kind) throw std::invalid_argument("kernel '" + name + "' is of another kind");
    if (!entry.supported) throw std::invalid_argument("kernel '" + name + "' cannot run on this machine");
    return entry;
  }
  throw std::invalid_argument("unknown kernel '" + name + "'; kernel_table() lists them");
}

/// The product of sizes, which come from Python. No buffer holds as much as one that leaves int64.
template <class... Sizes>
std::int64_t count_of(Sizes... sizes) {
  std::int64_t count = 1;
  const auto multiply = [&count](std::int64_t size) { return !__builtin_mul_overflow(count, size, &count); };
  if ((multiply(sizes) && ...)) return count;
  throw std::invalid_argument("sizes: expected a product below 2^63");
}

/// A flat view of a buffer that holds at least `count` values of T.
template <class T>
T* view(const char* name, const py::buffer& buffer, std::int64_t count) {
  const py::buffer_info info = buffer.request(!std::is_const_v<T>);
  const auto bytes = static_cast<std::int64_t>(info.size * info.itemsize);
  if (count < 0 || bytes / static_cast<std::int64_t>(sizeof(T)) < count) {
    throw std::invalid_argument(
        std::string(name) + ": expected at least " + std::to_string(count) + " values of " + std::to_string(sizeof(T)) +
        " bytes, got " + std::to_string(bytes) + " bytes");
  }
  if (PyBuffer_IsContiguous(info.view(), 'C') == 0)
    throw std::invalid_argument(std::string(name) + ": expected a contiguous buffer");
  return static_cast<T*>(info.ptr);
}

/// "float32", "float16" or "bfloat16".
inline FloatType float_type(const std::string& name) {
  if (name == "float32") return FloatType::f32;
  if (name == "float16") return FloatType::f16;
  if (name == "bfloat16") return FloatType::bf16;
  throw std::invalid_argument("float type: expected float32, float16 or bfloat16, got '" + name + "'");
}

/// A prepared weight and its layout, which its header tells.
struct Prepared {
  const std::uint8_t* bytes;
  PreparedLayout layout;

  explicit Prepared(const py::buffer& buffer) : bytes(view<const std::uint8_t>("prepared", buffer, 64)), layout() {
    const py::buffer_info info = buffer.request();
    layout = read_layout(bytes, static_cast<std::int64_t>(info.size * info.itemsize));
  }
};

}  // namespace bittensor::binding
