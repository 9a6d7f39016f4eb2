// The loop nest of the embedding: each row is made in float32, then rounded to the type of the result.

#include "bittensor/embedding.hpp"

#include <atomic>

#include "bittensor/kernel_table.hpp"
#include "scratch.hpp"

namespace bittensor {

std::optional<std::int64_t> embedding(
    const Embedding& embedding, const KernelSet& kernels, const ParallelFor& parallel) {
  // Below this many values a second thread costs more than it saves.
  constexpr std::int64_t serial_values = std::int64_t{1} << 15;
  const PreparedLayout& layout = embedding.layout;
  count_call(KernelKind::dequantize_row, layout.bits, kernels.isa);
  count_call(KernelKind::store_outputs, 0, kernels.isa);
  const DequantizeRow dequantize_row = kernels.embedding.dequantize_row_for(layout.bits);
  const std::int64_t columns = layout.in_features;
  const bool serial = embedding.count * columns < serial_values;
  std::atomic<std::int64_t> wrong{embedding.count};  // the first index that is no row
  (serial ? ParallelFor() : parallel)(embedding.count, [&](std::int64_t begin, std::int64_t end) {
    auto* values = reinterpret_cast<float*>(
        scratch(ScratchUse::task, static_cast<std::size_t>(columns + row_padding) * sizeof(float)));
    for (std::int64_t i = begin; i < end; ++i) {
      // Read once: what was looked at is what is used, also while another thread writes there.
      const std::int64_t index = *static_cast<const volatile std::int64_t*>(embedding.indices + i);
      if (index < 0 || index >= layout.out_features) {
        for (std::int64_t first = wrong; i < first && !wrong.compare_exchange_weak(first, i);) {
        }
        return;
      }
      dequantize_row(layout, embedding.prepared, index, values);
      kernels.linear.store_outputs(
          values, columns, nullptr, Activation::none, nullptr, embedding.float_type,
          static_cast<std::uint8_t*>(embedding.out) + i * columns * bytes_of(embedding.float_type));
    }
  });
  if (wrong < embedding.count) return wrong;
  return std::nullopt;
}

}  // namespace bittensor
