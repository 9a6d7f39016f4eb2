#pragma once

/// The loops, written once over the traits V of an instruction set. The chains are independent of each other, and as
/// many as hide the latency of an instruction. Every loop over them is unrolled, or they would live in memory.

#include <cstdint>

#include "limit_kernels.hpp"

namespace bittensor {
namespace {

template <class V>
std::uint64_t int8_dot(std::int64_t rounds) {
  typename V::Integers sums[V::chains];
#pragma GCC unroll 32
  for (int i = 0; i < V::chains; ++i) sums[i] = V::integers(0);
  typename V::Integers unsigned_bytes = V::integers(0x0F0A0501);
  const typename V::Integers signed_bytes = V::integers(0x7F81C03F);
  for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 32
    for (int i = 0; i < V::chains; ++i) {
      V::forget(unsigned_bytes);  // or products that never change would be computed once, before the loop
      sums[i] = V::dot(sums[i], unsigned_bytes, signed_bytes);
      V::forget(sums[i]);  // keeps one register for each; gcc 12 would copy them to and fro
    }
  }
  std::uint64_t all = 0;
#pragma GCC unroll 32
  for (int i = 0; i < V::chains; ++i) all ^= V::fold(sums[i]);
  return all;
}

template <class V>
std::uint64_t fma(std::int64_t rounds) {
  typename V::Floats sums[V::chains];
#pragma GCC unroll 32
  for (int i = 0; i < V::chains; ++i) sums[i] = V::floats(static_cast<float>(i));
  const typename V::Floats half = V::floats(0.5F);
  const typename V::Floats one = V::floats(1.0F);
  for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 32
    for (int i = 0; i < V::chains; ++i) {
      sums[i] = V::multiply_add(sums[i], half, one);  // tends to 2: neither overflow nor denormal numbers
      V::forget(sums[i]);
    }
  }
  typename V::Floats all = V::floats(0.0F);
#pragma GCC unroll 32
  for (int i = 0; i < V::chains; ++i) all = V::multiply_add(sums[i], one, all);
  return V::fold(all);
}

/// Reads the buffer as `Streams` parts side by side, and asks for lines `Ahead` bytes before they are due (0: leaves
/// that to the hardware).
template <class V, int Streams, int Ahead>
std::uint64_t read(const std::uint8_t* data, std::int64_t bytes) {
  constexpr int line = 64;
  constexpr int step = 512;
  constexpr int vectors = 8;  // accumulators
  typename V::Integers seen[vectors];
#pragma GCC unroll 32
  for (int i = 0; i < vectors; ++i) seen[i] = V::integers(0);
  const std::int64_t part = bytes / Streams;
  for (std::int64_t at = 0; at < part; at += step) {
#pragma GCC unroll 8
    for (int s = 0; s < Streams; ++s) {
      const std::uint8_t* from = data + s * part + at;
      if constexpr (Ahead != 0) {
#pragma GCC unroll 8
        for (int i = 0; i < step; i += line) __builtin_prefetch(from + i + Ahead);
      }
#pragma GCC unroll 64
      for (int i = 0; i < step / V::bytes; ++i) {
        seen[i % vectors] = V::exclusive_or(seen[i % vectors], V::load(from + i * V::bytes));
      }
    }
  }
  std::uint64_t all = 0;
#pragma GCC unroll 32
  for (int i = 0; i < vectors; ++i) all ^= V::fold(seen[i]);
  return all;
}

template <class V>
constexpr LimitKernels limits() {
  constexpr std::int64_t lanes = V::bytes / 4;
  constexpr std::int64_t products = V::chains * V::dot_products;
  return {V::isa, int8_dot<V>,           2 * products,
          fma<V>, 2 * V::chains * lanes, {read<V, 1, 0>, read<V, 1, 1024>, read<V, 1, 4096>, read<V, 4, 0>}};
}

}  // namespace
}  // namespace bittensor
