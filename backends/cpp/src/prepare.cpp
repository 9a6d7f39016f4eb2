// Canonical words to tiles, and back.

#include "bittensor/prepare.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "bittensor/codes.hpp"
#include "count_call.hpp"

namespace bittensor {
namespace {

/// The first 64 bytes of a prepared weight.
struct Header {
  char magic[8];
  std::int64_t out_features;
  std::int64_t in_features;
  std::int64_t group_size;
  std::int32_t bits;
  std::uint8_t scale_type;
  std::uint8_t zero_kind;
  std::uint8_t unused[26];
};
static_assert(sizeof(Header) == 64);

/// Codes from which on it pays to wake a thread for them.
constexpr std::int64_t shared_codes = std::int64_t{1} << 13;

ParallelFor threads_for(const PreparedLayout& layout, const ParallelFor& parallel) {
  return parallel.pays(layout.out_features * layout.in_features, shared_codes) ? parallel : ParallelFor();
}

constexpr char magic[8] = {'B', 'T', 'T', 'I', 'L', 'E', 'S', '1'};

/// Where the first value of a tile's rows of a [N, groups] array that does not fit is in the array; -1 if all fit.
template <class Value, class Fits>
std::int64_t find_unfit(const PreparedLayout& layout, std::int64_t tile, const void* values, const Fits& fits) {
  const auto value = [values](std::int64_t i) {
    Value bits{};
    std::memcpy(&bits, static_cast<const std::uint8_t*>(values) + i * std::int64_t{sizeof bits}, sizeof bits);
    return bits;
  };
  const std::int64_t begin = tile * tile_rows * layout.groups();
  const std::int64_t end = std::min((tile + 1) * tile_rows, layout.out_features) * layout.groups();
  bool all_fit = true;  // without a way out, so that vectors can look at them
  for (std::int64_t i = begin; i < end; ++i) all_fit &= fits(value(i));
  if (all_fit) return -1;
  std::int64_t i = begin;
  while (fits(value(i))) ++i;
  return i;
}

std::string place_of(std::int64_t value, const PreparedLayout& layout) {
  return " in row " + std::to_string(value / layout.groups()) + ", group " + std::to_string(value % layout.groups());
}

void check_zeros(const std::uint8_t* zeros, const PreparedLayout& layout, std::int64_t tile) {
  const int most = max_code(layout.bits);
  const auto is_code = [most](std::uint8_t zero) { return zero <= most; };
  const std::int64_t wrong = find_unfit<std::uint8_t>(layout, tile, zeros, is_code);
  if (wrong < 0) return;
  throw std::invalid_argument(
      "zeros: expected 0 to " + std::to_string(most) + " (" + std::to_string(layout.bits) + " bits), got " +
      std::to_string(zeros[wrong]) + place_of(wrong, layout));
}

void check_finite(const char* name, const void* values, const PreparedLayout& layout, std::int64_t tile) {
  // The exponent of NaN and infinity is all ones.
  const auto is_finite = [](auto exponent) { return [exponent](auto bits) { return (bits & exponent) != exponent; }; };
  std::int64_t wrong = -1;
  if (layout.scale_type == FloatType::f32) {
    wrong = find_unfit<std::uint32_t>(layout, tile, values, is_finite(0x7F800000U));
  } else {
    wrong = find_unfit<std::uint16_t>(
        layout, tile, values, is_finite(layout.scale_type == FloatType::f16 ? 0x7C00U : 0x7F80U));
  }
  if (wrong < 0) return;
  throw std::invalid_argument(
      std::string(name) + ": expected finite values, got NaN or infinity" + place_of(wrong, layout));
}

/// Copies the rows [first, first + rows) of a [N, groups] array of `size` bytes each to or from [group][row of tile].
template <class Copy>
void for_each_group_value(const PreparedLayout& layout, std::int64_t tile, std::int64_t size, const Copy& copy) {
  const std::int64_t rows = std::min<std::int64_t>(tile_rows, layout.out_features - tile * tile_rows);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t g = 0; g < layout.groups(); ++g) {
      copy(((tile * tile_rows + r) * layout.groups() + g) * size, (g * tile_rows + r) * size);
    }
  }
}

void gather(const void* from, const PreparedLayout& layout, std::int64_t tile, std::int64_t size, std::uint8_t* to) {
  for_each_group_value(layout, tile, size, [&](std::int64_t canonical, std::int64_t tiled) {
    std::memcpy(to + tiled, static_cast<const std::uint8_t*>(from) + canonical, static_cast<std::size_t>(size));
  });
}

