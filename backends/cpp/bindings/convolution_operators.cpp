// The operator of convolutions.

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "bittensor/conv2d.hpp"
#include "operands.hpp"

namespace bittensor::binding {
namespace {

/// So large that nothing sensible reaches it, so small that products of two of them fit.
constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();

/// One number for the height and one for the width.
std::array<std::int64_t, 2> pair_of(const char* name, const std::vector<std::int64_t>& given, std::int64_t least) {
  if (given.size() != 2 || given[0] < least || given[1] < least || given[0] > most || given[1] > most) {
    refuse(std::string(name) + ": expected two numbers from " + std::to_string(least) + " on");
  }
  return {given[0], given[1]};
}

/// Positions of a kernel of `size` in `length` values with `padding` zeros on both sides together.
std::int64_t positions(
    std::int64_t length, std::int64_t padding, std::int64_t size, std::int64_t stride, std::int64_t dilation) {
  const std::int64_t reach = (size - 1) * dilation + 1;
  if (length > most || length + padding < reach) refuse("x: expected an image as large as the kernel");
  return (length + padding - reach) / stride + 1;
}

Tensor conv2d(
    const Tensor& x, const Tensor& prepared, std::int64_t out_channels, const std::optional<Tensor>& bias,
    const std::vector<std::int64_t>& kernel_size, const std::vector<std::int64_t>& stride,
    const std::vector<std::int64_t>& padding, const std::vector<std::int64_t>& dilation, std::int64_t groups,
    bool float_mode, std::int64_t activation, std::int64_t isa) {
  const Matrix weight("prepared", prepared);
  const std::optional<FloatType> type = float_type_of(x);
  if (!type) refuse("x: expected float32, float16 or bfloat16");
  const Matrix images("x", x);
  if (images.dimensions != 4) refuse("x: expected [B, H, W, C]");
  Conv2d convolution;
  convolution.layout = layout_of(weight);
  if (convolution.layout.out_features != out_channels) refuse("out_channels: the prepared weight has another number");
  if (padding.size() != 4) refuse("padding: expected four numbers: left, right, top and bottom");
  const auto [left, right] = pair_of("padding", {padding[0], padding[1]}, 0);
  const auto [top, bottom] = pair_of("padding", {padding[2], padding[3]}, 0);
  const auto [kernel_height, kernel_width] = pair_of("kernel_size", kernel_size, 1);
  const auto [stride_height, stride_width] = pair_of("stride", stride, 1);
  const auto [dilation_height, dilation_width] = pair_of("dilation", dilation, 1);
  const std::int64_t channels = images.columns;
  if (groups < 1 || channels % groups != 0 || out_channels % groups != 0) {
    refuse("groups: expected a divisor of the channels of x and of out_channels, got " + std::to_string(groups));
  }
  const std::int64_t columns = convolution.layout.in_features;
  if (columns % kernel_height != 0 || columns / kernel_height % kernel_width != 0 ||
      columns / kernel_height / kernel_width != channels / groups) {
    refuse(
        "x: expected as many channels as the " + std::to_string(columns) + " columns of the weight say, got " +
        std::to_string(channels));
  }
  Patches& patches = convolution.patches;
  patches.height = images.sizes[1];
  patches.width = images.sizes[2];
  patches.channels = channels;
  patches.out_height = positions(patches.height, top + bottom, kernel_height, stride_height, dilation_height);
  patches.out_width = positions(patches.width, left + right, kernel_width, stride_width, dilation_width);
  patches.kernel_height = kernel_height;
  patches.kernel_width = kernel_width;
  patches.stride_height = stride_height;
  patches.stride_width = stride_width;
  patches.dilation_height = dilation_height;
  patches.dilation_width = dilation_width;
  patches.top = top;
  patches.left = left;
  patches.taken_channels = channels;
  if (activation < 0 || activation > 3) refuse("activation: unknown");
  convolution.activation = static_cast<Activation>(activation);
  const FloatBias bias_values(bias, out_channels);
  convolution.bias = bias_values.values();
  convolution.images = images.data<void>();
  convolution.count = images.sizes[0];
  convolution.groups = groups;
  convolution.float_type = *type;
  convolution.prepared = weight.data<std::uint8_t>();
  std::int64_t values = 0;
  if (__builtin_mul_overflow(patches.out_height, patches.out_width, &values) ||
      __builtin_mul_overflow(values, out_channels, &values) ||
      __builtin_mul_overflow(values, std::max<std::int64_t>(convolution.count, 1), &values)) {
    refuse("padding: the result would have more than 2^63 values");
  }
  const std::array<std::int64_t, 4> sizes = {convolution.count, patches.out_height, patches.out_width, out_channels};
  const std::array<std::int64_t, 4> strides = {
      patches.positions() * out_channels, patches.out_width * out_channels, out_channels, 1};
  const Tensor out = allocate(
      torch_dtype_of(*type), 4, sizes.data(), strides.data(), convolution.count * patches.positions() * out_channels);
  convolution.out = out.data_ptr();
  (float_mode ? conv2d_float : conv2d_int8)(convolution, kernels(isa), torch_threads());
  return out;
}

}  // namespace
}  // namespace bittensor::binding

STABLE_TORCH_LIBRARY_FRAGMENT(bittensor_cpp, library) {
  library.def(
      "conv2d(Tensor x, Tensor prepared, SymInt out_channels, Tensor? bias, int[] kernel_size, int[] stride, "
      "int[] padding, int[] dilation, int groups=1, bool float_mode=False, int activation=0, int isa=-1) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bittensor_cpp, CPU, library) {
  library.impl("conv2d", TORCH_BOX(&bittensor::binding::conv2d));
}
