// A patch of an image, as one row.

#include "write_patch.hpp"

#include <algorithm>
#include <cstring>

namespace bittensor {

void write_patch(const Patches& patches, const void* images, std::int64_t size, std::int64_t index, void* to) {
  const Patches& p = patches;
  const std::int64_t pixel = p.channels * size;
  const std::int64_t taken = p.taken_channels * size;
  const std::int64_t row = index / p.out_width;
  const std::int64_t first_y = row % p.out_height * p.stride_height - p.top;
  const std::int64_t first_x = index % p.out_width * p.stride_width - p.left;
  const auto* image = static_cast<const std::uint8_t*>(images) + row / p.out_height * p.height * p.width * pixel;
  auto* out = static_cast<std::uint8_t*>(to);
  const auto put = [&](const std::uint8_t* from, std::int64_t bytes) {
    if (from == nullptr) {
      std::memset(out, 0, static_cast<std::size_t>(bytes));
    } else {
      std::memcpy(out, from, static_cast<std::size_t>(bytes));
    }
    out += bytes;
  };
  for (std::int64_t u = 0; u < p.kernel_height; ++u) {
    const std::int64_t y = first_y + u * p.dilation_height;
    const std::uint8_t* line = image + y * p.width * pixel + p.first_channel * size;
    if (y < 0 || y >= p.height) {
      put(nullptr, p.kernel_width * taken);
    } else if (p.dilation_width == 1 && p.taken_channels == p.channels) {
      const std::int64_t before = std::clamp<std::int64_t>(-first_x, 0, p.kernel_width);
      const std::int64_t end = std::clamp<std::int64_t>(p.width - first_x, before, p.kernel_width);
      put(nullptr, before * pixel);
      put(line + (first_x + before) * pixel, (end - before) * pixel);
      put(nullptr, (p.kernel_width - end) * pixel);
    } else {
      for (std::int64_t v = 0; v < p.kernel_width; ++v) {
        const std::int64_t x = first_x + v * p.dilation_width;
        put(x < 0 || x >= p.width ? nullptr : line + x * pixel, taken);
      }
    }
  }
}

}  // namespace bittensor
