// The convolution: its kernels and its loop nests against the linear of patches, in guarded memory.

#include <algorithm>
#include <cmath>
#include <limits>

#include "bittensor/conv2d.hpp"
#include "bittensor/linear.hpp"
#include "bittensor/thread_pool.hpp"
#include "check.hpp"
#include "guarded.hpp"
#include "kernels_under_test.hpp"
#include "quantized_weight.hpp"

using bittensor::KernelSet;
using bittensor::Patches;

namespace {

const KernelSet& scalar() {
  return bittensor::kernels_for(bittensor::Isa::scalar);
}

/// Rows of x times the weight, by the kernels that test_linear compares with the definition.
std::vector<float> linear(
    const Weight& w, const std::vector<float>& x, bool int8, const float* bias = nullptr,
    bittensor::Activation activation = bittensor::Activation::none) {
  bittensor::Linear product = product_of(w, x);
  product.bias = bias;
  product.activation = activation;
  std::vector<float> out(static_cast<std::size_t>(product.rows * w.layout.out_features));
  product.out = out.data();
  (int8 ? bittensor::linear_int8 : bittensor::linear_float)(product, scalar(), {});
  return out;
}

/// Rows of floats by the formulas of docs/numerics.md, section 5, in float32.
std::vector<float> floats_by_definition(const Weight& w, const std::vector<float>& x) {
  const PreparedLayout& l = w.layout;
  std::vector<float> all;
  for (std::size_t first = 0; first < x.size(); first += static_cast<std::size_t>(l.in_features)) {
    for (std::int64_t n = 0; n < l.out_features; ++n) {
      float y = 0;
      for (std::int64_t begin = 0; begin < l.in_features; begin += l.group_size) {
        const std::size_t group = w.group_at(n, begin);
        float p = 0;
        float sum = 0;
        for (std::int64_t k = begin; k < std::min(begin + l.group_size, l.in_features); ++k) {
          const float value = x[first + static_cast<std::size_t>(k)];
          const int code = w.codes[static_cast<std::size_t>(n * l.in_features + k)] - w.zero(group);
          p = std::fma(value, static_cast<float>(code), p);
          sum += value;
        }
        y = std::fma(p, w.scales[group], y);
        if (l.zero_kind == ZeroKind::offset) y = std::fma(sum, w.offsets[group], y);
      }
      all.push_back(y);
    }
  }
  return all;
}

std::vector<float> normal_values(Random& random, std::int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  std::ranges::generate(values, [&] { return normal(random); });
  return values;
}

/// What a kernel makes of patches that follow each other, as the last tile of the weight.
void check_lanes(const Weight& w, const KernelSet& kernels, bool int8, const std::vector<float>& x) {
  const PreparedLayout& l = w.layout;
  constexpr std::int64_t lanes = bittensor::tile_rows;
  const std::int64_t positions = static_cast<std::int64_t>(x.size()) / (l.in_features * lanes);
  const std::int64_t tile = l.tiles() - 1;
  Guarded<std::uint8_t> prepared(w.prepared, Side::back);
  Guarded<float> values(x, Side::back);
  Guarded<std::int64_t> offsets(l.in_features, Side::back);
  for (std::int64_t k = 0; k < l.in_features; ++k) offsets.data()[k] = k * lanes;
  Guarded<float> weights((l.in_features + lanes) * lanes, Side::back);
  Guarded<float> y(positions * lanes, Side::back);
  bittensor::LanesBlock block{};
  block.layout = &l;
  block.codes = prepared.data() + l.codes_begin() + tile * l.tile_code_bytes();
  block.scales = prepared.data() + l.scales_begin() + tile * l.tile_scale_bytes();
  block.zeros = prepared.data() + l.zeros_begin() + tile * l.tile_zero_bytes();
  block.x = values.data();
  block.offsets = offsets.data();
  block.rows = 1;
  block.positions = positions;
  block.position_stride = l.in_features * lanes;
  block.weights = weights.data();
  block.y = y.data();
  block.y_stride = lanes;
  const bittensor::ConvolutionKernels& set = kernels.convolution;
  (int8 ? set.int8_lanes_for(l.bits) : set.float_lanes_for(l.bits))(block);
  CHECK(y.intact());
  CHECK(weights.intact());
  const std::vector<float> actual = y.values();
  for (std::int64_t n = tile * lanes; n < l.out_features; ++n) {
    std::vector<float> rows;  // of the lane of row n
    for (auto i = static_cast<std::size_t>(n % lanes); i < x.size(); i += lanes) rows.push_back(x[i]);
    const std::vector<float> expected = int8 ? linear(w, rows, true) : floats_by_definition(w, rows);
    for (std::int64_t i = 0; i < positions; ++i) {
      CONTEXT(
          "%s, int8 %d, %lld columns, groups of %lld, %d bits, zero kind %d, row %lld, position %lld",
          bittensor::isa_name(kernels.isa), static_cast<int>(int8), static_cast<long long>(l.in_features),
          static_cast<long long>(l.group_size), l.bits, static_cast<int>(l.zero_kind), static_cast<long long>(n),
          static_cast<long long>(i));
      check_same(
          {actual[static_cast<std::size_t>(i * lanes + n % lanes)]},
          {expected[static_cast<std::size_t>(i * l.out_features + n)]});
    }
  }
}

TEST(lanes_have_the_bits_of_their_definition) {
  Random random(1);
  for (const PreparedLayout& layout : layouts()) {
    if (layout.group_size > bittensor::most_int8_lanes_columns(layout.bits)) continue;
    const Weight w(layout, random);
    for (const std::int64_t positions : {1, 2, 3, 4, 7}) {
      const std::int64_t vector = bittensor::tile_rows * layout.in_features;
      std::vector<float> x = normal_values(random, positions * vector);
      std::fill_n(x.begin(), vector, 0x1p-101F);  // counts as zero
      for (const KernelSet* kernels : kernels_under_test()) {
        for (const bool int8 : {false, true}) check_lanes(w, *kernels, int8, x);
      }
    }
  }
}

TEST(the_largest_sums_of_lanes_are_exact) {
  Random random(2);
  for (const int bits : {2, 4, 8}) {
    const std::int64_t columns = bittensor::most_int8_lanes_columns(bits) / 8 * 8;
    const Weight w({3, columns, columns, bits, FloatType::f32, ZeroKind::offset}, random);
    const std::vector<float> x(static_cast<std::size_t>(columns * bittensor::tile_rows), 1.0F);
    for (const KernelSet* kernels : kernels_under_test()) check_lanes(w, *kernels, true, x);
  }
}

TEST(a_nan_stays_in_its_lane) {
  Random random(3);
  const float infinity = std::numeric_limits<float>::infinity();
  const Weight w({16, 20, 8, 4, FloatType::f32, ZeroKind::symmetric}, random);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), infinity, -infinity}) {
    for (const std::int64_t column : {0, 9, 19}) {
      for (const float others : {1.0F, 0x1p-120F}) {
        std::vector<float> x(static_cast<std::size_t>(3 * 20 * bittensor::tile_rows), others);
        x[static_cast<std::size_t>((20 + column) * bittensor::tile_rows + 5)] = bad;
        for (const KernelSet* kernels : kernels_under_test()) check_lanes(w, *kernels, true, x);
      }
    }
  }
}

