// The embedding: its kernel and the operation against the definition, in guarded memory.

#include <numeric>

#include "bittensor/embedding.hpp"
#include "bittensor/thread_pool.hpp"
#include "check.hpp"
#include "guarded.hpp"
#include "kernels_under_test.hpp"
#include "quantized_weight.hpp"

using bittensor::KernelSet;

namespace {

void set_context(const KernelSet& kernels, const PreparedLayout& l, std::int64_t row) {
  CONTEXT(
      "%s, %lld x %lld, groups of %lld, %d bits, zero kind %d, row %lld", bittensor::isa_name(kernels.isa),
      static_cast<long long>(l.out_features), static_cast<long long>(l.in_features),
      static_cast<long long>(l.group_size), l.bits, static_cast<int>(l.zero_kind), static_cast<long long>(row));
}

/// Row `row` of the weight, by the definition.
std::vector<float> row_of(const Weight& w, std::int64_t row) {
  const auto begin = w.values.begin() + row * w.layout.in_features;
  return {begin, begin + w.layout.in_features};
}

TEST(each_row_is_a_row_of_the_weight) {
  Random random(1);
  for (const PreparedLayout& layout : layouts()) {
    const Weight w(layout, random);
    for (const KernelSet* kernels : kernels_under_test()) {
      Guarded<std::uint8_t> prepared(w.prepared, Side::back);
      for (std::int64_t row = 0; row < layout.out_features; ++row) {
        set_context(*kernels, layout, row);
        Guarded<float> values(layout.in_features + bittensor::row_padding, Side::back);
        kernels->embedding.dequantize_row_for(layout.bits)(layout, prepared.data(), row, values.data());
        CHECK(values.intact());
        std::vector<float> actual = values.values();
        actual.resize(static_cast<std::size_t>(layout.in_features));
        check_same(actual, row_of(w, row));
      }
    }
  }
}

/// Every row in the order of `indices`, on one thread and on several.
void check_rows(const Weight& w, const std::vector<std::int64_t>& indices, bittensor::ThreadPool& pool) {
  std::vector<float> expected;
  for (const std::int64_t index : indices) {
    const std::vector<float> row = row_of(w, index);
    expected.insert(expected.end(), row.begin(), row.end());
  }
  const auto count = static_cast<std::int64_t>(indices.size());
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const bool threads : {false, true}) {
      set_context(*kernels, w.layout, count);
      Guarded<std::uint8_t> prepared(w.prepared, Side::back);
      Guarded<std::int64_t> rows(indices, Side::back);
      Guarded<float> out(count * w.layout.in_features, Side::back);
      bittensor::Embedding gather;
      gather.indices = rows.data();
      gather.count = count;
      gather.prepared = prepared.data();
      gather.layout = w.layout;
      gather.out = out.data();
      CHECK(!bittensor::embedding(gather, *kernels, threads ? pool.parallel_for() : bittensor::ParallelFor()));
      check_same(out.values(), expected);
      CHECK(out.intact());
    }
  }
}

TEST(rows_come_in_the_order_of_the_indices) {
  Random random(2);
  bittensor::ThreadPool pool(3);
  for (const PreparedLayout& layout : layouts()) {
    const Weight w(layout, random);
    std::vector<std::int64_t> indices(static_cast<std::size_t>(layout.out_features));
    std::ranges::generate(
        indices, [&] { return random_between(random, 0, static_cast<int>(layout.out_features) - 1); });
    check_rows(w, indices, pool);
    check_rows(w, {}, pool);
  }
  const Weight w({130, 300, 300, 4, FloatType::f32, ZeroKind::symmetric}, random);
  std::vector<std::int64_t> many(700);
  std::ranges::generate(many, [&] { return random_between(random, 0, 129); });
  check_rows(w, many, pool);
}

TEST(an_index_that_is_no_row_is_named_and_nothing_is_written) {
  Random random(3);
  const Weight w({17, 31, 16, 4, FloatType::f32, ZeroKind::symmetric}, random);
  for (const std::int64_t wrong : {std::int64_t{-1}, std::int64_t{17}, std::int64_t{1} << 40}) {
    const std::vector<std::int64_t> indices = {0, 16, wrong, -5};
    std::vector<float> out(4 * 31, 99.0F);
    bittensor::Embedding gather;
    gather.indices = indices.data();
    gather.count = 4;
    gather.prepared = w.prepared.data();
    gather.layout = w.layout;
    gather.out = out.data();
    const auto position = bittensor::embedding(gather, *kernels_under_test().front());
    CHECK(position.has_value());
    CHECK_EQUAL(*position, 2);
    CHECK(std::ranges::all_of(out, [](float value) { return value == 99.0F; }));
  }
}

}  // namespace
