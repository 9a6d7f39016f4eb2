#pragma once

/// Patches of images: what lies under the kernel of a convolution, in each of its positions.

#include <cstdint>

namespace bittensor {

/// Images are [height, width, channels] without gaps, with zeros around them. A patch is a row of values in the order
/// kernel row, kernel column, channel.
struct Patches {
  std::int64_t height = 0;
  std::int64_t width = 0;
  std::int64_t channels = 0;
  std::int64_t out_height = 0;  // positions of the kernel
  std::int64_t out_width = 0;
  std::int64_t kernel_height = 1;
  std::int64_t kernel_width = 1;
  std::int64_t stride_height = 1;
  std::int64_t stride_width = 1;
  std::int64_t dilation_height = 1;
  std::int64_t dilation_width = 1;
  std::int64_t top = 0;  // rows of zeros above the image
  std::int64_t left = 0;
  std::int64_t first_channel = 0;  // of those that a patch takes
  std::int64_t taken_channels = 0;

  constexpr std::int64_t positions() const { return out_height * out_width; }
  constexpr std::int64_t values() const { return kernel_height * kernel_width * taken_channels; }

  /// Whether each patch is a pixel, one after the other.
  constexpr bool are_pixels() const {
    return kernel_height == 1 && kernel_width == 1 && stride_height == 1 && stride_width == 1 && top == 0 &&
           left == 0 && out_height == height && out_width == width;
  }
};

}  // namespace bittensor
