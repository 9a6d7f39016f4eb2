#pragma once

/// The group-quantized linear (docs/numerics.md, sections 4 and 5).

#include <cstdint>

#include "bittensor/export.hpp"
#include "bittensor/group_quantized.hpp"
#include "bittensor/isa.hpp"
#include "bittensor/parallel.hpp"
#include "bittensor/patches.hpp"

namespace bittensor {

/// What is computed from x first, in float32, row by row; the kernels of transformer_kernels.hpp define it.
enum class Prologue : std::uint8_t { none, rms_norm, swiglu };

/// Operands of `linear`. What is written does not overlap what is read, but for `out`, which may be `residual`.
struct Linear {
  const void* x = nullptr;                // [rows, in_features] of float_type, for swiglu [rows, 2 * in_features]
  std::int64_t x_row_bytes = 0;           // from one row of x to the next
  const Patches* patches = nullptr;       // x is images, its rows their patches, without x_row_bytes and prologue
  std::int64_t rows = 0;                  // M
  FloatType float_type = FloatType::f32;  // of x and out
  const std::uint8_t* prepared = nullptr;
  PreparedLayout layout{};        // as read_layout gives it
  std::int64_t first_output = 0;  // of the rows of the weight that are multiplied
  std::int64_t outputs = 0;       // how many of them; 0: all from the first on
  const float* bias = nullptr;    // [out_features], or null
  Activation activation = Activation::none;
  Prologue prologue = Prologue::none;
  const float* norm_weight = nullptr;  // [in_features], for rms_norm
  float norm_epsilon = 0.0F;
  const void* residual = nullptr;  // [rows, out_features] of float_type without gaps, added last, or null
  void* out = nullptr;             // [rows, out_features] of float_type, without gaps
  const void* next = nullptr;      // memory that is read when this is done, or null; advice, as ParallelFor::expect
  std::int64_t next_bytes = 0;
};

/// Activations are quantized to int8, group by group; the result has the same bits on every instruction set, for every
/// number of threads and rows. Throws std::invalid_argument if the weight has not all rows that are to be multiplied,
/// or for patches with a prologue.
BITTENSOR_API void linear_int8(const Linear& linear, const KernelSet& kernels, const ParallelFor& parallel = {});

/// Activations become three rows of digits (docs/numerics.md, section 5), with the same guarantee. Throws the same.
BITTENSOR_API void linear_float(const Linear& linear, const KernelSet& kernels, const ParallelFor& parallel = {});

/// Whether `mlp_int8` and `mlp_float` take weights of these layouts: `up` has as many outputs as `down` has columns, or
/// twice as many for SwiGLU, and a chunk of hidden columns that ends where tiles of `up` and a group of `down` end is
/// small.
BITTENSOR_API bool joins_in_mlp(const PreparedLayout& up, const PreparedLayout& down);

/// `down` of the results of `up`, with the bits of one linear after the other, but these are never stored. `down` takes
/// no x. If it has the prologue swiglu, it multiplies SwiGLU of the results, and `up` has neither bias nor activation;
/// otherwise it has no prologue. `up` has no residual and no out, and multiplies all rows of its weight. Both have at
/// least one row of float32. The out of `down` may also be the x of `up`, row for row. Throws as a linear does.
BITTENSOR_API void mlp_int8(
    const Linear& up, const Linear& down, const KernelSet& kernels, const ParallelFor& parallel = {});
BITTENSOR_API void mlp_float(
    const Linear& up, const Linear& down, const KernelSet& kernels, const ParallelFor& parallel = {});

}  // namespace bittensor
