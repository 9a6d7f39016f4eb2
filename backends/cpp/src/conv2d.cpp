// The loop nest of the convolution: a linear of the patches of each group of channels or, where the groups are narrow,
// vectors of several groups.

#include "bittensor/conv2d.hpp"

#include <algorithm>
#include <cstring>

#include "bittensor/linear.hpp"
#include "count_call.hpp"
#include "rounding.hpp"
#include "scratch.hpp"

namespace bittensor {
namespace {

constexpr std::int64_t vector_bytes = tile_rows * 4;

enum class Mode : std::uint8_t { int8, floats };

/// Each group of channels as a linear, which finds its rows in the images.
void multiply_patches(const Conv2d& c, Mode mode, const KernelSet& kernels, const ParallelFor& parallel) {
  const std::int64_t outputs = c.layout.out_features / c.groups;
  const std::int64_t channels = c.patches.channels / c.groups;
  const std::int64_t size = bytes_of(c.float_type);
  const auto multiply = [&](std::int64_t group, const ParallelFor& loop) {
    Patches patches = c.patches;
    patches.first_channel = group * channels;
    patches.taken_channels = channels;
    Linear linear;
    linear.x = c.images;
    if (patches.are_pixels()) {
      linear.x = static_cast<const std::uint8_t*>(c.images) + patches.first_channel * size;
      linear.x_row_bytes = patches.channels * size;
    } else {
      linear.patches = &patches;
    }
    linear.rows = c.count * patches.positions();
    linear.float_type = c.float_type;
    linear.prepared = c.prepared;
    linear.layout = c.layout;
    linear.first_output = group * outputs;
    linear.outputs = outputs;
    linear.bias = c.bias;
    linear.activation = c.activation;
    linear.out = c.out;
    (mode == Mode::int8 ? linear_int8 : linear_float)(linear, kernels, loop);
  };
  if (c.groups < parallel.thread_count()) {
    for (std::int64_t group = 0; group < c.groups; ++group) multiply(group, parallel);
  } else {
    parallel(c.groups, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t group = begin; group < end; ++group) multiply(group, ParallelFor());
    });
  }
}

/// Where groups are narrow: of the rows of a tile, each has a lane of its own in vectors of activations, which are laid
/// out for a few rows of an image at a time.
class LanesConvolution {
 public:
  LanesConvolution(const Conv2d& convolution, Mode mode, const KernelSet& kernels)
      : c_(convolution),
        p_(convolution.patches),
        layout_(convolution.layout),
        kernels_(kernels),
        multiply_(
            mode == Mode::int8 ? kernels.convolution.int8_lanes_for(layout_.bits)
                               : kernels.convolution.float_lanes_for(layout_.bits)),
        channels_(p_.channels / c_.groups),
        line_(round_up(p_.width * p_.channels, 4)),
        columns_((p_.out_width - 1) * p_.stride_width + (p_.kernel_width - 1) * p_.dilation_width + 1) {
    const KernelKind kind = mode == Mode::int8 ? KernelKind::int8_lanes : KernelKind::float_lanes;
    count_call(kind, layout_.bits, kernels.isa);
    count_call(KernelKind::store_outputs, 0, kernels.isa);
  }

