#pragma once

/// The kernel of the embedding, as plain data; see kernel_set.hpp for the rule this header keeps.

#include <cstdint>

#include "bittensor/group_quantized.hpp"

namespace bittensor {

/// Room that `DequantizeRow` needs behind the values of a row.
inline constexpr int row_padding = 16;

/// values[k] = row `row` of the weight of docs/numerics.md, section 3. The row_padding values behind the columns may be
/// overwritten.
using DequantizeRow =
    void (*)(const PreparedLayout& layout, const std::uint8_t* prepared, std::int64_t row, float* values);

struct EmbeddingKernels {
  DequantizeRow dequantize_row[3];  // 2, 4, 8 bits

  DequantizeRow dequantize_row_for(int bits) const { return dequantize_row[bits == 8 ? 2 : bits / 4]; }
};

}  // namespace bittensor
