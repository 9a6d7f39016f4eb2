#pragma once

/// torch tensors as the library takes them: matrices in memory, new results, torch's threads. Only the stable ABI of
/// torch is used.

#include <sys/mman.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bittensor/group_quantized.hpp"
#include "bittensor/parallel.hpp"

namespace bittensor::binding {

using torch::stable::Tensor;

[[noreturn]] inline void refuse(const std::string& message) {
  throw std::invalid_argument(message);
}

/// torch's own threads.
inline ParallelFor torch_threads() {
  std::uint32_t count = 1;
  TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&count));
  const auto run = [](void*, std::int64_t total, ParallelFor::Body body, void* context) {
    TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, total, 1, body, context));
  };
  return {run, nullptr, static_cast<int>(count)};
}

enum class Dtype : std::uint8_t { u8, i32, i64, f32, boolean, other };

inline Dtype dtype_of(const Tensor& tensor) {
  std::int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  static const std::int32_t u8 = aoti_torch_dtype_uint8();
  static const std::int32_t i32 = aoti_torch_dtype_int32();
  static const std::int32_t i64 = aoti_torch_dtype_int64();
  static const std::int32_t f32 = aoti_torch_dtype_float32();
  static const std::int32_t boolean = aoti_torch_dtype_bool();
  if (dtype == u8) return Dtype::u8;
  if (dtype == i32) return Dtype::i32;
  if (dtype == i64) return Dtype::i64;
  if (dtype == boolean) return Dtype::boolean;
  return dtype == f32 ? Dtype::f32 : Dtype::other;
}

/// None in place of a tensor arrives as an undefined one, which some versions of torch read without a check.
inline Tensor defined(const char* name, const Tensor& given) {
  if (!given.defined()) refuse(std::string(name) + ": expected a tensor, got None");
  return given;
}

/// Where the elements of a tensor lie. Its storage may have been freed or made smaller since it was created; torch's
/// own operators read behind it then.
inline void* memory_of(const char* name, const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  std::int64_t reach = tensor.storage_offset() + 1;  // elements up to the last
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 0) return tensor.data_ptr();
    reach += (sizes[i] - 1) * strides[i];
  }
  reach *= static_cast<std::int64_t>(tensor.element_size());
  std::int64_t bytes = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &bytes));
  if (bytes < reach) {
    refuse(
        std::string(name) + ": the storage of the tensor was " + (bytes == 0 ? "freed" : "made smaller") + ": " +
        std::to_string(bytes) + " bytes are left of the " + std::to_string(reach) + " up to its last element");
  }
  return tensor.data_ptr();
}

/// A matrix operand: its leading dimensions count as rows.
struct Matrix {
  Tensor tensor;
  Dtype dtype;
  std::int64_t dimensions;
  const std::int64_t* sizes;
  std::int64_t rows;
  std::int64_t columns;
  void* memory;

  /// Copies `given` unless its elements follow each other, or `accepts` takes it as it is.
  Matrix(const char* name, const Tensor& given, bool (*accepts)(const Tensor&) = nullptr)
      : tensor(defined(name, given)), dtype(dtype_of(given)), dimensions(given.dim()) {
    if (dimensions == 0) refuse(std::string(name) + ": expected at least one dimension, got a scalar tensor");
    if (!given.is_cpu()) refuse(std::string(name) + ": expected a tensor on the CPU");
    if (!given.is_contiguous() && (accepts == nullptr || !accepts(given))) {
      memory_of(name, given);
      tensor = torch::stable::contiguous(given);
    }
    memory = memory_of(name, tensor);
    sizes = tensor.sizes().data();
    columns = sizes[dimensions - 1];
    rows = 1;
    for (std::int64_t i = 0; i + 1 < dimensions; ++i) rows *= sizes[i];
  }

  template <class T>
  const T* data() const {
    return static_cast<const T*>(memory);
  }
};

inline constexpr std::int64_t huge_page_bytes = std::int64_t{1} << 21;

/// Bytes from `memory` to the first huge page that begins there or later.
inline std::int64_t bytes_to_huge_page(const void* memory) {
  const auto position = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(memory) % huge_page_bytes);
  return (huge_page_bytes - position) % huge_page_bytes;
}

/// Calls f(memory, bytes) for the part of the memory that whole huge pages could hold, if there is any.
template <class F>
void for_huge_pages(void* memory, std::int64_t bytes, const F& f) {
  const std::int64_t skipped = bytes_to_huge_page(memory);
  const std::int64_t whole = (bytes - skipped) / huge_page_bytes * huge_page_bytes;
  if (whole > 0) f(static_cast<std::byte*>(memory) + skipped, static_cast<std::size_t>(whole));
}

