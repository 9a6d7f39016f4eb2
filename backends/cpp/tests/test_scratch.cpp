// Working memory of a thread: operations in the middle of others, and when the thread ends.

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "bittensor/attention.hpp"
#include "bittensor/conv2d.hpp"
#include "bittensor/linear.hpp"
#include "bittensor/linear_gradient.hpp"
#include "bittensor/packed_matmul.hpp"
#include "check.hpp"
#include "kernels_under_test.hpp"
#include "quantized_weight.hpp"

using bittensor::KernelSet;
using bittensor::ParallelFor;

namespace {

/// Runs loops on the calling thread, and `other` in the middle of the first, as a pool does whose threads run other
/// tasks while they wait.
struct Stealing {
  std::function<void()> other;

  ParallelFor parallel_for() {
    const auto run = [](void* self, std::int64_t count, ParallelFor::Body body, void* context) {
      body(0, count / 2, context);
      if (auto task = std::exchange(static_cast<Stealing*>(self)->other, nullptr)) task();
      body(count / 2, count, context);
    };
    return {run, this, 4};
  }
};

constexpr std::int64_t width = 512;

std::vector<float> values(std::int64_t count) {
  Random random(static_cast<unsigned>(count));
  std::normal_distribution<float> normal;
  std::vector<float> all(static_cast<std::size_t>(count));
  std::ranges::generate(all, [&] { return normal(random); });
  return all;
}

const Weight& square_weight() {
  static Random random(1);
  static const Weight weight({width, width, 64, 4, FloatType::f32, ZeroKind::integer}, random);
  return weight;
}

bittensor::Linear linear_of(const Weight& weight, const std::vector<float>& x, std::vector<float>& out) {
  bittensor::Linear linear = product_of(weight, x);
  out.resize(static_cast<std::size_t>(linear.rows * weight.layout.out_features));
  linear.out = out.data();
  return linear;
}

std::vector<float> int8_linear(std::int64_t rows, const KernelSet& kernels, const ParallelFor& loop) {
  const std::vector<float> x = values(rows * width);
  std::vector<float> out;
  bittensor::linear_int8(linear_of(square_weight(), x, out), kernels, loop);
  return out;
}

std::vector<float> float_linear_of_normalized_rows(
    std::int64_t rows, const KernelSet& kernels, const ParallelFor& loop) {
  const std::vector<float> x = values(rows * width);
  const std::vector<float> norm_weight = values(width);
  std::vector<float> out;
  bittensor::Linear linear = linear_of(square_weight(), x, out);
  linear.prologue = bittensor::Prologue::rms_norm;
  linear.norm_weight = norm_weight.data();
  bittensor::linear_float(linear, kernels, loop);
  return out;
}

std::vector<float> feed_forward(std::int64_t rows, const KernelSet& kernels, const ParallelFor& loop) {
  const std::vector<float> x = values(rows * width);
  std::vector<float> none;
  std::vector<float> out;
  bittensor::Linear up = linear_of(square_weight(), x, none);
  up.out = nullptr;
  up.activation = bittensor::Activation::gelu;
  bittensor::Linear down = linear_of(square_weight(), x, out);
  down.x = nullptr;
  bittensor::mlp_int8(up, down, kernels, loop);
  return out;
}

std::vector<float> input_gradient(std::int64_t rows, const KernelSet& kernels, const ParallelFor& loop) {
  const std::vector<float> dy = values(rows * width);
  std::vector<float> out(dy.size());
  const Weight& weight = square_weight();
  bittensor::linear_input_grad(
      {dy.data(), width * 4, rows, FloatType::f32, weight.prepared.data(), weight.layout, out.data()}, kernels, loop);
  return out;
}

std::vector<float> integer_product(std::int64_t rows, const KernelSet& kernels, const ParallelFor& loop) {
  Random random(static_cast<unsigned>(rows));
  const std::vector<std::uint8_t> x = random_codes(random, rows * width, 4);
  const std::vector<std::uint64_t> weight = packed_by_rule(random_codes(random, width * width, 4), width, width, 4);
  std::vector<std::int32_t> sums(static_cast<std::size_t>(rows * width));
  bittensor::PackedMatmul product;
  product.rows = rows;
  product.in_features = product.out_features = width;
  product.x_codes = x.data();
  product.weight = weight.data();
  product.out_sums = sums.data();
  CHECK(!bittensor::packed_matmul(product, kernels, loop));
  return {sums.begin(), sums.end()};
}

std::vector<float> depthwise_convolution(std::int64_t rows, const KernelSet& kernels, const ParallelFor& loop) {
  constexpr std::int64_t channels = 32;
  static Random random(2);
  static const Weight weight({channels, 9, 9, 4, FloatType::f32, ZeroKind::symmetric}, random);
  const std::int64_t pixels = (rows + 2) * 10;
  std::vector<std::uint16_t> images(static_cast<std::size_t>(pixels * channels));  // bfloat16 of 1 to 2
  for (std::size_t i = 0; i < images.size(); ++i) images[i] = static_cast<std::uint16_t>(0x3F80 + i * 7 % 128);
  std::vector<std::uint16_t> out(static_cast<std::size_t>(rows * 8 * channels));
  bittensor::Conv2d convolution;
  convolution.images = images.data();
  convolution.count = 1;
  convolution.groups = channels;
  convolution.float_type = FloatType::bf16;
  convolution.prepared = weight.prepared.data();
  convolution.layout = weight.layout;
  convolution.out = out.data();
  bittensor::Patches& patches = convolution.patches;
  patches.channels = patches.taken_channels = channels;
  patches.height = rows + 2;
  patches.width = 10;
  patches.out_height = rows;
  patches.out_width = 8;
  patches.kernel_height = patches.kernel_width = 3;
  bittensor::conv2d_float(convolution, kernels, loop);
  return {out.begin(), out.end()};
}

std::vector<float> attention(std::int64_t rows, const KernelSet& kernels, const ParallelFor& loop) {
  constexpr std::int64_t heads = 4;
  constexpr std::int64_t size = 32;
  const std::vector<float> projections = values(rows * 3 * heads * size);
  const std::vector<float> angles = values(rows * size);
  std::vector<float> keys(static_cast<std::size_t>(heads * size * (rows + bittensor::key_panel)));
  std::vector<float> cached(static_cast<std::size_t>(heads * size * rows));
  std::vector<float> out(static_cast<std::size_t>(rows * heads * size));
  bittensor::Attention attention;
  attention.projections = projections.data();
  attention.projection_stride = 3 * heads * size;
  attention.cos = attention.sin = angles.data();
  attention.keys = keys.data();
  attention.values = cached.data();
  attention.heads = attention.key_value_heads = heads;
  attention.head_size = size;
  attention.capacity = attention.tokens = rows;
  attention.out = out.data();
  bittensor::attend(attention, kernels, loop);
  return out;
}

struct Operation {
  const char* name;
  std::vector<float> (*run)(std::int64_t rows, const KernelSet& kernels, const ParallelFor& loop);
  std::int64_t rows;
};

/// Each with enough rows to be shared out.
constexpr Operation operations[] = {
    {"int8_linear", int8_linear, 8},
    {"float_linear_of_normalized_rows", float_linear_of_normalized_rows, 8},
    {"feed_forward", feed_forward, 8},
    {"input_gradient of few rows", input_gradient, 4},
    {"input_gradient", input_gradient, 8},
    {"integer_product", integer_product, 9},
    {"depthwise_convolution", depthwise_convolution, 8},
    {"attention", attention, 24},
};

/// Runs an operation when it is destroyed.
class Last {
 public:
  explicit Last(std::function<void()> operation) : operation_(std::move(operation)) {}
  ~Last() { operation_(); }
  Last(const Last&) = delete;
  Last& operator=(const Last&) = delete;