  void run(const ParallelFor& parallel) {
    const Scratch widened(ScratchUse::operation, widened_floats() * 4);
    take_images(widened.floats(), parallel);
    // As many rows at once as leave several parts to each thread, and what they need in the second-level cache.
    constexpr std::int64_t part_bytes = std::int64_t{384} << 10;
    const std::int64_t row_bytes =
        (p_.stride_height * columns_ * channels_ + p_.out_width * layout_.tiles()) * vector_bytes;
    const std::int64_t fair = c_.count * p_.out_height / (std::int64_t{4} * parallel.thread_count());
    const std::int64_t rows =
        std::clamp<std::int64_t>(std::min(part_bytes / row_bytes, fair), 1, std::min(p_.out_height, part_bytes));
    const std::int64_t parts = ceil_divide(p_.out_height, rows);
    parallel(c_.count * parts, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t first = i % parts * rows;
        multiply_rows(i / parts, first, std::min(rows, p_.out_height - first));
      }
    });
  }

 private:
  /// Without columns there is nothing to widen, and only zeros around.
  bool widens() const { return c_.float_type != FloatType::f32 && p_.width > 0; }

  std::int64_t widened_floats() const { return widens() ? c_.count * p_.height * line_ : 0; }

  /// The images as float32: as they are, or widened.
  void take_images(float* widened, const ParallelFor& parallel) {
    if (!widens()) {
      images_ = static_cast<const float*>(c_.images);
      line_ = p_.width * p_.channels;
      return;
    }
    const std::int64_t lines = c_.count * p_.height;
    const std::int64_t values = p_.width * p_.channels;
    const PreparedLayout line{1, values, values, 8, FloatType::f32, ZeroKind::symmetric};
    count_call(KernelKind::widen_row, 0, kernels_.isa);
    parallel(lines, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const auto* from = static_cast<const std::uint8_t*>(c_.images) + i * values * bytes_of(c_.float_type);
        kernels_.linear.widen_row(from, c_.float_type, line, widened + i * line_);
      }
    });
    images_ = widened;
  }

  void multiply_rows(std::int64_t image, std::int64_t first, std::int64_t rows) const {
    const std::int64_t lines = (rows - 1) * p_.stride_height + (p_.kernel_height - 1) * p_.dilation_height + 1;
    const std::int64_t pixel = channels_ * tile_rows;
    const std::int64_t features = layout_.in_features;
    const std::int64_t x_values = lines * columns_ * pixel;
    const std::int64_t y_stride = layout_.tiles() * tile_rows;
    const std::int64_t y_values = rows * p_.out_width * y_stride;
    const std::int64_t weight_values = (features + tile_rows) * tile_rows;
    const Scratch memory(ScratchUse::task, (x_values + y_values + weight_values) * 4 + (features + pixel) * 8);
    float* x = memory.floats();
    float* y = x + x_values;
    LanesBlock block{};
    block.layout = &layout_;
    block.x = x;
    block.rows = rows;
    block.row_stride = p_.stride_height * columns_ * pixel;
    block.positions = p_.out_width;
    block.position_stride = p_.stride_width * pixel;
    block.weights = y + y_values;
    block.y_stride = y_stride;
    auto* offsets = reinterpret_cast<std::int64_t*>(block.weights + weight_values);
    block.offsets = offsets;
    std::int64_t* sources = offsets + features;
    for (std::int64_t k = 0; k < features; ++k) {
      const std::int64_t u = k / channels_ / p_.kernel_width * p_.dilation_height;
      const std::int64_t v = k / channels_ % p_.kernel_width * p_.dilation_width;
      offsets[k] = (u * columns_ + v) * pixel + k % channels_ * tile_rows;
    }
    for (std::int64_t tile = 0; tile < layout_.tiles(); ++tile) {
      for (std::int64_t i = 0; i < pixel; ++i) {
        // Rows that do not exist take what the last one has.
        const std::int64_t n = std::min(tile * tile_rows + i % tile_rows, layout_.out_features - 1);
        sources[i] = n / (layout_.out_features / c_.groups) * channels_ + i / tile_rows;
      }
      const std::int64_t first_line = first * p_.stride_height - p_.top;
      for (std::int64_t i = 0; i < lines; ++i) spread_line(image, first_line + i, sources, x + i * columns_ * pixel);
      block.codes = c_.prepared + layout_.codes_begin() + tile * layout_.tile_code_bytes();
      block.scales = c_.prepared + layout_.scales_begin() + tile * layout_.tile_scale_bytes();
      block.zeros = c_.prepared + layout_.zeros_begin() + tile * layout_.tile_zero_bytes();
      block.y = y + tile * tile_rows;
      multiply_(block);
    }
    const std::int64_t out_bytes = layout_.out_features * bytes_of(c_.float_type);
    const std::int64_t before = (image * p_.out_height + first) * p_.out_width;
    for (std::int64_t i = 0; i < rows * p_.out_width; ++i) {
      kernels_.linear.store_outputs(
          y + i * y_stride, layout_.out_features, c_.bias, c_.activation, nullptr, c_.float_type,
          static_cast<std::uint8_t*>(c_.out) + (before + i) * out_bytes);
    }
  }

  /// One line of an image, with zeros around it, as a vector for each column and channel of a group.
  void spread_line(std::int64_t image, std::int64_t line, const std::int64_t* sources, float* x) const {
    const std::int64_t pixel = channels_ * tile_rows;
    const bool inside = line >= 0 && line < p_.height;
    const std::int64_t begin = inside ? std::min(p_.left, columns_) : columns_;
    const std::int64_t end = inside ? std::clamp(p_.width + p_.left, begin, columns_) : columns_;
    std::fill(x, x + begin * pixel, 0.0F);
    const float* from = images_ + (image * p_.height + line) * line_;
    const bool consecutive = channels_ == 1 && sources[tile_rows - 1] == sources[0] + tile_rows - 1;
    for (std::int64_t column = begin; column < end; ++column) {
      const float* values = from + (column - p_.left) * p_.channels;
      float* to = x + column * pixel;
      if (consecutive) {
        std::memcpy(to, values + sources[0], vector_bytes);
      } else {
        for (std::int64_t i = 0; i < pixel; ++i) to[i] = values[sources[i]];
      }
    }
    std::fill(x + end * pixel, x + columns_ * pixel, 0.0F);
  }

  const Conv2d& c_;
  const Patches& p_;
  const PreparedLayout& layout_;
  const KernelSet& kernels_;
  MultiplyLanes multiply_;
  std::int64_t channels_;  // of a group
  std::int64_t line_;      // floats from one line of an image to the next
  std::int64_t columns_;   // of an image with the zeros around it, as far as the kernel reaches
  const float* images_ = nullptr;
};

