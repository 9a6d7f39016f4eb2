// The loop nest of the embedding: each row is made in float32, then rounded to the type of the result.

#include "bittensor/embedding.hpp"

#include <algorithm>
#include <atomic>

#include "count_call.hpp"
#include "scratch.hpp"

namespace bittensor {

std::optional<std::int64_t> embedding(
    const Embedding& embedding, const KernelSet& kernels, const ParallelFor& parallel) {
  // Below this many values a second thread costs more than it saves.
  constexpr std::int64_t serial_values = std::int64_t{1} << 15;
  const PreparedLayout& layout = embedding.layout;
  const auto is_row = [&](std::int64_t index) { return index >= 0 && index < layout.out_features; };
  const std::int64_t* behind = embedding.indices + embedding.count;
  const std::int64_t* first_wrong = std::find_if_not(embedding.indices, behind, is_row);
  if (first_wrong != behind) return first_wrong - embedding.indices;

  count_call(KernelKind::dequantize_row, layout.bits, kernels.isa);
  count_call(KernelKind::store_outputs, 0, kernels.isa);
  const DequantizeRow dequantize_row = kernels.embedding.dequantize_row_for(layout.bits);
  const std::int64_t columns = layout.in_features;
  const bool serial = embedding.count * columns < serial_values;
  std::atomic<std::int64_t> wrong{-1};  // where an index is none any more, because another thread writes there
  (serial ? ParallelFor() : parallel)(embedding.count, [&](std::int64_t begin, std::int64_t end) {
    const Scratch memory(ScratchUse::task, (columns + row_padding) * 4);
    float* values = memory.floats();
    for (std::int64_t i = begin; i < end; ++i) {
      // Looked at once more, in the copy that is used.
      const std::int64_t index = *static_cast<const volatile std::int64_t*>(embedding.indices + i);
      if (!is_row(index)) {
        wrong = i;
        return;
      }
      dequantize_row(layout, embedding.prepared, index, values);
      kernels.linear.store_outputs(
          values, columns, nullptr, Activation::none, nullptr, embedding.float_type,
          static_cast<std::uint8_t*>(embedding.out) + i * columns * bytes_of(embedding.float_type));
    }
  });
  if (wrong >= 0) return wrong;
  return std::nullopt;
}

}  // namespace bittensor
