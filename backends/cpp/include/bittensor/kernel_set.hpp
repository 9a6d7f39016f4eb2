#pragma once

/// The kernels of one instruction set, as plain data. This header is included by translation units that are compiled
/// with instruction-set flags, so it may not bring in anything inline from the standard library: the linker could
/// keep that copy and run it on a machine without those instructions.

#include <cstdint>

#include "bittensor/convolution_kernels.hpp"
#include "bittensor/embedding_kernels.hpp"
#include "bittensor/gradient_kernels.hpp"
#include "bittensor/linear_kernels.hpp"
#include "bittensor/transformer_kernels.hpp"

namespace bittensor {

enum class Isa : std::uint8_t { scalar, avx2, avxvnni, avx512, avx512vnni, amx };

/// Bytes of packed words that a kernel takes as one block, on every instruction set.
inline constexpr int block_bytes = 64;

/// Output columns that one block of accumulators covers: a whole number of words at every width.
inline constexpr int block_columns = 64;

/// Packs a row of `columns` codes into ceil(columns * Bits / 64) words; unused high bits become 0.
/// Returns the bitwise or of all codes, from which the caller sees whether any was out of range.
using PackRow = std::uint8_t (*)(const std::uint8_t* codes, std::int64_t columns, std::uint64_t* words);

/// Unpacks a row of `columns` codes; unused high bits are ignored.
using UnpackRow = void (*)(const std::uint64_t* words, std::int64_t columns, std::uint8_t* codes);

/// Spreads a packed row into planes, the operand of `IntegerDot`: with P = 8 / Bits, each block of 64 bytes becomes P
/// runs of 64 signed bytes, where byte j of run p is `code[64 * P * block + P * j + p] - shift`. Shifting and masking
/// a packed weight gives its codes in the same order, so neither side is ever interleaved. Columns beyond the last
/// become 0. Writes P * 64 bytes for each (also the last, partial) block and returns the sum of all values written.
using ExpandPlanes =
    std::int32_t (*)(const std::uint64_t* words, std::int64_t columns, std::int32_t shift, std::int8_t* planes);

/// How an `IntegerDot` meets its words. What is computed does not depend on it.
enum class WordFetch : std::uint8_t {
  none,      // they are in the caches
  by_tiles,  // a few weight rows side by side, and those to come are fetched ahead in the order of memory
  in_order   // one weight row after the other: one row of planes, 4 bits
};

/// Operands of `IntegerDot`. The sums are exact modulo 2^32.
struct IntegerDotBlock {
  // [rows, plane_stride], from ExpandPlanes; below 8 bits in [-max_code, max_code], on which 16-bit sums rely
  const std::int8_t* planes;
  std::int64_t plane_stride;   // bytes
  std::int64_t rows;           // rows of planes, at least 1
  const std::uint64_t* words;  // [columns, word_stride], packed weight rows
  std::int64_t word_stride;    // words
  std::int64_t row_words;      // words in a weight row
  std::int64_t columns;        // weight rows, 1..block_columns
  WordFetch fetch;             // where there is no `in_order` it is `by_tiles`
  std::int64_t ahead;          // bytes, in order: so far ahead words are prefetched; 0 leaves it to the processor
  std::int32_t* acc;           // [rows, block_columns]; columns up to the next multiple of 16 are overwritten
};

/// acc[m, n] = sum over k of planes[m, k] * weight[n, k].
using IntegerDot = void (*)(const IntegerDotBlock& block);

/// One row of block_columns accumulators on its way to codes. All arrays hold block_columns values.
struct CodeEpilogue {
  const std::int32_t* acc;
  const std::int32_t* column_add;  // added to each column (bias and zero-point terms)
  std::int32_t row_add;            // added to every column
  const float* scale;              // null: no scale
  std::int32_t out_zero;
};

/// clamp(acc + adds, 0, max_code) or clamp(rne(float32(acc + adds) * scale) + out_zero, 0, max_code), packed into
/// ceil(columns * Bits / 64) words.
using StoreCodes = void (*)(const CodeEpilogue& row, std::int64_t columns, std::uint64_t* words);

/// out[n] = acc[n] + column_add[n] + row_add, for `columns` columns.
using StoreSums = void (*)(
    const std::int32_t* acc, const std::int32_t* column_add, std::int32_t row_add, std::int64_t columns,
    std::int32_t* out);

struct CodeKernels {
  PackRow pack_row;
  UnpackRow unpack_row;
  ExpandPlanes expand_planes;
  IntegerDot integer_dot;
  StoreCodes store_codes;
  bool decodes_once;  // integer_dot takes codes apart for all rows, and not for a few at a time
};

/// Kernels on the tile registers of AMX, with which a set replaces those on vectors.
struct TileKernels {
  IntegerDot integer_dot[4];  // 1, 2, 4, 8 bits
  Int8Linear int8_linear[3];  // 2, 4, 8 bits
};

struct KernelSet {
  Isa isa;
  CodeKernels codes[4];  // 1, 2, 4, 8 bits
  StoreSums store_sums;
  LinearKernels linear;
  GradientKernels gradient;
  TransformerKernels transformer;
  EmbeddingKernels embedding;
  ConvolutionKernels convolution;

  const CodeKernels& for_bits(int bits) const { return codes[bits == 8 ? 3 : bits / 2]; }
};

}  // namespace bittensor