/// Whether vectors of several groups take less time than a linear for each group.
bool are_narrow(const Conv2d& c, Mode mode) {
  const PreparedLayout& l = c.layout;
  if (mode == Mode::int8 && std::min(l.group_size, l.in_features) > most_int8_lanes_columns(l.bits)) return false;
  // Vectors that one row of results needs, which large strides and dilations let grow without bound.
  constexpr double most_vectors = 1 << 20;
  const Patches& p = c.patches;
  const auto reach = [](std::int64_t count, std::int64_t step) {
    return static_cast<double>(count - 1) * static_cast<double>(step) + 1;
  };
  const std::int64_t channels = p.channels / c.groups;
  const double lines = reach(p.kernel_height, p.dilation_height);
  const double columns = reach(p.out_width, p.stride_width) + reach(p.kernel_width, p.dilation_width);
  const double vectors = lines * columns * static_cast<double>(channels) +
                         static_cast<double>(p.out_width) * static_cast<double>(l.tiles());
  if (vectors > most_vectors) return false;
  const std::int64_t row_steps = 60;  // of a row of a linear, whatever its length
  const std::int64_t column_steps = mode == Mode::int8 ? 8 : 4;
  return c.groups > 1 && l.tiles() * l.in_features * column_steps <= c.groups * (row_steps + l.in_features);
}

void convolve(const Conv2d& convolution, Mode mode, const KernelSet& kernels, const ParallelFor& parallel) {
  if (convolution.count * convolution.patches.positions() == 0) return;
  if (are_narrow(convolution, mode)) {
    LanesConvolution(convolution, mode, kernels).run(parallel);
  } else {
    multiply_patches(convolution, mode, kernels, parallel);
  }
}

}  // namespace

void conv2d_int8(const Conv2d& convolution, const KernelSet& kernels, const ParallelFor& parallel) {
  convolve(convolution, Mode::int8, kernels, parallel);
}

void conv2d_float(const Conv2d& convolution, const KernelSet& kernels, const ParallelFor& parallel) {
  convolve(convolution, Mode::floats, kernels, parallel);
}

}  // namespace bittensor
