#pragma once

/// The part that all attention has in common: queries against the keys and values of one head.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "bittensor/attention.hpp"
#include "bittensor/kernel_set.hpp"
#include "rounding.hpp"

namespace bittensor {

inline void check_key_value_heads(std::int64_t count) {
  if (count < 1) throw std::invalid_argument("key_value_heads: expected at least 1, got " + std::to_string(count));
}

/// Queries, keys and values of one head, and where the results belong.
struct HeadOperands {
  const float* queries;  // [rows, query_stride]
  std::int64_t query_stride;
  const float* keys;    // [ceil(seen / key_panel), size, key_panel]
  const float* values;  // [seen, value_stride]; columns up to a multiple of value_unit are read
  std::int64_t value_stride;
  std::int64_t size;
  float* out;  // [rows, out_stride]; columns up to a multiple of value_unit are written
  std::int64_t out_stride;
};

/// Floats that `attend_rows` needs for so many queries that see so many keys.
constexpr std::int64_t score_floats(std::int64_t rows, std::int64_t seen) {
  return rows * round_up(seen, panel_unit);
}

inline bool has_nan(const float* values, std::int64_t count) {
  bool found = false;
  for (std::int64_t i = 0; i < count; ++i) found |= std::isnan(values[i]);
  return found;
}

/// The products with keys and values by the panel kernel of the gradient, and softmax between them. Query m sees the
/// first `visible(m)` keys, of which there are `seen`.
template <class Visible>
void attend_rows(
    const KernelSet& kernels, const HeadOperands& head, std::int64_t rows, std::int64_t seen, const Visible& visible,
    float* scores) {
  const std::int64_t stride = round_up(seen, panel_unit);
  PanelProductBlock product{};
  product.rows = rows;
  product.dy = head.queries;
  product.dy_stride = head.query_stride;
  product.depth = head.size;
  product.panel_stride = key_panel;
  product.sums_stride = stride;
  for (std::int64_t key = 0; key < seen; key += key_panel) {
    product.panel = head.keys + key * head.size;
    product.tiles = std::min(key_panel, stride - key) / panel_unit;
    product.sums = scores + key;
    kernels.gradient.panel_product(product);
  }
  for (std::int64_t m = 0; m < rows; ++m) {
    float* row = scores + m * stride;
    const std::int64_t count = visible(m);
    kernels.transformer.softmax_row(row, count);
    std::fill(row + std::min(round_up(count, panel_unit), stride), row + stride, 0.0F);
  }
  product.dy = scores;
  product.dy_stride = stride;
  product.depth = seen;
  product.panel = head.values;
  product.panel_stride = head.value_stride;
  product.tiles = ceil_divide(head.size, panel_unit);
  product.sums = head.out;
  product.sums_stride = head.out_stride;
  kernels.gradient.panel_product(product);
  // What a query does not see has the weight 0; but 0 times a NaN or an infinity is NaN.
  product.rows = 1;
  for (std::int64_t m = 0; m < rows; ++m) {
    product.sums = head.out + m * head.out_stride;
    product.depth = visible(m);
    if (product.depth == seen || !has_nan(product.sums, head.size)) continue;
    product.dy = scores + m * stride;
    kernels.gradient.panel_product(product);
  }
}

}  // namespace bittensor