struct Geometry {
  Patches patches;
  std::int64_t groups;
  std::int64_t outputs;  // of a group
  std::int64_t bottom;
  std::int64_t right;
};

/// The patches of one group, spelled out.
std::vector<float> patches_of(const Geometry& geometry, const std::vector<float>& images, std::int64_t group) {
  const Patches& p = geometry.patches;
  const std::int64_t channels = p.channels / geometry.groups;
  const std::int64_t count = static_cast<std::int64_t>(images.size()) / (p.height * p.width * p.channels);
  std::vector<float> rows;
  for (std::int64_t position = 0; position < count * p.out_height * p.out_width; ++position) {
    const std::int64_t image = position / (p.out_height * p.out_width);
    const std::int64_t i = position / p.out_width % p.out_height;
    const std::int64_t j = position % p.out_width;
    for (std::int64_t k = 0; k < p.kernel_height * p.kernel_width * channels; ++k) {
      const std::int64_t y = i * p.stride_height + k / channels / p.kernel_width * p.dilation_height - p.top;
      const std::int64_t x = j * p.stride_width + k / channels % p.kernel_width * p.dilation_width - p.left;
      const bool inside = y >= 0 && y < p.height && x >= 0 && x < p.width;
      const std::int64_t at = ((image * p.height + y) * p.width + x) * p.channels + group * channels + k % channels;
      rows.push_back(inside ? images[static_cast<std::size_t>(at)] : 0.0F);
    }
  }
  return rows;
}

void check_near(const std::vector<float>& actual, const std::vector<float>& expected) {
  CHECK_EQUAL(actual.size(), expected.size());
  float largest = 0;
  for (const float value : expected) largest = std::max(largest, std::fabs(value));
  for (std::size_t i = 0; i < actual.size(); ++i) {
    if (std::fabs(actual[i] - expected[i]) > 1e-5F * largest) CHECK_EQUAL(actual[i], expected[i]);
  }
}