 private:
  std::function<void()> operation_;
};

const std::vector<float>& expected_row() {
  static const std::vector<float> row = int8_linear(1, bittensor::kernels_for(bittensor::Isa::scalar), {});
  return row;
}

void check_row_at_exit() {
  if (int8_linear(1, bittensor::kernels_for(bittensor::Isa::scalar), {}) != expected_row()) std::_Exit(1);
}

}  // namespace

TEST(an_operation_in_the_middle_of_another_leaves_it_alone) {
  const KernelSet& kernels = *kernels_under_test().back();
  std::vector<std::vector<float>> alone;
  for (const Operation& each : operations) alone.push_back(each.run(each.rows, kernels, {}));
  for (std::size_t i = 0; i < alone.size(); ++i) {
    const Operation& outer = operations[i];
    for (const Operation& inner : operations) {
      CONTEXT("%s in the middle of %s", inner.name, outer.name);
      const std::vector<float> expected = inner.run(6 * inner.rows, kernels, {});
      Stealing stealing;
      std::vector<float> of_inner;
      stealing.other = [&] {
        Stealing again{[&] { static_cast<void>(outer.run(2 * outer.rows, kernels, {})); }};
        of_inner = inner.run(6 * inner.rows, kernels, again.parallel_for());
      };
      CHECK_EQUAL(outer.run(outer.rows, kernels, stealing.parallel_for()), alone[i]);
      CHECK(!of_inner.empty());  // or the operation is too small to be shared out
      CHECK_EQUAL(of_inner, expected);
    }
  }
}

TEST(an_operation_that_throws_gives_its_memory_back) {
  const KernelSet& kernels = *kernels_under_test().back();
  for (const Operation& each : operations) {
    CONTEXT("%s", each.name);
    const std::vector<float> expected = each.run(each.rows, kernels, {});
    Stealing stealing{[] { throw std::runtime_error("in between"); }};
    CHECK_THROWS(std::runtime_error, "in between", each.run(each.rows, kernels, stealing.parallel_for()));
    CHECK_EQUAL(each.run(each.rows, kernels, {}), expected);
  }
}

TEST(a_thread_may_run_operations_until_its_end) {
  static std::vector<float> first;
  static std::vector<float> last;
  const auto run = [](std::int64_t rows) {
    return int8_linear(rows, bittensor::kernels_for(bittensor::Isa::scalar), {});
  };
  std::thread([&] {
    // Constructed before what the thread keeps, and so destroyed after it.
    thread_local const Last at_end([&] {
      static_cast<void>(run(3));
      last = run(1);
    });
    first = run(1);
  }).join();
  CHECK_EQUAL(first, expected_row());
  CHECK_EQUAL(last, first);
}

TEST(a_static_object_may_run_operations_in_its_destructor) {
  static_cast<void>(expected_row());  // destroyed after the object
  static const Last at_exit(check_row_at_exit);
}