void scatter(const std::uint8_t* from, const PreparedLayout& layout, std::int64_t tile, std::int64_t size, void* to) {
  for_each_group_value(layout, tile, size, [&](std::int64_t canonical, std::int64_t tiled) {
    std::memcpy(static_cast<std::uint8_t*>(to) + canonical, from + tiled, static_cast<std::size_t>(size));
  });
}

/// Calls f(block, column, count): the columns of each block of the layout, `count` of which exist.
template <class F>
void for_each_block(const PreparedLayout& layout, const F& f) {
  std::int64_t block = 0;
  for (std::int64_t g = 0; g < layout.groups(); ++g) {
    const std::int64_t begin = g * layout.group_size;
    const std::int64_t end = begin + layout.columns_of_group(g);
    for (std::int64_t column = begin; column < end; column += layout.block_columns()) {
      f(block++, column, std::min(layout.block_columns(), end - column));
    }
  }
}

}  // namespace

void check_layout(const PreparedLayout& layout) {
  const auto refuse = [](const std::string& what) { throw std::invalid_argument("quantized weight: " + what); };
  if (layout.bits != 2 && layout.bits != 4 && layout.bits != 8) {
    refuse("expected 2, 4 or 8 bits, got " + std::to_string(layout.bits));
  }
  constexpr std::int64_t largest = std::int64_t{1} << 31;
  if (layout.out_features < 1 || layout.in_features < 1 || layout.out_features >= largest ||
      layout.in_features >= largest) {
    refuse(
        "expected a shape of at least 1 x 1 and below 2^31, got " + std::to_string(layout.out_features) + " x " +
        std::to_string(layout.in_features));
  }
  // Otherwise the count of bytes could leave 64 bits.
  if (layout.out_features * layout.in_features > std::int64_t{1} << 48) refuse("expected at most 2^48 weights");
  if (layout.group_size < 1 || layout.group_size > layout.in_features ||
      (layout.group_size % 8 != 0 && layout.group_size != layout.in_features)) {
    refuse("expected a group size that is a multiple of 8 or all columns, got " + std::to_string(layout.group_size));
  }
  // 127 * 255 * columns of a group must fit the int32 sums.
  if (layout.group_size > 65536) refuse("expected groups of at most 65536 columns");
  if (static_cast<int>(layout.scale_type) > 2 || static_cast<int>(layout.zero_kind) > 2) {
    refuse("unknown scale type or zero kind");
  }
}

void prepare(
    const GroupQuantized& weight, const PreparedLayout& layout, std::uint8_t* prepared, const KernelSet& kernels,
    const ParallelFor& parallel) {
  check_layout(layout);
  count_call(KernelKind::unpack_row, layout.bits, kernels.isa);
  Header header{};
  std::memcpy(header.magic, magic, sizeof magic);
  header.out_features = layout.out_features;
  header.in_features = layout.in_features;
  header.group_size = layout.group_size;
  header.bits = layout.bits;
  header.scale_type = static_cast<std::uint8_t>(layout.scale_type);
  header.zero_kind = static_cast<std::uint8_t>(layout.zero_kind);
  std::memcpy(prepared, &header, sizeof header);
  std::memset(prepared + layout.scales_begin(), 0, static_cast<std::size_t>(layout.bytes() - layout.scales_begin()));

  const UnpackRow unpack_row = kernels.for_bits(layout.bits).unpack_row;
  const std::int64_t row_words = words_per_row(layout.in_features, layout.bits);
  threads_for(layout, parallel)(layout.tiles(), [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(tile_rows * layout.in_features));
    for (std::int64_t tile = begin; tile < end; ++tile) {
      check_finite("scales", weight.scales, layout, tile);
      if (layout.zero_kind == ZeroKind::integer) check_zeros(weight.zeros, layout, tile);
      if (layout.zero_kind == ZeroKind::offset) check_finite("offsets", weight.offsets, layout, tile);
      std::ranges::fill(codes, std::uint8_t{0});
      const std::int64_t rows = std::min<std::int64_t>(tile_rows, layout.out_features - tile * tile_rows);
      for (std::int64_t r = 0; r < rows; ++r) {
        unpack_row(
            weight.words + (tile * tile_rows + r) * row_words, layout.in_features,
            codes.data() + r * layout.in_features);
      }
      std::uint8_t* tile_codes = prepared + layout.codes_begin() + tile * layout.tile_code_bytes();
      for_each_block(layout, [&](std::int64_t block, std::int64_t column, std::int64_t count) {
        std::uint8_t* to = tile_codes + block * tile_block_bytes;
        std::memset(to, 0, tile_block_bytes);
        for (std::int64_t r = 0; r < rows; ++r) {
          const std::uint8_t* from = codes.data() + r * layout.in_features + column;
          for (std::int64_t c = 0; c < count; ++c) {
            to[4 * r + c % 4] = static_cast<std::uint8_t>(to[4 * r + c % 4] | from[c] << (c / 4 * layout.bits));
          }
        }
      });
      const std::int64_t size = bytes_of(layout.scale_type);
      gather(weight.scales, layout, tile, size, prepared + layout.scales_begin() + tile * layout.tile_scale_bytes());
      std::uint8_t* zeros = prepared + layout.zeros_begin() + tile * layout.tile_zero_bytes();
      if (layout.zero_kind == ZeroKind::integer) gather(weight.zeros, layout, tile, 1, zeros);
      if (layout.zero_kind == ZeroKind::offset) gather(weight.offsets, layout, tile, size, zeros);
    }
  });
}

