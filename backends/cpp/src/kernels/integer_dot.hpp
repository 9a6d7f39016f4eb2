#pragma once

/// The integer micro-kernel and its loop nest, written once for every instruction set V (a traits class).
///
/// Lanes run along k, the direction in which codes are packed, so a weight is used as it lies in memory: one load, and
/// a shift and a mask for each plane, give operands that meet the planes of x in the same order. Each accumulator is
/// summed across its lanes once, at the end.

#include <cstdint>

#include "bittensor/kernel_set.hpp"
#include "planes.hpp"

namespace bittensor {
namespace {

inline constexpr int tile_columns = 4;

/// How far ahead of its use a weight is fetched, into the second-level cache, where the loop waits for memory.
inline constexpr int prefetch_tiles = 4;

template <class V, int Bits, int Rows>
struct IntegerDotTile {
  static constexpr int plane_count = 8 / Bits;
  static constexpr std::int64_t planes_bytes = block_bytes * plane_count;  // planes of one block
  using Dot = typename V::template Dot<Bits, (1 << Bits) - 1>;
  using Vector = typename V::Vector;
  using Partial = typename Dot::Partial;

  /// One vector of packed weights of each column against the planes of each row.
  [[gnu::always_inline]] static void step(
      const Vector (&weight)[tile_columns], const std::int8_t* planes, std::int64_t plane_stride,
      Partial (&partial)[Rows][tile_columns]) {
    for_each_plane<plane_count>([&]<int Plane>() {
      Vector codes[tile_columns];
#pragma GCC unroll 8
      for (int n = 0; n < tile_columns; ++n) codes[n] = V::template plane<Bits, Plane>(weight[n]);
#pragma GCC unroll 8
      for (int m = 0; m < Rows; ++m) {
        const Vector x = V::load(planes + m * plane_stride + Plane * block_bytes);
#pragma GCC unroll 8
        for (int n = 0; n < tile_columns; ++n) {
          Partial sum = Dot::step(partial[m][n], codes[n], x);
          V::settle(sum);
          partial[m][n] = sum;
        }
      }
    });
  }

  [[gnu::always_inline]] static void widen(
      Partial (&partial)[Rows][tile_columns], typename V::Sum (&sums)[Rows][tile_columns]) {
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 8
      for (int n = 0; n < tile_columns; ++n) {
        sums[m][n] = Dot::widen(sums[m][n], partial[m][n]);
        partial[m][n] = Dot::zero();
      }
    }
  }

  /// `weights` point to the packed rows of the tile's columns. With 0 `prefetch_words` nothing is fetched.
  static void run(
      const std::int8_t* planes, std::int64_t plane_stride, const std::uint64_t* const (&weights)[tile_columns],
      std::int64_t row_words, std::int64_t prefetch_words, std::int32_t* acc) {
    constexpr int block_words = block_bytes / 8;
    constexpr int vector_words = V::bytes / 8;
    Partial partial[Rows][tile_columns];
    typename V::Sum sums[Rows][tile_columns];
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 8
      for (int n = 0; n < tile_columns; ++n) {
        partial[m][n] = Dot::zero();
        sums[m][n] = V::zero_sum();
      }
    }
    const std::int64_t blocks = row_words / block_words;
    constexpr int block_steps = block_bytes / V::bytes * plane_count;
    const std::int64_t run_blocks = Dot::max_steps > 0 ? Dot::max_steps / block_steps : blocks;
    for (std::int64_t begin = 0; begin < blocks; begin += run_blocks) {
      const std::int64_t end = begin + run_blocks < blocks ? begin + run_blocks : blocks;
      for (std::int64_t b = begin; b < end; ++b) {
        if (prefetch_words != 0) {
          // A tile to come, in the order of its addresses.
          const std::uint64_t* next = weights[0] + prefetch_words + b * (tile_columns * block_words);
#pragma GCC unroll 8
          for (int n = 0; n < tile_columns; ++n) __builtin_prefetch(next + n * block_words, 0, 2);
        }
#pragma GCC unroll 8
        for (int i = 0; i < block_words; i += vector_words) {
          Vector weight[tile_columns];
#pragma GCC unroll 8
          for (int n = 0; n < tile_columns; ++n) weight[n] = V::load(weights[n] + b * block_words + i);
          step(weight, planes + b * planes_bytes + i * 8, plane_stride, partial);
        }
      }
      if constexpr (Dot::max_steps > 0) widen(partial, sums);
    }
    // The rest of a row that is no whole block; the planes beyond it are zero.
    for (std::int64_t w = blocks * block_words; w < row_words; w += vector_words) {
      Vector weight[tile_columns];
#pragma GCC unroll 8
      for (int n = 0; n < tile_columns; ++n) weight[n] = V::load_words(weights[n] + w, row_words - w);
      step(weight, planes + blocks * planes_bytes + (w - blocks * block_words) * 8, plane_stride, partial);
    }
    widen(partial, sums);
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) V::store_totals(sums[m], acc + m * block_columns);
  }
};

template <class V, int Bits, int Rows>
void integer_dot_rows(const IntegerDotBlock& block, std::int64_t first_row) {
  const std::int8_t* planes = block.planes + first_row * block.plane_stride;
  const bool waits = block.fetch != WordFetch::none && first_row == 0;
  const std::int64_t prefetch_words = waits ? prefetch_tiles * tile_columns * block.word_stride : 0;
  for (std::int64_t n = 0; n < block.columns; n += tile_columns) {
    const std::uint64_t* weights[tile_columns];
    for (int i = 0; i < tile_columns; ++i) {
      // Columns beyond the last repeat it: their sums are written, but nobody reads them.
      const std::int64_t column = n + i < block.columns ? n + i : block.columns - 1;
      weights[i] = block.words + column * block.word_stride;
    }
    IntegerDotTile<V, Bits, Rows>::run(
        planes, block.plane_stride, weights, block.row_words, prefetch_words,
        block.acc + first_row * block_columns + n);
  }
}

