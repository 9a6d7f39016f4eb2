#pragma once

/// What the kernels of the group-quantized linear on AMX read of a weight. A block of the prepared layout, decoded, is
/// a row of a tile register for each of its planes: 16 weight rows x 4 columns. 16 such rows are a step of 64 columns.
///
/// Where code - zero fits a signed byte, which is everywhere but in 8 bits with zeros of their own, it is what is
/// decoded, and no zero term remains.

#include <immintrin.h>

#include <cstdint>

#include "avx512vnni.hpp"
#include "bittensor/linear_kernels.hpp"
#include "linear_tiles.hpp"
#include "planes.hpp"

namespace bittensor {
namespace {

/// The matrix by which GF2P8AFFINEQB moves `bits` bits from bit `shift` of each byte to bit 0. Where `extend` is set,
/// the highest of them fills the bits above.
constexpr std::uint64_t code_matrix(int bits, int shift, bool extend) {
  std::uint64_t matrix = 0;
  for (int to = 0; to < 8; ++to) {
    if (to >= bits && !extend) continue;
    const int from = shift + (to < bits ? to : bits - 1);
    matrix |= std::uint64_t{1} << (8 * (7 - to) + from);
  }
  return matrix;
}

template <int Bits, ZeroKind Kind>
struct AmxDecoding {
  static constexpr int planes = 8 / Bits;
  static constexpr int block_columns = 32 / Bits;
  static constexpr int step_columns = 64;
  static constexpr int step_blocks = step_columns / block_columns;
  static constexpr bool unsigned_weight = Bits == 8 && Kind != ZeroKind::symmetric;
  static constexpr bool has_zero_term = unsigned_weight && Kind == ZeroKind::integer;
  static constexpr bool has_offset = Kind == ZeroKind::offset;

  const Int8LinearBlock& block;
  TileSizes sizes;

  explicit AmxDecoding(const Int8LinearBlock& of) : block(of), sizes(*of.layout) {}

  /// Up to 64 columns of one group of a weight tile as rows of a tile register; rows behind the last keep what they
  /// have, which meets activations of zero. `Ahead`: bytes by which codes are prefetched.
  template <int Ahead>
  [[gnu::always_inline]] void decode(
      std::int64_t tile, std::int64_t group, const std::uint8_t* codes, std::int64_t blocks, std::uint8_t* to) const {
    __m512i zero = _mm512_setzero_si512();
    if constexpr (Kind == ZeroKind::integer && !unsigned_weight) {
      // The zero of each of the 16 rows, four times.
      const __m128i zeros =
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(block.zeros + tile * sizes.zero_bytes + group * tile_rows));
      zero = _mm512_mullo_epi32(_mm512_cvtepu8_epi32(zeros), _mm512_set1_epi32(0x01010101));
    }
    if (blocks == step_blocks) [[likely]] {
#pragma GCC unroll 16
      for (int i = 0; i < step_blocks; ++i)
        decode_block<Ahead>(codes + i * tile_block_bytes, zero, to + i * planes * 64);
    } else {
      for (std::int64_t i = 0; i < blocks; ++i) {
        decode_block<Ahead>(codes + i * tile_block_bytes, zero, to + i * planes * 64);
      }
    }
  }

  template <int Ahead>
  [[gnu::always_inline]] static void decode_block(
      const std::uint8_t* codes, [[maybe_unused]] __m512i zero, std::uint8_t* to) {
    const __m512i packed = _mm512_loadu_si512(codes);
    __builtin_prefetch(codes + Ahead);
    for_each_plane<planes>([&]<int Plane>() {
      // code - 2^(Bits - 1) is the code with its highest bit turned over, as a signed number of so many bits.
      constexpr bool is_signed = Kind == ZeroKind::symmetric;
      constexpr int flip = is_signed ? 0xFF << (Bits - 1) & 0xFF : 0;
      const __m512i matrix = _mm512_set1_epi64(static_cast<std::int64_t>(code_matrix(Bits, Bits * Plane, is_signed)));
      __m512i weight = _mm512_gf2p8affine_epi64_epi8(packed, matrix, flip);
      if constexpr (Kind == ZeroKind::integer && !unsigned_weight) weight = _mm512_sub_epi8(weight, zero);
      _mm512_store_si512(to + Plane * 64, weight);
    });
  }

  /// Scales of a group of a weight tile and, behind them, its offsets or zeros, as float32 or int32.
  [[gnu::always_inline]] void widen_parameters(std::int64_t tile, std::int64_t group, float* to) const {
    const FloatType type = block.layout->scale_type;
    const std::int64_t at = group * tile_rows * bytes_of(type);
    const std::uint8_t* zeros = block.zeros + tile * sizes.zero_bytes;
    _mm512_store_ps(to, Avx512Vnni::load_float(block.scales + tile * sizes.scale_bytes + at, type));
    if constexpr (has_offset) _mm512_store_ps(to + tile_rows, Avx512Vnni::load_float(zeros + at, type));
    if constexpr (has_zero_term) {
      _mm512_store_si512(to + tile_rows, Avx512Vnni::load_u8_as_i32(zeros + group * tile_rows));
    }
  }

  /// The sums of a group as floats; `zero` and x_sums[row] make the zero term, if there is one.
  [[gnu::always_inline]] static __m512 to_floats(
      __m512i sums, [[maybe_unused]] __m512 zero, [[maybe_unused]] const std::int32_t* x_sums,
      [[maybe_unused]] std::int64_t row) {
    if constexpr (has_zero_term) {
      sums = _mm512_sub_epi32(sums, _mm512_mullo_epi32(_mm512_set1_epi32(x_sums[row]), _mm512_castps_si512(zero)));
    }
    return _mm512_cvtepi32_ps(sums);
  }
};

}  // namespace
}  // namespace bittensor
