#pragma once

/// Group-quantized weights for tests: as floats, by the definition, and prepared.

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "bittensor/linear.hpp"
#include "bittensor/prepare.hpp"
#include "check.hpp"
#include "kernels_under_test.hpp"

using bittensor::FloatType;
using bittensor::PreparedLayout;
using bittensor::ZeroKind;

/// A weight as floats, and prepared.
struct Weight {
  PreparedLayout layout{};
  std::vector<float> values;  // [N, K], by docs/numerics.md, section 3
  std::vector<std::uint8_t> codes;
  std::vector<std::uint8_t> zeros;
  std::vector<float> scales;
  std::vector<float> offsets;
  std::vector<std::uint8_t> prepared;

  Weight(const PreparedLayout& form, Random& random) : layout(form) {
    const auto groups = static_cast<std::size_t>(layout.out_features * layout.groups());
    codes = random_codes(random, layout.out_features * layout.in_features, layout.bits);
    zeros = random_codes(random, static_cast<std::int64_t>(groups), layout.bits);
    std::uniform_real_distribution<float> uniform(-1, 1);
    scales.resize(groups);
    offsets.resize(groups);
    std::ranges::generate(scales, [&] { return uniform(random); });
    std::ranges::generate(offsets, [&] { return uniform(random); });
    for (std::size_t i = 0; i < codes.size(); ++i) {
      const auto row = static_cast<std::int64_t>(i) / layout.in_features;
      const auto column = static_cast<std::int64_t>(i) % layout.in_features;
      const std::size_t group = group_at(row, column);
      const float product = scales[group] * static_cast<float>(codes[i] - zero(group));
      values.push_back(layout.zero_kind == ZeroKind::offset ? product + offsets[group] : product);
    }
    const std::vector<std::uint64_t> words =
        packed_by_rule(codes, layout.out_features, layout.in_features, layout.bits);
    prepared.resize(static_cast<std::size_t>(layout.bytes()));
    bittensor::prepare(
        {words.data(), scales.data(), zeros.data(), offsets.data()}, layout, prepared.data(),
        bittensor::kernels_for(bittensor::Isa::scalar));
  }

  std::size_t group_at(std::int64_t n, std::int64_t k) const {
    return static_cast<std::size_t>(n * layout.groups() + k / layout.group_size);
  }
  int zero(std::size_t group) const {
    if (layout.zero_kind == ZeroKind::integer) return zeros[group];
    return layout.zero_kind == ZeroKind::symmetric ? 1 << (layout.bits - 1) : 0;
  }
  float at(std::int64_t n, std::int64_t k) const {
    return values[static_cast<std::size_t>(n * layout.in_features + k)];
  }
};

/// Equal bits, except that a NaN is a NaN.
inline void check_same(const std::vector<float>& actual, const std::vector<float>& expected) {
  CHECK_EQUAL(actual.size(), expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i) {
    if (std::isnan(actual[i]) && std::isnan(expected[i])) continue;
    if (std::bit_cast<std::uint32_t>(actual[i]) != std::bit_cast<std::uint32_t>(expected[i])) {
      CONTEXT("%s, value %zu", std::string(check::context).c_str(), i);
      CHECK_EQUAL(actual[i], expected[i]);
      check::fail(__FILE__, __LINE__, "zeros of different signs");
    }
  }
}

/// Shapes around tiles of 16 rows, panels, blocks, vectors and spans; groups whole, ragged, of a single column.
inline std::vector<PreparedLayout> layouts() {
  std::vector<PreparedLayout> all;
  for (const int bits : {2, 4, 8}) {
    for (const ZeroKind kind : {ZeroKind::symmetric, ZeroKind::integer, ZeroKind::offset}) {
      for (const auto& [n, k, size] :
           {std::array{1, 1, 1}, std::array{15, 7, 7}, std::array{16, 24, 8}, std::array{17, 31, 16},
            std::array{49, 129, 64}, std::array{130, 65, 24}, std::array{97, 40, 32}, std::array{20, 600, 40},
            std::array{33, 700, 320}}) {
        all.push_back({n, k, size, bits, FloatType::f32, kind});
      }
    }
  }
  return all;
}

/// Rows x times a weight; where the results go is for the caller to say.
inline bittensor::Linear product_of(const Weight& weight, const std::vector<float>& x) {
  bittensor::Linear linear;
  linear.x = x.data();
  linear.x_row_bytes = weight.layout.in_features * 4;
  linear.rows = static_cast<std::int64_t>(x.size()) / weight.layout.in_features;
  linear.prepared = weight.prepared.data();
  linear.layout = weight.layout;
  return linear;
}