/// Asks for huge pages where new memory is large. Then its first touch costs a fault for each 2 MiB instead of each
/// 4 KiB. Advice only: where the system does not follow it, nothing changes but speed.
inline void prefer_huge_pages(void* memory, std::int64_t bytes) {
  for_huge_pages(
      memory, bytes, [](void* begin, std::size_t size) { static_cast<void>(madvise(begin, size, MADV_HUGEPAGE)); });
}

/// Moves memory into huge pages now, even if it was in use before and has small ones. This costs about as much as
/// copying it, and pays for what is streamed often, a weight. Advice only, from Linux 6.1 on.
inline void move_to_huge_pages(void* memory, std::int64_t bytes) {
  constexpr int collapse = 25;  // MADV_COLLAPSE, which older headers do not know
  for_huge_pages(
      memory, bytes, [](void* begin, std::size_t size) { static_cast<void>(madvise(begin, size, collapse)); });
}

/// A new uninitialized tensor on the CPU, of `values` values in all.
inline Tensor allocate(
    std::int32_t dtype, std::int64_t dimensions, const std::int64_t* sizes, const std::int64_t* strides,
    std::int64_t values) {
  static const std::int32_t cpu = aoti_torch_device_type_cpu();
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dimensions, sizes, strides, dtype, cpu, 0, &handle));
  const Tensor tensor(handle);
  constexpr std::int64_t large = std::int64_t{1} << 19;
  if (values >= large) prefer_huge_pages(tensor.data_ptr(), values * static_cast<std::int64_t>(tensor.element_size()));
  return tensor;
}

inline Tensor new_tensor(std::int32_t dtype, std::int64_t length) {
  const std::int64_t stride = 1;
  return allocate(dtype, 1, &length, &stride, length);
}

/// New memory for what is streamed often, a weight: where it is large it begins with a huge page, so that no part but
/// the last is in small ones. What the tensor leaves out before it is address space that nothing touches.
inline Tensor new_weight_memory(std::int64_t bytes) {
  const std::int32_t dtype = aoti_torch_dtype_uint8();
  if (bytes < 2 * huge_page_bytes) return new_tensor(dtype, bytes);
  const Tensor memory = new_tensor(dtype, bytes + huge_page_bytes);
  const std::int64_t stride = 1;
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(memory.get(), 1, &bytes, &stride, bytes_to_huge_page(memory.data_ptr()), &handle));
  const Tensor aligned(handle);
  move_to_huge_pages(aligned.data_ptr(), bytes);
  return aligned;
}

inline Tensor new_tensor(std::int32_t dtype, std::int64_t rows, std::int64_t columns) {
  const std::int64_t sizes[2] = {rows, columns};
  const std::int64_t strides[2] = {std::max<std::int64_t>(columns, 1), 1};
  return allocate(dtype, 2, sizes, strides, rows * columns);
}

/// A new contiguous tensor with the leading dimensions of `like` and `columns` in the last.
inline Tensor new_matrix(const Matrix& like, std::int64_t columns, std::int32_t dtype) {
  constexpr std::int64_t few = 8;
  std::int64_t fixed[2 * few];
  std::vector<std::int64_t> many;
  std::int64_t* sizes = fixed;
  if (like.dimensions > few) {
    many.resize(static_cast<std::size_t>(2 * like.dimensions));
    sizes = many.data();
  }
  std::int64_t* strides = sizes + like.dimensions;
  std::copy_n(like.sizes, like.dimensions, sizes);
  sizes[like.dimensions - 1] = columns;
  std::int64_t stride = 1;
  for (std::int64_t i = like.dimensions; i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<std::int64_t>(sizes[i], 1);
  }
  return allocate(dtype, like.dimensions, sizes, strides, like.rows * columns);
}

inline std::optional<FloatType> float_type_of(const Tensor& tensor) {
  std::int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  static const std::int32_t f32 = aoti_torch_dtype_float32();
  static const std::int32_t f16 = aoti_torch_dtype_float16();
  static const std::int32_t bf16 = aoti_torch_dtype_bfloat16();
  if (dtype == f32) return FloatType::f32;
  if (dtype == f16) return FloatType::f16;
  if (dtype == bf16) return FloatType::bf16;
  return std::nullopt;
}

inline std::int32_t torch_dtype_of(FloatType type) {
  if (type == FloatType::f32) return aoti_torch_dtype_float32();
  return type == FloatType::f16 ? aoti_torch_dtype_float16() : aoti_torch_dtype_bfloat16();
}

inline torch::headeronly::ScalarType scalar_type_of(FloatType type) {
  if (type == FloatType::f32) return torch::headeronly::ScalarType::Float;
  return type == FloatType::f16 ? torch::headeronly::ScalarType::Half : torch::headeronly::ScalarType::BFloat16;
}

inline std::optional<FloatType> float_type_named(torch::headeronly::ScalarType dtype) {
  for (const FloatType type : {FloatType::f32, FloatType::f16, FloatType::bf16}) {
    if (scalar_type_of(type) == dtype) return type;
  }
  return std::nullopt;
}

}  // namespace bittensor::binding