/// One row of planes against one weight row after the other: a single stream of words, in the order of memory. A
/// processor that fetches it well by itself is only slowed down by prefetching.
template <class V, int Bits>
struct IntegerDotInOrder {
  static constexpr int plane_count = 8 / Bits;
  static constexpr int block_words = block_bytes / 8;
  static constexpr int vector_words = V::bytes / 8;
  static constexpr int block_steps = block_bytes / V::bytes * plane_count;
  static constexpr int chains = 4;  // sums in flight, each of which waits for its predecessor
  static constexpr int blocks_at_once = block_steps < chains ? chains / block_steps : 1;
  using Dot = typename V::template Dot<Bits, (1 << Bits) - 1>;
  using Partial = typename Dot::Partial;
  using Sum = typename V::Sum;

  /// A vector of words against its planes, which are steps First, First + 1 and so on.
  template <int First>
  [[gnu::always_inline]] static void step(
      const typename V::Vector& words, const std::int8_t* planes, Partial (&partial)[chains]) {
    for_each_plane<plane_count>([&]<int Plane>() {
      Partial& sum = partial[(First + Plane) % chains];
      sum = Dot::step(sum, V::template plane<Bits, Plane>(words), V::load(planes + Plane * block_bytes));
    });
  }

  template <int Blocks>
  [[gnu::always_inline]] static void blocks(
      const std::uint64_t*& words, const std::int8_t*& planes, std::int64_t ahead, Partial (&partial)[chains]) {
    if (ahead != 0) {
      const std::uint64_t* next = words + ahead / 8;
#pragma GCC unroll 4
      for (int i = 0; i < Blocks; ++i) __builtin_prefetch(next + i * block_words, 0, 2);
    }
    for_each_plane<Blocks * block_bytes / V::bytes>([&]<int I>() {
      constexpr int of_block = I * V::bytes % block_bytes;
      constexpr int block = I * V::bytes / block_bytes;
      step<I * plane_count>(
          V::load(words + I * vector_words), planes + block * block_bytes * plane_count + of_block, partial);
    });
    words += Blocks * block_words;
    planes += Blocks * block_bytes * plane_count;
  }

  static void widen(Partial (&partial)[chains], Sum& sum) {
#pragma GCC unroll 8
    for (Partial& each : partial) {
      sum = Dot::widen(sum, each);
      each = Dot::zero();
    }
  }

  static Sum row(const std::int8_t* planes, const std::uint64_t* words, std::int64_t row_words, std::int64_t ahead) {
    Partial partial[chains];
#pragma GCC unroll 8
    for (Partial& each : partial) each = Dot::zero();
    Sum sum = V::zero_sum();
    const std::int64_t end = row_words / block_words;
    constexpr std::int64_t most_blocks = Dot::max_steps * chains / block_steps / blocks_at_once * blocks_at_once;
    static_assert(Dot::max_steps == 0 || most_blocks > 0);
    const std::int64_t run_blocks = Dot::max_steps > 0 ? most_blocks : end;
    for (std::int64_t done = 0; done < end;) {
      std::int64_t left = end - done < run_blocks ? end - done : run_blocks;
      done += left;
      for (; left >= blocks_at_once; left -= blocks_at_once) blocks<blocks_at_once>(words, planes, ahead, partial);
      for (; left > 0; --left) blocks<1>(words, planes, ahead, partial);
      if constexpr (Dot::max_steps > 0) widen(partial, sum);
    }
    // The rest of a row that is no whole block; the planes beyond it are zero.
    const std::int64_t rest = row_words % block_words;
    for (std::int64_t w = 0; w < rest; w += vector_words) {
      step<0>(V::load_words(words + w, rest - w), planes + w * 8, partial);
    }
    widen(partial, sum);
    return sum;
  }

  static void run(const IntegerDotBlock& block) {
    for (std::int64_t n = 0; n < block.columns; n += tile_columns) {
      Sum sums[tile_columns];
      for (std::int64_t i = 0; i < tile_columns; ++i) {
        if (n + i == block.columns) {  // sums of columns beyond the last are written, but nobody reads them
          for (; i < tile_columns; ++i) sums[i] = V::zero_sum();
          break;
        }
        sums[i] = row(block.planes, block.words + (n + i) * block.word_stride, block.row_words, block.ahead);
      }
      V::store_totals(sums, block.acc + n);
    }
  }
};

/// The rows that are left when no whole tile is: fewer than Rows + 1.
template <class V, int Bits, int Rows>
void integer_dot_rest(const IntegerDotBlock& block, std::int64_t first_row) {
  if constexpr (Rows > 0) {
    if (block.rows - first_row == Rows) {
      integer_dot_rows<V, Bits, Rows>(block, first_row);
    } else {
      integer_dot_rest<V, Bits, Rows - 1>(block, first_row);
    }
  }
}

template <class V, int Bits>
void integer_dot(const IntegerDotBlock& block) {
  if constexpr (Bits == 4) {
    if (block.rows == 1 && block.fetch == WordFetch::in_order) return IntegerDotInOrder<V, Bits>::run(block);
  }
  std::int64_t m = 0;
  for (; m + V::max_rows <= block.rows; m += V::max_rows) integer_dot_rows<V, Bits, V::max_rows>(block, m);
  integer_dot_rest<V, Bits, V::max_rows - 1>(block, m);
}

}  // namespace
}  // namespace bittensor
