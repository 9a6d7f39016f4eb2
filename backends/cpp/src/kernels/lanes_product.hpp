#pragma once

/// The micro-kernels of a linear whose weight rows have activations of their own, as in a depthwise convolution;
/// written once for every instruction set V (a traits class). Lanes run over weight rows, as in the other linears, but
/// here one lane of a vector of activations belongs to each, so that activations are quantized lane by lane as well.
///
/// All is done in float32, also what section 4 of docs/numerics.md sums in int32: the sums are whole numbers below
/// 2^24, of which every one is a float (most_int8_lanes_columns).

#include <cstdint>

#include "activations.hpp"
#include "bittensor/convolution_kernels.hpp"
#include "linear_tiles.hpp"
#include "planes.hpp"

namespace bittensor {
namespace {

/// Codes less their zeros, a vector for each column. Those of the gaps behind a group are overwritten by the next.
template <class V, int Bits>
void decode_lanes(const LanesBlock& block) {
  using Float = typename V::Float;
  constexpr int block_columns = 32 / Bits;
  const PreparedLayout& layout = *block.layout;
  const std::uint8_t* codes = block.codes;
  for (std::int64_t g = 0; g < layout.groups(); ++g) {
    float* to = block.weights + g * layout.group_size * tile_rows;
    for (std::int64_t b = layout.blocks_of(layout.columns_of_group(g)); b > 0; --b) {
      for (int first = 0; first < tile_rows; first += V::lanes) {
        Float zero = V::broadcast_f32(layout.zero_kind == ZeroKind::symmetric ? 1 << (Bits - 1) : 0);
        if (layout.zero_kind == ZeroKind::integer) {
          zero = V::to_float(V::load_u8_as_i32(block.zeros + g * tile_rows + first));
        }
        const Float shifted_zero = V::add(zero, V::broadcast_f32(above_codes));
        const typename V::LaneVector packed = V::load_lanes(codes + 4 * first);
        for_each_plane<block_columns>([&]<int Column>() {
          const auto shifted = V::template shift_down<8 * (Column % 4) + Bits*(Column / 4)>(packed);
          V::store_float(
              to + Column * tile_rows + first,
              V::subtract_f32(V::template code_in_fraction<Bits>(shifted), shifted_zero));
        });
      }
      codes += tile_block_bytes;
      to += block_columns * tile_rows;
    }
  }
}

template <class V, bool Quantize, bool HasOffset>
struct LanesProduct {
  using Float = typename V::Float;

