// Attention of whole sequences.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "attention_rows.hpp"
#include "bittensor/attention.hpp"
#include "count_call.hpp"
#include "rounding.hpp"
#include "scratch.hpp"

namespace bittensor {
namespace {

/// Queries that meet the keys of a head together. Enough for the multipliers; their scores stay in the caches.
constexpr std::int64_t query_block = 64;

/// One task for each sequence and each head of its keys: it gathers the keys that are seen, and shows them to all
/// queries.
class AttendBidirectional {
 public:
  AttendBidirectional(const BidirectionalAttention& attention, const KernelSet& kernels)
      : a_(attention),
        kernels_(kernels),
        shared_(a_.heads / a_.key_value_heads),
        value_stride_(round_up(a_.head_size, value_unit)),
        block_(std::min(query_block, a_.queries)) {}

  void run(const ParallelFor& parallel) const {
    if (a_.sequences == 0 || a_.queries == 0) return;
    constexpr std::int64_t serial_products = std::int64_t{1} << 15;
    const std::int64_t results = a_.sequences * a_.heads * a_.head_size * a_.queries;
    const std::int64_t products = results * std::min(a_.keys, serial_products);  // no fewer than pay
    (parallel.pays(products, serial_products) ? parallel : ParallelFor())(
        a_.sequences * a_.key_value_heads, [&](std::int64_t begin, std::int64_t end) {
          std::vector<std::int64_t> seen;
          for (std::int64_t task = begin; task < end; ++task) {
            const std::int64_t sequence = task / a_.key_value_heads;
            if (task == begin || task % a_.key_value_heads == 0) find_keys(sequence, seen);
            attend_head(sequence, task % a_.key_value_heads, seen);
          }
        });
  }

 private:
  /// The keys of a sequence that are seen.
  void find_keys(std::int64_t sequence, std::vector<std::int64_t>& seen) const {
    seen.clear();
    for (std::int64_t j = 0; j < a_.keys; ++j) {
      if (a_.key_mask == nullptr || a_.key_mask[sequence * a_.keys + j] != 0) seen.push_back(j);
    }
  }

  /// Whether vectors of whole units can be read or written where the caller has them.
  bool has_whole_units() const { return value_stride_ == a_.head_size; }

  void attend_head(std::int64_t sequence, std::int64_t head, const std::vector<std::int64_t>& seen) const {
    const auto count = static_cast<std::int64_t>(seen.size());
    if (count == 0) return clear(sequence, head);
    // Padding comes behind the tokens as a rule: then those that are seen follow each other.
    const bool in_place = has_whole_units() && seen.back() - seen.front() == count - 1;
    const std::int64_t key_floats = round_up(count, key_panel) * a_.head_size;
    const std::int64_t value_floats = in_place ? 0 : count * value_stride_;
    const std::int64_t out_floats = has_whole_units() ? 0 : block_ * value_stride_;
    const Scratch memory(ScratchUse::task, (key_floats + value_floats + out_floats + score_floats(block_, count)) * 4);
    float* const keys = memory.floats();
    float* const values = keys + key_floats;
    float* const mixed = values + value_floats;
    float* const scores = mixed + out_floats;
    gather_keys(sequence, head, seen, keys);
    if (!in_place) gather_values(sequence, head, seen, values);

    HeadOperands operands{};
    operands.query_stride = a_.query.token_stride;
    operands.keys = keys;
    operands.values = in_place ? a_.value.row(sequence, head, seen.front()) : values;
    operands.value_stride = in_place ? a_.value.token_stride : value_stride_;
    operands.size = a_.head_size;
    const std::int64_t columns = a_.heads * a_.head_size;
    for (std::int64_t own = head * shared_; own < (head + 1) * shared_; ++own) {
      for (std::int64_t first = 0; first < a_.queries; first += block_) {
        const std::int64_t rows = std::min(block_, a_.queries - first);
        float* out = result(sequence, own) + first * columns;
        operands.queries = a_.query.row(sequence, own, first);
        operands.out = has_whole_units() ? out : mixed;
        operands.out_stride = has_whole_units() ? columns : value_stride_;
        attend_rows(kernels_, operands, rows, count, [count](std::int64_t) { return count; }, scores);
        if (has_whole_units()) continue;
        for (std::int64_t m = 0; m < rows; ++m) std::copy_n(mixed + m * value_stride_, a_.head_size, out + m * columns);
      }
    }
  }

  /// Panels of keys times the scale. Columns behind the last key are multiplied too, and not used.
  void gather_keys(std::int64_t sequence, std::int64_t head, const std::vector<std::int64_t>& seen, float* keys) const {
    const auto count = static_cast<std::int64_t>(seen.size());
    for (std::int64_t j = 0; j < round_up(count, panel_unit); ++j) {
      float* column = keys + j / key_panel * a_.head_size * key_panel + j % key_panel;
      const float* key = a_.key.row(sequence, head, seen[static_cast<std::size_t>(std::min(j, count - 1))]);
      for (std::int64_t i = 0; i < a_.head_size; ++i) column[i * key_panel] = a_.scale * key[i];
    }
  }

  void gather_values(
      std::int64_t sequence, std::int64_t head, const std::vector<std::int64_t>& seen, float* values) const {
    for (const std::int64_t j : seen) {
      std::copy_n(a_.value.row(sequence, head, j), a_.head_size, values);
      std::fill(values + a_.head_size, values + value_stride_, 0.0F);
      values += value_stride_;
    }
  }

  /// Results where no key is seen.
  void clear(std::int64_t sequence, std::int64_t head) const {
    const std::int64_t columns = a_.heads * a_.head_size;
    for (std::int64_t own = head * shared_; own < (head + 1) * shared_; ++own) {
      for (std::int64_t t = 0; t < a_.queries; ++t) {
        std::fill_n(result(sequence, own) + t * columns, a_.head_size, 0.0F);
      }
    }
  }

  float* result(std::int64_t sequence, std::int64_t head) const {
    return a_.out + (sequence * a_.queries * a_.heads + head) * a_.head_size;
  }

  const BidirectionalAttention& a_;
  const KernelSet& kernels_;
  std::int64_t shared_;        // heads that share keys and values
  std::int64_t value_stride_;  // floats
  std::int64_t block_;         // queries
};

}  // namespace

void attend_bidirectional(
    const BidirectionalAttention& attention, const KernelSet& kernels, const ParallelFor& parallel) {
  check_key_value_heads(attention.key_value_heads);
  count_call(KernelKind::panel_product, 0, kernels.isa);
  count_call(KernelKind::softmax_row, 0, kernels.isa);
  AttendBidirectional(attention, kernels).run(parallel);
}

}  // namespace bittensor