PreparedLayout read_layout(const std::uint8_t* prepared, std::int64_t bytes) {
  Header header{};
  if (bytes >= static_cast<std::int64_t>(sizeof header)) std::memcpy(&header, prepared, sizeof header);
  if (std::memcmp(header.magic, magic, sizeof magic) != 0) {
    throw std::invalid_argument("prepared weight: not a weight that this version of the C++ backend prepared");
  }
  const PreparedLayout layout = {
      header.out_features,
      header.in_features,
      header.group_size,
      header.bits,
      static_cast<FloatType>(header.scale_type),
      static_cast<ZeroKind>(header.zero_kind)};
  check_layout(layout);
  if (layout.bytes() != bytes) {
    throw std::invalid_argument(
        "prepared weight: expected " + std::to_string(layout.bytes()) + " bytes, got " + std::to_string(bytes));
  }
  return layout;
}

void restore(
    const std::uint8_t* prepared, const PreparedLayout& layout, const GroupQuantizedOutput& weight,
    const KernelSet& kernels, const ParallelFor& parallel) {
  count_call(KernelKind::pack_row, layout.bits, kernels.isa);
  const PackRow pack_row = kernels.for_bits(layout.bits).pack_row;
  const std::int64_t row_words = words_per_row(layout.in_features, layout.bits);
  const int mask = max_code(layout.bits);
  threads_for(layout, parallel)(layout.tiles(), [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(tile_rows * layout.in_features));
    for (std::int64_t tile = begin; tile < end; ++tile) {
      const std::int64_t rows = std::min<std::int64_t>(tile_rows, layout.out_features - tile * tile_rows);
      const std::uint8_t* tile_codes = prepared + layout.codes_begin() + tile * layout.tile_code_bytes();
      for_each_block(layout, [&](std::int64_t block, std::int64_t column, std::int64_t count) {
        const std::uint8_t* from = tile_codes + block * tile_block_bytes;
        for (std::int64_t r = 0; r < rows; ++r) {
          std::uint8_t* to = codes.data() + r * layout.in_features + column;
          for (std::int64_t c = 0; c < count; ++c) {
            to[c] = static_cast<std::uint8_t>(from[4 * r + c % 4] >> (c / 4 * layout.bits) & mask);
          }
        }
      });
      for (std::int64_t r = 0; r < rows; ++r) {
        pack_row(
            codes.data() + r * layout.in_features, layout.in_features,
            weight.words + (tile * tile_rows + r) * row_words);
      }
      const std::int64_t size = bytes_of(layout.scale_type);
      scatter(prepared + layout.scales_begin() + tile * layout.tile_scale_bytes(), layout, tile, size, weight.scales);
      const std::uint8_t* zeros = prepared + layout.zeros_begin() + tile * layout.tile_zero_bytes();
      if (layout.zero_kind == ZeroKind::integer) scatter(zeros, layout, tile, 1, weight.zeros);
      if (layout.zero_kind == ZeroKind::offset) scatter(zeros, layout, tile, size, weight.offsets);
    }
  });
}

}  // namespace bittensor
