// What operations on floats refuse.

#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "bittensor/attention.hpp"
#include "bittensor/linear.hpp"
#include "bittensor/prepare.hpp"
#include "check.hpp"
#include "kernels_under_test.hpp"
#include "quantized_weight.hpp"

namespace {

const bittensor::KernelSet& kernels() {
  return bittensor::kernels_for(bittensor::Isa::scalar);
}

bittensor::Linear linear_of(const Weight& weight, const std::vector<float>& x, std::vector<float>& out) {
  bittensor::Linear linear = product_of(weight, x);
  linear.out = out.data();
  return linear;
}

}  // namespace

TEST(outputs_are_all_from_the_first_on_unless_told) {
  Random random(1);
  const Weight weight({70, 64, 32, 4, FloatType::f32, ZeroKind::integer}, random);
  const std::vector<float> x(std::size_t{3} * 64, 0.5F);
  for (const auto run : {bittensor::linear_int8, bittensor::linear_float}) {
    std::vector<float> all(std::size_t{3} * 70);
    run(linear_of(weight, x, all), kernels(), {});
    for (const auto activation : {bittensor::Activation::none, bittensor::Activation::relu}) {
      for (const std::int64_t first : {0, 1, 16, 40, 69}) {
        CONTEXT("from %ld on", long{first});
        std::vector<float> out(all.size(), -7.0F);
        bittensor::Linear linear = linear_of(weight, x, out);
        linear.first_output = first;
        linear.activation = activation;
        run(linear, kernels(), {});
        for (std::size_t i = 0; i < out.size(); ++i) {
          const bool is_positive = activation == bittensor::Activation::none || all[i] > 0;
          const float expected = is_positive ? all[i] : 0.0F;
          CHECK_EQUAL(out[i], static_cast<std::int64_t>(i % 70) < first ? -7.0F : expected);
        }
      }
    }
  }
}

TEST(outputs_that_the_weight_does_not_have_are_refused) {
  Random random(2);
  const Weight weight({70, 64, 32, 4, FloatType::f32, ZeroKind::integer}, random);
  const std::vector<float> x(64, 0.5F);
  std::vector<float> out(70);
  bittensor::Linear linear = linear_of(weight, x, out);
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  for (const auto& [first, count] :
       {std::pair<std::int64_t, std::int64_t>{0, 71}, {69, 2}, {70, 0}, {-1, 3}, {3, -1}, {1, most}, {most, most}}) {
    linear.first_output = first;
    linear.outputs = count;
    CHECK_THROWS(std::invalid_argument, "expected rows of the weight, which has 70", linear_int8(linear, kernels()));
    CHECK_THROWS(std::invalid_argument, "expected rows of the weight, which has 70", linear_float(linear, kernels()));
  }
}

TEST(patches_with_a_prologue_are_refused) {
  Random random(3);
  const Weight weight({16, 64, 64, 4, FloatType::f32, ZeroKind::symmetric}, random);
  const std::vector<float> x(std::size_t{2} * 64, 3.0F);
  std::vector<float> out(std::size_t{2} * 16);
  bittensor::Patches patches;
  patches.height = patches.out_height = 1;
  patches.width = patches.out_width = 2;
  patches.channels = patches.taken_channels = 64;
  bittensor::Linear linear = linear_of(weight, x, out);
  linear.patches = &patches;
  linear.prologue = bittensor::Prologue::rms_norm;
  linear.norm_weight = x.data();
  CHECK_THROWS(std::invalid_argument, "prologue: expected none with patches", linear_int8(linear, kernels()));
  CHECK_THROWS(std::invalid_argument, "prologue: expected none with patches", linear_float(linear, kernels()));
}

TEST(zeros_that_are_no_codes_are_refused) {
  for (const int bits : {2, 4, 8}) {
    CONTEXT("%d bits", bits);
    const PreparedLayout layout{20, 48, 16, bits, FloatType::f32, ZeroKind::integer};
    const std::vector<std::uint64_t> words(std::size_t{20} * 6);
    const std::vector<float> scales(std::size_t{20} * 3, 1.0F);
    std::vector<std::uint8_t> zeros(std::size_t{20} * 3, static_cast<std::uint8_t>(bittensor::max_code(bits)));
    std::vector<std::uint8_t> prepared(static_cast<std::size_t>(layout.bytes()));
    const auto run = [&] {
      prepare({words.data(), scales.data(), zeros.data(), nullptr}, layout, prepared.data(), kernels());
    };
    run();
    zeros[17 * 3 + 2] = static_cast<std::uint8_t>(bittensor::max_code(bits) + 1);
    if (bits == 8) continue;  // every byte is a code
    CHECK_THROWS(
        std::invalid_argument,
        "zeros: expected 0 to " + std::to_string(bittensor::max_code(bits)) + " (" + std::to_string(bits) +
            " bits), got " + std::to_string(bittensor::max_code(bits) + 1) + " in row 17, group 2",
        run());
  }
}

TEST(scales_and_offsets_that_are_not_finite_are_refused) {
  struct Value {
    FloatType type;
    std::uint32_t bits;
    bool is_finite;
  };
  constexpr Value all[] = {{FloatType::f32, 0x7F7FFFFF, true},  {FloatType::f32, 0x7F800000, false},
                           {FloatType::f32, 0xFF800001, false}, {FloatType::f16, 0x7BFF, true},
                           {FloatType::f16, 0xFC00, false},     {FloatType::f16, 0x7F80, false},
                           {FloatType::bf16, 0x7F7F, true},     {FloatType::bf16, 0xFF80, false},
                           {FloatType::bf16, 0x7C00, true},     {FloatType::bf16, 0x7FC0, false}};
  const std::vector<std::uint64_t> words(std::size_t{20} * 3);
  for (const Value& value : all) {
    CONTEXT("type %d, %x", static_cast<int>(value.type), value.bits);
    const PreparedLayout layout{20, 48, 16, 4, value.type, ZeroKind::offset};
    std::vector<std::uint8_t> prepared(static_cast<std::size_t>(layout.bytes()));
    const auto size = static_cast<std::size_t>(bytes_of(value.type));
    const std::vector<std::uint8_t> fine(20 * 3 * size, 0x11);
    std::vector<std::uint8_t> other = fine;
    std::memcpy(other.data() + (18 * 3 + 1) * size, &value.bits, size);
    const auto run = [&](const std::vector<std::uint8_t>& scales, const std::vector<std::uint8_t>& offsets) {
      prepare({words.data(), scales.data(), nullptr, offsets.data()}, layout, prepared.data(), kernels());
    };
    if (value.is_finite) {
      run(other, other);
      continue;
    }
    const std::string what = ": expected finite values, got NaN or infinity in row 18, group 1";
    CHECK_THROWS(std::invalid_argument, "scales" + what, run(other, fine));
    CHECK_THROWS(std::invalid_argument, "offsets" + what, run(fine, other));
  }
}

TEST(attention_needs_heads_of_keys) {
  CHECK_THROWS(
      std::invalid_argument, "key_value_heads: expected at least 1, got 0",
      bittensor::attend(bittensor::Attention{}, kernels()));
  CHECK_THROWS(
      std::invalid_argument, "key_value_heads: expected at least 1, got 0",
      bittensor::attend_bidirectional(bittensor::BidirectionalAttention{}, kernels()));
}
