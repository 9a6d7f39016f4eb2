// Threads that share a prepared weight, each with calls of its own, on one pool and on several. Built for
// ThreadSanitizer as well, which sees what a result does not show.

#include <cmath>
#include <thread>

#include "bittensor/linear.hpp"
#include "bittensor/linear_gradient.hpp"
#include "bittensor/prepare.hpp"
#include "bittensor/thread_pool.hpp"
#include "kernels_under_test.hpp"

namespace {

using bittensor::PreparedLayout;

/// Large enough that a call shares out its work.
constexpr std::int64_t rows = 9;
constexpr PreparedLayout layout = {401, 520, 64, 4, bittensor::FloatType::f32, bittensor::ZeroKind::integer};

struct Operands {
  std::vector<std::uint8_t> prepared;
  std::vector<float> x;
  std::vector<float> dy;
};

Operands make_operands(const bittensor::KernelSet& kernels, const bittensor::ParallelFor& loop) {
  Random random(1);
  const std::vector<std::uint8_t> codes = random_codes(random, layout.out_features * layout.in_features, layout.bits);
  const std::vector<std::uint64_t> words = packed_by_rule(codes, layout.out_features, layout.in_features, layout.bits);
  const auto groups = static_cast<std::size_t>(layout.out_features * layout.groups());
  const std::vector<std::uint8_t> zeros(groups, 7);
  const std::vector<float> scales(groups, 0.25F);
  Operands operands;
  operands.prepared.resize(static_cast<std::size_t>(layout.bytes()));
  bittensor::prepare(
      {words.data(), scales.data(), zeros.data(), nullptr}, layout, operands.prepared.data(), kernels, loop);
  std::normal_distribution<float> normal;
  operands.x.resize(static_cast<std::size_t>(rows * layout.in_features));
  operands.dy.resize(static_cast<std::size_t>(rows * layout.out_features));
  for (float& value : operands.x) value = normal(random);
  for (float& value : operands.dy) value = normal(random);
  return operands;
}

/// The results of the two linears and of the gradient, one after the other.
std::vector<float> compute(
    const Operands& operands, const bittensor::KernelSet& kernels, const bittensor::ParallelFor& loop) {
  const auto outputs = static_cast<std::size_t>(rows * layout.out_features);
  std::vector<float> results(2 * outputs + static_cast<std::size_t>(rows * layout.in_features));
  bittensor::Linear linear;
  linear.x = operands.x.data();
  linear.x_row_bytes = layout.in_features * 4;
  linear.rows = rows;
  linear.prepared = operands.prepared.data();
  linear.layout = bittensor::read_layout(operands.prepared.data(), layout.bytes());
  linear.out = results.data();
  bittensor::linear_int8(linear, kernels, loop);
  linear.out = results.data() + outputs;
  bittensor::linear_float(linear, kernels, loop);
  bittensor::LinearInputGrad gradient;
  gradient.dy = operands.dy.data();
  gradient.dy_row_bytes = layout.out_features * 4;
  gradient.rows = rows;
  gradient.prepared = operands.prepared.data();
  gradient.layout = linear.layout;
  gradient.out = results.data() + 2 * outputs;
  bittensor::linear_input_grad(gradient, kernels, loop);
  return results;
}

/// Four threads compute at once, thread i on pools[i % count].
template <std::size_t Count>
void check_together(std::array<bittensor::ThreadPool, Count>& pools) {
  CHECK(rows * layout.out_features * layout.in_features >= std::int64_t{3} << 19);  // else nothing is shared out
  const bittensor::KernelSet& kernels = bittensor::kernels_for(bittensor::choose_isa().isa);
  const Operands operands = make_operands(kernels, pools[0].parallel_for());
  const std::vector<float> expected = compute(operands, kernels, {});
  std::vector<std::vector<float>> results(4);
  for (int repeat = 0; repeat < 3; ++repeat) {
    {
      std::vector<std::jthread> callers;
      callers.reserve(results.size());
      for (std::size_t i = 0; i < results.size(); ++i) {
        callers.emplace_back([&, i] { results[i] = compute(operands, kernels, pools[i % Count].parallel_for()); });
      }
    }
    for (const std::vector<float>& result : results) CHECK_EQUAL(result, expected);
  }
}

}  // namespace

TEST(threads_share_a_weight_and_a_pool) {
  std::array<bittensor::ThreadPool, 1> pools = {bittensor::ThreadPool(3)};
  check_together(pools);
}

TEST(threads_share_a_weight_on_pools_of_their_own) {
  std::array<bittensor::ThreadPool, 2> pools = {bittensor::ThreadPool(2), bittensor::ThreadPool(3)};
  check_together(pools);
}
