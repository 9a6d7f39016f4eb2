#pragma once

/// Packing, unpacking and spreading of one row, written once for every instruction set V (a traits class).

#include <cstddef>
#include <cstdint>

#include "bittensor/kernel_set.hpp"
#include "planes.hpp"

namespace bittensor {
namespace {

inline constexpr int chunk_codes = 64;  // codes that every instruction set packs or unpacks at a time

inline std::int64_t words_for(std::int64_t columns, int bits) {
  return (columns * bits + 63) / 64;
}

template <class V, int Bits>
std::uint8_t pack_row(const std::uint8_t* codes, std::int64_t columns, std::uint64_t* words) {
  typename V::Vector seen = V::zero();
  const auto pack_chunk = [&seen](const std::uint8_t* from, std::uint64_t* to) {
    auto* packed = reinterpret_cast<std::uint8_t*>(to);
    for (int i = 0; i < chunk_codes; i += V::bytes) {
      const typename V::Vector v = V::load(from + i);
      seen = V::bit_or(seen, v);
      V::template pack<Bits>(v, packed + i * Bits / 8);
    }
  };
  const std::int64_t whole = columns / chunk_codes;
  for (std::int64_t c = 0; c < whole; ++c) pack_chunk(codes + c * chunk_codes, words + c * Bits);
  if (const std::int64_t rest = columns % chunk_codes; rest > 0) {
    std::uint8_t padded[chunk_codes] = {};
    std::uint64_t packed[Bits];
    __builtin_memcpy(padded, codes + whole * chunk_codes, static_cast<std::size_t>(rest));
    pack_chunk(padded, packed);
    for (std::int64_t w = 0; w < words_for(rest, Bits); ++w) words[whole * Bits + w] = packed[w];
  }
  return V::or_bytes(seen);
}

template <class V, int Bits>
void unpack_row(const std::uint64_t* words, std::int64_t columns, std::uint8_t* codes) {
  const auto unpack_chunk = [](const std::uint64_t* from, std::uint8_t* to) {
    const auto* packed = reinterpret_cast<const std::uint8_t*>(from);
    for (int i = 0; i < chunk_codes; i += V::bytes) V::store(to + i, V::template unpack<Bits>(packed + i * Bits / 8));
  };
  const std::int64_t whole = columns / chunk_codes;
  for (std::int64_t c = 0; c < whole; ++c) unpack_chunk(words + c * Bits, codes + c * chunk_codes);
  if (const std::int64_t rest = columns % chunk_codes; rest > 0) {
    std::uint64_t packed[Bits] = {};
    std::uint8_t unpacked[chunk_codes];
    for (std::int64_t w = 0; w < words_for(rest, Bits); ++w) packed[w] = words[whole * Bits + w];
    unpack_chunk(packed, unpacked);
    __builtin_memcpy(codes + whole * chunk_codes, unpacked, static_cast<std::size_t>(rest));
  }
}

template <class V, int Bits>
std::int32_t expand_planes(const std::uint64_t* words, std::int64_t columns, std::int32_t shift, std::int8_t* planes) {
  constexpr int plane_count = 8 / Bits;
  constexpr std::int64_t block_codes = block_bytes * plane_count;
  const auto shift_byte = static_cast<std::int8_t>(shift);
  typename V::Sum sum = V::zero_sum();
  const std::int64_t whole = columns / block_codes;
  for (std::int64_t b = 0; b < whole; ++b) {
    const auto* packed = reinterpret_cast<const std::uint8_t*>(words) + b * block_bytes;
    for (int i = 0; i < block_bytes; i += V::bytes) {
      const typename V::Vector v = V::load(packed + i);
      for_each_plane<plane_count>([&]<int Plane>() {
        const typename V::Vector codes = V::subtract(V::template plane<Bits, Plane>(v), shift_byte);
        sum = V::add_signed_bytes(sum, codes);
        V::store(planes + b * block_codes + Plane * block_bytes + i, codes);
      });
    }
  }
  std::int32_t total = V::total(sum);
  if (const std::int64_t rest = columns % block_codes; rest > 0) {
    // One code at a time: the last block stays zero beyond the last column, whatever the shift and the unused bits.
    std::int8_t* block = planes + whole * block_codes;
    __builtin_memset(block, 0, static_cast<std::size_t>(block_codes));
    const auto* packed = reinterpret_cast<const std::uint8_t*>(words) + whole * block_bytes;
    for (std::int64_t k = 0; k < rest; ++k) {
      const auto plane = static_cast<int>(k % plane_count);
      const int code = packed[k / plane_count] >> (Bits * plane) & ((1 << Bits) - 1);
      const auto value = static_cast<std::int8_t>(code - shift);
      block[plane * block_bytes + k / plane_count] = value;
      total += value;
    }
  }
  return total;
}

}  // namespace
}  // namespace bittensor
