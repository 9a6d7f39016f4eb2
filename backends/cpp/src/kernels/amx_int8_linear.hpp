#pragma once

/// The group-quantized linear with int8 activations on AMX. A product of tile registers, 16 rows by 16 weight rows and
/// up to 64 columns, takes 16 cycles; what decides is how often its sums leave the registers, at the end of each group.

#include <cstdint>

#include "amx_long_groups.hpp"
#include "amx_short_groups.hpp"
#include "avx512vnni.hpp"
#include "int8_linear.hpp"

namespace bittensor {
namespace {

/// Whether to take the kernel of long groups, which groups of 64 columns fit as well. It decodes less at a time, which
/// is faster where a few rows meet long rows of a weight.
inline bool groups_are_long(const PreparedLayout& layout, std::int64_t rows) {
  const std::int64_t columns = layout.group_blocks() * layout.block_columns();
  return columns > 64 || (columns == 64 && rows <= 32 && layout.in_features > 1024);
}

template <int Bits, ZeroKind Kind>
void amx_int8_linear_of_kind(const Int8LinearBlock& block) {
  const PreparedLayout& layout = *block.layout;
  if (groups_are_long(layout, block.rows)) return AmxLongGroups<Bits, Kind>::run(block);
  if constexpr (shares_activation_scales(Bits, Kind)) {
    // Groups are multiples of 8 columns or alone, so that at most two of those taken here share a scale.
    if (layout.groups() > 1 && layout.groups_together() == 2) return AmxShortGroups<Bits, Kind, 2>::run(block);
  }
  AmxShortGroups<Bits, Kind, 1>::run(block);
}

/// Whether tiles are faster than vectors. With few rows they would be mostly empty, and decoding costs more than it
/// saves; with groups shorter than 32 columns the sums leave them too often.
inline bool tiles_pay(const PreparedLayout& layout, std::int64_t rows) {
  const std::int64_t columns = layout.group_blocks() * layout.block_columns();
  return columns >= 64 ? rows >= 5 : columns >= 32 && rows >= 9;
}

template <int Bits>
void amx_int8_linear(const Int8LinearBlock& block) {
  if (!tiles_pay(*block.layout, block.rows)) return int8_linear<Avx512Vnni, Bits>(block);
  switch (block.layout->zero_kind) {
    case ZeroKind::symmetric: return amx_int8_linear_of_kind<Bits, ZeroKind::symmetric>(block);
    case ZeroKind::integer: return amx_int8_linear_of_kind<Bits, ZeroKind::integer>(block);
    case ZeroKind::offset: return amx_int8_linear_of_kind<Bits, ZeroKind::offset>(block);
  }
}

}  // namespace
}  // namespace bittensor
