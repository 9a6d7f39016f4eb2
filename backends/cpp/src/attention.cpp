// Attention over a cache.

#include "bittensor/attention.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention_rows.hpp"
#include "count_call.hpp"
#include "rounding.hpp"
#include "scratch.hpp"

namespace bittensor {
namespace {

/// Queries that meet the keys together: enough for the multipliers, few enough that not many lie in each other's
/// future.
constexpr std::int64_t query_block = 16;

class Attend {
 public:
  Attend(const Attention& attention, const KernelSet& kernels)
      : a_(attention),
        kernels_(kernels),
        shared_(a_.heads / a_.key_value_heads),
        value_stride_(round_up(a_.head_size, value_unit)),
        panels_(ceil_divide(a_.capacity, key_panel)) {}

  void run(const ParallelFor& parallel) {
    const Scratch queries(ScratchUse::operation, a_.tokens * a_.heads * a_.head_size * 4);
    queries_ = queries.floats();
    constexpr std::int64_t serial_tokens = 16;
    const ParallelFor alone;
    (parallel.pays(a_.tokens, serial_tokens) ? parallel : alone)(
        a_.key_value_heads, [&](std::int64_t begin, std::int64_t end) {
          for (std::int64_t head = begin; head < end; ++head) take_in(head);
        });
    const std::int64_t blocks = ceil_divide(a_.tokens, query_block);
    constexpr std::int64_t serial_products = std::int64_t{1} << 15;
    const std::int64_t products = a_.tokens * a_.heads * a_.head_size * (a_.position + a_.tokens);
    // Blocks from the last to the first, and heads inside: neighbours take about as long, long ones first.
    (parallel.pays(products, serial_products) ? parallel : alone)(
        blocks * a_.key_value_heads, [&](std::int64_t begin, std::int64_t end) {
          for (std::int64_t task = begin; task < end; ++task) {
            attend_block(task % a_.key_value_heads, blocks - 1 - task / a_.key_value_heads);
          }
        });
  }

 private:
  /// Rotates value i and value i + head_size / 2 by the angle of `token`.
  void rotate(const float* from, std::int64_t token, float scale, float* __restrict out) const {
    const std::int64_t half = a_.head_size / 2;
    const float* cos = a_.cos + token * a_.head_size;
    const float* sin = a_.sin + token * a_.head_size;
    for (std::int64_t i = 0; i < half; ++i) {
      out[i] = (from[i] * cos[i] - from[i + half] * sin[i]) * scale;
    }
    for (std::int64_t i = half; i < a_.head_size; ++i) {
      out[i] = (from[i] * cos[i] + from[i - half] * sin[i]) * scale;
    }
  }

  /// The new tokens of the heads that share the keys of `head`: rotated queries to scratch, keys and values to the
  /// cache.
  void take_in(std::int64_t head) const {
    const float scale = 1.0F / std::sqrt(static_cast<float>(a_.head_size));
    const std::int64_t head_bytes = a_.head_size * 4;
    const Scratch memory(ScratchUse::task, head_bytes);
    float* turned = memory.floats();
    for (std::int64_t t = 0; t < a_.tokens; ++t) {
      const float* row = a_.projections + t * a_.projection_stride;
      for (std::int64_t i = 0; i < shared_; ++i) {
        rotate(row + (head * shared_ + i) * a_.head_size, t, scale, query(head, t) + i * a_.head_size);
      }
      const std::int64_t at = a_.position + t;
      float* key = a_.keys + ((head * panels_ + at / key_panel) * a_.head_size) * key_panel + at % key_panel;
      rotate(row + (a_.heads + head) * a_.head_size, t, 1.0F, turned);
      for (std::int64_t i = 0; i < a_.head_size; ++i) key[i * key_panel] = turned[i];
      std::memcpy(
          a_.values + (head * a_.capacity + at) * value_stride_,
          row + (a_.heads + a_.key_value_heads + head) * a_.head_size, static_cast<std::size_t>(head_bytes));
    }
  }

  float* query(std::int64_t head, std::int64_t token) const {
    return queries_ + (head * a_.tokens + token) * shared_ * a_.head_size;
  }

  void attend_block(std::int64_t head, std::int64_t block) const {
    const std::int64_t first = block * query_block;
    const std::int64_t count = std::min(query_block, a_.tokens - first);
    const std::int64_t rows = count * shared_;
    const std::int64_t seen = a_.position + first + count;  // by the last of them
    const Scratch memory(ScratchUse::task, (score_floats(rows, seen) + rows * value_stride_) * 4);
    float* scores = memory.floats();
    float* mixed = scores + score_floats(rows, seen);
    const HeadOperands operands = {
        query(head, first),
        a_.head_size,
        a_.keys + head * panels_ * a_.head_size * key_panel,
        a_.values + head * a_.capacity * value_stride_,
        value_stride_,
        a_.head_size,
        mixed,
        value_stride_};
    const auto visible = [&](std::int64_t row) { return a_.position + first + row / shared_ + 1; };
    attend_rows(kernels_, operands, rows, seen, visible, scores);
    for (std::int64_t row = 0; row < rows; ++row) {
      std::memcpy(
          a_.out + (first + row / shared_) * a_.heads * a_.head_size + (head * shared_ + row % shared_) * a_.head_size,
          mixed + row * value_stride_, static_cast<std::size_t>(a_.head_size) * 4);
    }
  }

  const Attention& a_;
  const KernelSet& kernels_;
  std::int64_t shared_;        // heads that share keys and values
  std::int64_t value_stride_;  // floats
  std::int64_t panels_;        // of keys, for each head
  float* queries_ = nullptr;   // [key_value_heads, tokens, shared_, head_size]
};

}  // namespace

void attend(const Attention& attention, const KernelSet& kernels, const ParallelFor& parallel) {
  check_key_value_heads(attention.key_value_heads);
  count_call(KernelKind::panel_product, 0, kernels.isa);
  count_call(KernelKind::softmax_row, 0, kernels.isa);
  Attend(attention, kernels).run(parallel);
}

}  // namespace bittensor