  /// Factors that make codes of the activations of a group, for a few positions, and the scales of these.
  template <int Positions>
  [[gnu::always_inline]] static void find_scales(
      const LanesBlock& block, const float* x, const std::int64_t* offsets, std::int64_t columns,
      Float (&inverse)[Positions], Float (&scale)[Positions]) {
    const Float none = V::broadcast_f32(0.0F);
    const Float most = V::broadcast_f32(127.0F);
    Float amax[Positions];
#pragma GCC unroll 8
    for (int i = 0; i < Positions; ++i) amax[i] = none;
    for (std::int64_t k = 0; k < columns; ++k) {
      const float* from = x + offsets[k];
#pragma GCC unroll 8
      for (int i = 0; i < Positions; ++i) {
        amax[i] = V::max(amax[i], V::magnitude(V::load_float(from + i * block.position_stride, FloatType::f32)));
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < Positions; ++i) {
      const Float above = V::subtract_f32(amax[i], V::broadcast_f32(smallest_amax));
      inverse[i] = V::where_negative(above, none, V::divide(most, amax[i]));
      scale[i] = V::where_negative(above, none, V::divide(amax[i], most));
    }
  }

  [[gnu::always_inline]] static Float code_of(const Float& value, const Float& inverse) {
    // Adding 1.5 * 2^23 rounds to a whole number, ties to even. Infinity * (127 / infinity) is NaN, and stays.
    const Float whole = V::broadcast_f32(12582912.0F);
    return V::subtract_f32(V::add(V::multiply(value, inverse), whole), whole);
  }

  /// Some results side by side in a row, of as many rows of the weight as there are lanes, from `first` on. Never
  /// inlined: as a part of the loops around it, it is left too few registers.
  template <int Positions>
  [[gnu::noinline]] static void multiply(const LanesBlock& block, const float* x, int first, float* to) {
    Float y[Positions];
    if constexpr (Quantize) {
      multiply_codes<Positions>(block, x, first, y);
    } else {
      multiply_floats<Positions>(block, x, first, y);
    }
#pragma GCC unroll 8
    for (int i = 0; i < Positions; ++i) V::store_float(to + i * block.y_stride, y[i]);
  }

  template <int Positions>
  [[gnu::always_inline]] static void multiply_floats(
      const LanesBlock& block, const float* x, int first, Float (&y)[Positions]) {
    const PreparedLayout& layout = *block.layout;
    const std::int64_t group_size = layout.group_size;
    const std::int64_t size = bytes_of(layout.scale_type);
    const std::int64_t* offsets = block.offsets;
    const float* weights = block.weights + first;
    const std::uint8_t* scales = block.scales + first * size;
    const std::uint8_t* zeros = block.zeros + first * size;
    const Float none = V::broadcast_f32(0.0F);
#pragma GCC unroll 8
    for (int i = 0; i < Positions; ++i) y[i] = none;
    for (std::int64_t left = layout.in_features; left > 0; left -= group_size) {
      Float product[Positions];
      Float sum[Positions];
#pragma GCC unroll 8
      for (int i = 0; i < Positions; ++i) product[i] = sum[i] = none;
      add_products<Positions>(
          block, x, offsets, weights, left < group_size ? left : group_size, product, sum,
          [](const Float& value, int /*unused*/) { return value; });
      const Float scale = V::load_float(scales, layout.scale_type);
#pragma GCC unroll 8
      for (int i = 0; i < Positions; ++i) {
        y[i] = V::fma(product[i], scale, y[i]);
        if constexpr (HasOffset) y[i] = V::fma(sum[i], V::load_float(zeros, layout.scale_type), y[i]);
      }
      offsets += group_size;
      weights += group_size * tile_rows;
      scales += tile_rows * size;
      zeros += tile_rows * size;
    }
  }

  template <int Positions>
  [[gnu::always_inline]] static void multiply_codes(
      const LanesBlock& block, const float* x, int first, Float (&y)[Positions]) {
    const PreparedLayout& layout = *block.layout;
    const std::int64_t group_size = layout.group_size;
    const std::int64_t size = bytes_of(layout.scale_type);
    const std::int64_t activation_columns = layout.groups_together() * group_size;
    const std::int64_t* offsets = block.offsets;
    const float* weights = block.weights + first;
    const std::uint8_t* scales = block.scales + first * size;
    const std::uint8_t* zeros = block.zeros + first * size;
    const Float none = V::broadcast_f32(0.0F);
#pragma GCC unroll 8
    for (int i = 0; i < Positions; ++i) y[i] = none;
    for (std::int64_t begin = 0; begin < layout.in_features; begin += activation_columns) {
      const std::int64_t left = layout.in_features - begin;
      const std::int64_t columns = left < activation_columns ? left : activation_columns;
      Float inverse[Positions];
      Float x_scale[Positions];
      find_scales<Positions>(block, x, offsets, columns, inverse, x_scale);
      Float z[Positions];
#pragma GCC unroll 8
      for (int i = 0; i < Positions; ++i) z[i] = none;
      for (std::int64_t k = 0; k < columns; k += group_size) {
        Float product[Positions];
        Float sum[Positions];
#pragma GCC unroll 8
        for (int i = 0; i < Positions; ++i) product[i] = sum[i] = none;
        add_products<Positions>(
            block, x, offsets, weights, columns - k < group_size ? columns - k : group_size, product, sum,
            [&](const Float& value, int i) { return code_of(value, inverse[i]); });
        const Float scale = V::load_float(scales, layout.scale_type);
#pragma GCC unroll 8
        for (int i = 0; i < Positions; ++i) {
          z[i] = k == 0 ? V::multiply(product[i], scale) : V::fma(product[i], scale, z[i]);
          if constexpr (HasOffset) z[i] = V::fma(sum[i], V::load_float(zeros, layout.scale_type), z[i]);
        }
        offsets += group_size;
        weights += group_size * tile_rows;
        scales += tile_rows * size;
        zeros += tile_rows * size;
      }
#pragma GCC unroll 8
      for (int i = 0; i < Positions; ++i) y[i] = V::fma(z[i], x_scale[i], y[i]);
    }
  }

  /// Adds the products of a group of columns and, where offsets need them, the activations themselves.
  template <int Positions, class Activation>
  [[gnu::always_inline]] static void add_products(
      const LanesBlock& block, const float* x, const std::int64_t* offsets, const float* weights, std::int64_t columns,
      Float (&product)[Positions], Float (&sum)[Positions], const Activation& activation) {
    for (std::int64_t k = 0; k < columns; ++k) {
      const float* from = x + offsets[k];
      const Float weight = V::load_float(weights + k * tile_rows, FloatType::f32);
#pragma GCC unroll 8
      for (int i = 0; i < Positions; ++i) {
        const Float factor = activation(V::load_float(from + i * block.position_stride, FloatType::f32), i);
        product[i] = V::fma(factor, weight, product[i]);
        if constexpr (HasOffset) sum[i] = V::add(sum[i], factor);
      }
    }
  }

  static void run(const LanesBlock& block) {
    constexpr int most_positions = 4;
    for (std::int64_t row = 0; row < block.rows; ++row) {
      const float* x = block.x + row * block.row_stride;
      float* y = block.y + row * block.positions * block.y_stride;
      for_each_run<most_positions>(block.positions, [&]<int Positions>(std::int64_t position) {
        for (int first = 0; first < tile_rows; first += V::lanes) {
          multiply<Positions>(
              block, x + position * block.position_stride + first, first, y + position * block.y_stride + first);
        }
      });
    }
  }
};

template <class V, int Bits, bool Quantize>
void multiply_lanes(const LanesBlock& block) {
  decode_lanes<V, Bits>(block);
  if (block.layout->zero_kind == ZeroKind::offset) {
    LanesProduct<V, Quantize, true>::run(block);
  } else {
    LanesProduct<V, Quantize, false>::run(block);
  }
}

}  // namespace
}  // namespace bittensor
