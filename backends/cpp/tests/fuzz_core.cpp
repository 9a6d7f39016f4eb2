// Bytes as arguments of the core: whatever they say, a call is refused or computes what the scalar kernels compute, and
// touches no memory but its operands. With -DBITTENSOR_FUZZ=ON and Clang this is a libFuzzer program; otherwise it is a
// test that tries the bytes of a fixed generator, for the sanitizers above all.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "bittensor/linear.hpp"
#include "bittensor/linear_gradient.hpp"
#include "bittensor/pack.hpp"
#include "bittensor/packed_matmul.hpp"
#include "bittensor/prepare.hpp"
#ifdef BITTENSOR_FUZZ
#define main check_main  // libFuzzer brings its own
#endif
#include "kernels_under_test.hpp"

namespace {

using bittensor::FloatType;
using bittensor::KernelSet;
using bittensor::PreparedLayout;
using bittensor::ZeroKind;

/// Reads decisions from bytes; behind the last byte everything is 0.
class Choices {
 public:
  explicit Choices(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

  std::int64_t below(std::int64_t count) { return byte() % count; }
  std::int64_t size() {
    constexpr std::array sizes = {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 129, 200, 0};
    return sizes[static_cast<std::size_t>(below(std::ssize(sizes)))];
  }
  std::uint8_t byte() { return position_ < bytes_.size() ? bytes_[position_++] : std::uint8_t{0}; }
  std::int64_t number() {
    std::uint64_t value = 0;
    for (int i = 0; i < 8; ++i) value = value << 8 | byte();
    return static_cast<std::int64_t>(value);
  }

  /// Values of any bits, of exactly the size, so that a sanitizer sees the first byte beyond.
  template <class T>
  std::vector<T> values(std::int64_t count) {
    std::vector<T> result(static_cast<std::size_t>(count));
    Random random(byte());
    auto* memory = reinterpret_cast<std::uint8_t*>(result.data());
    for (std::size_t i = 0; i < result.size() * sizeof(T); ++i) {
      memory[i] = position_ < bytes_.size() ? byte() : static_cast<std::uint8_t>(random());
    }
    result.shrink_to_fit();
    return result;
  }

 private:
  std::span<const std::uint8_t> bytes_;
  std::size_t position_ = 0;
};

const KernelSet& scalar() {
  return bittensor::kernels_for(bittensor::Isa::scalar);
}

const KernelSet& chosen(Choices& choices) {
  static const std::vector<const KernelSet*> sets = kernels_under_test();
  return *sets[static_cast<std::size_t>(choices.below(std::ssize(sets)))];
}

/// Equal bits, or both NaN.
void check_same(const std::vector<float>& actual, const std::vector<float>& expected) {
  const auto bits = [](const std::vector<float>& values) {
    std::vector<std::uint32_t> result(values.size());
    std::ranges::transform(values, result.begin(), [](float value) {
      return std::isnan(value) ? 0x7FC00000U : std::bit_cast<std::uint32_t>(value);
    });
    return result;
  };
  CHECK_EQUAL(bits(actual), bits(expected));
}

void pack(Choices& choices) {
  const int bits = widths[static_cast<std::size_t>(choices.below(4))];
  const std::int64_t rows = choices.below(5);
  const std::int64_t columns = choices.size();
  const KernelSet& kernels = chosen(choices);
  std::vector<std::uint8_t> codes = choices.values<std::uint8_t>(rows * columns);
  if (choices.below(4) != 0) {
    for (std::uint8_t& code : codes) code = static_cast<std::uint8_t>(code & bittensor::max_code(bits));
  }
  std::vector<std::uint64_t> words(static_cast<std::size_t>(rows * bittensor::words_per_row(columns, bits)));
  const auto wrong = bittensor::pack(codes.data(), rows, columns, bits, words.data(), kernels);
  const auto is_wrong = [bits](std::uint8_t code) { return code > bittensor::max_code(bits); };
  const auto first = std::ranges::find_if(codes, is_wrong);
  CHECK_EQUAL(wrong.has_value(), first != codes.end());
  if (wrong) {
    CHECK_EQUAL(wrong->row * columns + wrong->column, first - codes.begin());
    return;
  }
  CHECK_EQUAL(words, packed_by_rule(codes, rows, columns, bits));
  std::vector<std::uint8_t> back(codes.size());
  bittensor::unpack(words.data(), rows, columns, bits, back.data(), kernels);
  CHECK_EQUAL(back, codes);
}

void packed_matmul(Choices& choices) {
  bittensor::PackedMatmul product;
  product.bits = widths[static_cast<std::size_t>(choices.below(4))];
  product.rows = choices.below(9);
  product.in_features = choices.size();
  product.out_features = choices.size();
  const KernelSet& kernels = chosen(choices);
  const std::int64_t row_words = bittensor::words_per_row(product.in_features, product.bits);
  const auto codes = choices.values<std::uint8_t>(product.rows * product.in_features);
  const auto x_words = choices.values<std::uint64_t>(product.rows * row_words);
  const auto weight = choices.values<std::uint64_t>(product.out_features * row_words);
  const auto bias = choices.values<std::uint16_t>(product.out_features);
  const std::vector<std::int32_t> wide_bias(bias.begin(), bias.end());
  const std::vector<float> scale(
      static_cast<std::size_t>(product.out_features), 0.01F * static_cast<float>(choices.byte()));
  if (choices.below(2) == 0) {
    product.x_codes = codes.data();
  } else {
    product.x_words = x_words.data();
  }
  product.weight = weight.data();
  product.bias = choices.below(2) == 0 ? nullptr : wide_bias.data();
  product.x_zero = static_cast<int>(choices.below(1 << product.bits));
  product.weight_zero = static_cast<int>(choices.below(1 << product.bits));
  const bool has_sums = choices.below(2) == 0;
  if (!has_sums && choices.below(2) == 0) {
    product.scale = scale.data();
    product.scale_count = choices.below(2) == 0 ? 1 : product.out_features;
    product.out_zero = static_cast<int>(choices.below(1 << product.bits));
  }
  const auto compute = [&](const KernelSet& set) {
    const std::int64_t out_words = bittensor::words_per_row(product.out_features, product.bits);
    std::vector<std::uint64_t> words(static_cast<std::size_t>(has_sums ? 0 : product.rows * out_words));
    std::vector<std::int32_t> sums(static_cast<std::size_t>(has_sums ? product.rows * product.out_features : 0));
    product.out_words = has_sums ? nullptr : words.data();
    product.out_sums = has_sums ? sums.data() : nullptr;
    const bool is_refused = bittensor::packed_matmul(product, set).has_value();
    if (is_refused) {
      words.clear();
      sums.clear();
    }
    return std::tuple(is_refused, words, sums);
  };
  CHECK(compute(kernels) == compute(scalar()));
}

/// Both linears and the gradient on a prepared weight, against the scalar kernels; then the weight restored.
void use(Choices& choices, std::vector<std::uint8_t> prepared) {
  const PreparedLayout layout = bittensor::read_layout(prepared.data(), std::ssize(prepared));
  if (layout.zero_kind == ZeroKind::integer) {  // zeros that are no codes are not the same to all kernels
    for (auto i = static_cast<std::size_t>(layout.zeros_begin()); i < static_cast<std::size_t>(layout.bytes()); ++i) {
      prepared[i] = static_cast<std::uint8_t>(prepared[i] & bittensor::max_code(layout.bits));
    }
  }
  const KernelSet& kernels = chosen(choices);
  const std::int64_t rows = choices.below(12);
  const auto x = choices.values<float>(rows * layout.in_features);
  const auto dy = choices.values<float>(rows * layout.out_features);
  const auto bias = choices.values<float>(layout.out_features);
  const auto activation = static_cast<bittensor::Activation>(choices.below(4));
  const bool is_float = choices.below(2) == 0;
  const auto compute = [&](const KernelSet& set) {
    const auto outputs = static_cast<std::size_t>(rows * layout.out_features);
    std::vector<float> results(outputs);
    bittensor::Linear linear;
    linear.x = x.data();
    linear.x_row_bytes = layout.in_features * 4;
    linear.rows = rows;
    linear.prepared = prepared.data();
    linear.layout = layout;
    linear.bias = bias.data();
    linear.activation = activation;
    linear.out = results.data();
    (is_float ? bittensor::linear_float : bittensor::linear_int8)(linear, set, {});
    std::vector<float> grad(static_cast<std::size_t>(rows * layout.in_features));
    bittensor::linear_input_grad(
        {dy.data(), layout.out_features * 4, rows, FloatType::f32, prepared.data(), layout, grad.data()}, set);
    results.insert(results.end(), grad.begin(), grad.end());
    return results;
  };
  check_same(compute(kernels), compute(scalar()));

  const auto groups = static_cast<std::size_t>(layout.out_features * layout.groups());
  std::vector<std::uint64_t> words(
      static_cast<std::size_t>(layout.out_features * bittensor::words_per_row(layout.in_features, layout.bits)));
  std::vector<std::uint8_t> scales(groups * static_cast<std::size_t>(bittensor::bytes_of(layout.scale_type)));
  std::vector<std::uint8_t> zeros(layout.zero_kind == ZeroKind::integer ? groups : 0);
  std::vector<std::uint8_t> offsets(layout.zero_kind == ZeroKind::offset ? scales.size() : 0);
  bittensor::restore(prepared.data(), layout, {words.data(), scales.data(), zeros.data(), offsets.data()}, kernels);
  std::vector<std::uint8_t> again(prepared.size());
  bittensor::prepare({words.data(), scales.data(), zeros.data(), offsets.data()}, layout, again.data(), kernels);
  std::vector<std::uint64_t> restored(words.size());
  bittensor::restore(again.data(), layout, {restored.data(), scales.data(), zeros.data(), offsets.data()}, kernels);
  CHECK_EQUAL(restored, words);
}

void prepare(Choices& choices) {
  PreparedLayout layout{};
  layout.out_features = choices.size();
  layout.in_features = choices.size();
  const std::int64_t spoiled = choices.below(16);
  const std::int64_t group_size = spoiled == 1 ? choices.number() : 8 * (1 + choices.below(12));
  layout.group_size = spoiled != 1 && group_size > layout.in_features ? layout.in_features : group_size;
  layout.bits = spoiled == 2 ? choices.byte() : 2 << choices.below(3);
  layout.scale_type = static_cast<FloatType>(spoiled == 3 ? choices.byte() : choices.below(3));
  layout.zero_kind = static_cast<ZeroKind>(spoiled == 4 ? choices.byte() : choices.below(3));
  bittensor::check_layout(layout);  // throws for some of these
  const std::int64_t groups = layout.out_features * layout.groups();
  const auto words =
      choices.values<std::uint64_t>(layout.out_features * bittensor::words_per_row(layout.in_features, layout.bits));
  const auto scales = choices.values<std::uint8_t>(groups * bittensor::bytes_of(layout.scale_type));
  const auto zeros = choices.values<std::uint8_t>(layout.zero_kind == ZeroKind::integer ? groups : 0);
  const auto offsets = choices.values<std::uint8_t>(layout.zero_kind == ZeroKind::offset ? std::ssize(scales) : 0);
  std::vector<std::uint8_t> prepared(static_cast<std::size_t>(layout.bytes()));
  bittensor::prepare(
      {words.data(), scales.data(), zeros.data(), offsets.data()}, layout, prepared.data(), chosen(choices));
  use(choices, std::move(prepared));
}

/// A prepared weight from elsewhere: the header of a sound one or not, in front of any bytes.
void read_layout(Choices& choices) {
  struct {
    char magic[8] = {'B', 'T', 'T', 'I', 'L', 'E', 'S', '1'};
    std::int64_t sizes[3] = {};
    std::int32_t bits = 0;
    std::uint8_t kinds[28] = {};
  } header;
  static_assert(sizeof header == 64);
  if (choices.below(8) == 1) header.magic[choices.below(8)] = static_cast<char>(choices.byte());
  for (std::int64_t& size : header.sizes) size = choices.below(16) == 1 ? choices.number() : choices.size();
  if (choices.below(4) != 0) header.sizes[2] = header.sizes[1];
  header.bits = choices.below(16) == 1 ? static_cast<std::int32_t>(choices.number()) : 2 << choices.below(3);
  for (int i = 0; i < 2; ++i) {
    header.kinds[i] = choices.below(16) == 1 ? choices.byte() : static_cast<std::uint8_t>(choices.below(3));
  }
  PreparedLayout layout = {
      header.sizes[0],
      header.sizes[1],
      header.sizes[2],
      header.bits,
      static_cast<FloatType>(header.kinds[0]),
      static_cast<ZeroKind>(header.kinds[1])};
  std::int64_t bytes = choices.below(256);
  try {
    bittensor::check_layout(layout);
    if (layout.bytes() < 1 << 20) bytes = layout.bytes() - (choices.below(8) == 1 ? choices.below(64) : 0);
  } catch (const std::invalid_argument&) {  // NOLINT(bugprone-empty-catch)
    // `bytes` bytes of it then
  }
  std::vector<std::uint8_t> prepared = choices.values<std::uint8_t>(bytes);
  if (!prepared.empty()) std::memcpy(prepared.data(), &header, std::min(sizeof header, prepared.size()));
  use(choices, std::move(prepared));  // read_layout throws for some of these
}

void run(std::span<const std::uint8_t> bytes) {
  constexpr std::array calls = {pack, packed_matmul, prepare, read_layout};
  Choices choices(bytes);
  try {
    calls[static_cast<std::size_t>(choices.below(std::ssize(calls)))](choices);
  } catch (const std::invalid_argument&) {  // NOLINT(bugprone-empty-catch)
    // refused, with a message
  }
}

}  // namespace

#ifdef BITTENSOR_FUZZ
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  run({data, size});
  return 0;
}
#endif

TEST(arguments_of_a_fixed_generator) {
  Random random(2026);
  for (int i = 0; i < 20000; ++i) {
    CONTEXT("input %d", i);
    std::vector<std::uint8_t> bytes(random() % 64);
    for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
    bytes.shrink_to_fit();
    run(bytes);
  }
}