void check_convolution(Geometry geometry, int bits, ZeroKind kind, Random& random, bittensor::ThreadPool& pool) {
  Patches& p = geometry.patches;
  p.taken_channels = p.channels;
  const auto positions = [](std::int64_t size, std::int64_t padding, std::int64_t kernel, std::int64_t stride,
                            std::int64_t dilation) {
    return (size + padding - dilation * (kernel - 1) - 1) / stride + 1;
  };
  p.out_height = positions(p.height, p.top + geometry.bottom, p.kernel_height, p.stride_height, p.dilation_height);
  p.out_width = positions(p.width, p.left + geometry.right, p.kernel_width, p.stride_width, p.dilation_width);
  constexpr std::int64_t count = 2;
  const std::int64_t columns = p.kernel_height * p.kernel_width * p.channels / geometry.groups;
  const std::int64_t outputs = geometry.groups * geometry.outputs;
  const Weight w({outputs, columns, columns, bits, FloatType::f32, kind}, random);
  const std::vector<float> images = normal_values(random, count * p.height * p.width * p.channels);
  const std::vector<float> bias = normal_values(random, outputs);
  for (const bool int8 : {false, true}) {
    std::vector<float> expected(static_cast<std::size_t>(count * p.positions() * outputs));
    for (std::int64_t group = 0; group < geometry.groups; ++group) {
      const std::vector<float> all =
          linear(w, patches_of(geometry, images, group), int8, bias.data(), bittensor::Activation::relu);
      for (std::size_t i = 0; i < all.size(); ++i) {
        if (static_cast<std::int64_t>(i) % outputs / geometry.outputs == group) expected[i] = all[i];
      }
    }
    for (const KernelSet* kernels : kernels_under_test()) {
      for (const bool threads : {false, true}) {
        CONTEXT(
            "%s, int8 %d, threads %d, %lld x %lld x %lld, kernel %lld x %lld, %lld groups of %lld",
            bittensor::isa_name(kernels->isa), static_cast<int>(int8), static_cast<int>(threads),
            static_cast<long long>(p.height), static_cast<long long>(p.width), static_cast<long long>(p.channels),
            static_cast<long long>(p.kernel_height), static_cast<long long>(p.kernel_width),
            static_cast<long long>(geometry.groups), static_cast<long long>(geometry.outputs));
        Guarded<float> input(images, Side::back);
        Guarded<float> out(count * p.positions() * outputs, Side::back);
        bittensor::Conv2d convolution;
        convolution.images = input.data();
        convolution.count = count;
        convolution.patches = p;
        convolution.groups = geometry.groups;
        convolution.prepared = w.prepared.data();
        convolution.layout = w.layout;
        convolution.bias = bias.data();
        convolution.activation = bittensor::Activation::relu;
        convolution.out = out.data();
        const bittensor::ParallelFor loop = threads ? pool.parallel_for() : bittensor::ParallelFor();
        (int8 ? bittensor::conv2d_int8 : bittensor::conv2d_float)(convolution, *kernels, loop);
        if (int8) {
          check_same(out.values(), expected);
        } else {  // narrow groups are multiplied as floats, others in digits
          check_near(out.values(), expected);
        }
        CHECK(out.intact());
      }
    }
  }
}

Geometry square(
    std::int64_t size, std::int64_t channels, std::int64_t kernel, std::int64_t groups, std::int64_t outputs) {
  Geometry geometry{{}, groups, outputs, kernel / 2, kernel / 2};
  Patches& p = geometry.patches;
  p.height = p.width = size;
  p.channels = channels;
  p.kernel_height = p.kernel_width = kernel;
  p.top = p.left = kernel / 2;
  return geometry;
}

TEST(a_convolution_is_the_linear_of_its_patches) {
  Random random(4);
  bittensor::ThreadPool pool(3);
  std::vector<Geometry> all = {
      square(9, 3, 3, 1, 20),    // one group
      square(6, 8, 1, 1, 5),     // pixels
      square(6, 64, 1, 2, 24),   // pixels of groups, whose rows share a tile
      square(5, 60, 3, 3, 33),   // wide groups
      square(11, 24, 3, 24, 1),  // depthwise
      square(7, 40, 5, 40, 2),   // with several outputs of a channel
      square(6, 64, 3, 16, 4),   // several channels in a group
      square(4, 36, 1, 36, 1),
  };
  for (Geometry geometry : {square(11, 20, 3, 20, 1), square(10, 6, 3, 1, 9), square(9, 48, 2, 2, 10)}) {
    Patches& p = geometry.patches;
    p.width = 13;
    p.kernel_width = 2;
    p.stride_height = 2;
    p.stride_width = 3;
    p.dilation_height = 2;
    p.top = 4;  // a line that meets nothing but zeros
    geometry.right = 5;
    all.push_back(geometry);
    p.dilation_width = 3;
    p.top = geometry.bottom = 0;
    all.push_back(geometry);
  }
  for (const Geometry& geometry : all) {
    for (const int bits : {2, 4, 8}) {
      for (const ZeroKind kind : {ZeroKind::symmetric, ZeroKind::integer, ZeroKind::offset}) {
        check_convolution(geometry, bits, kind, random, pool);
      }
    }
  }
}

}  // namespace
