// Spreading of packed rows into planes, by every kernel.

#include "check.hpp"
#include "guarded.hpp"
#include "kernels_under_test.hpp"

using bittensor::KernelSet;

namespace {

/// Byte j of run p of a block is code 64 * P * block + P * j + p, less the shift; 0 beyond the last column.
std::vector<std::int8_t> planes_by_rule(const std::vector<std::uint8_t>& codes, int bits, int shift) {
  const std::size_t planes = 8 / static_cast<std::size_t>(bits);
  const std::size_t block_codes = 64 * planes;
  std::vector<std::int8_t> out((codes.size() + block_codes - 1) / block_codes * block_codes, 0);
  for (std::size_t k = 0; k < codes.size(); ++k) {
    const std::size_t in_block = k % block_codes;
    const std::size_t at = k / block_codes * block_codes + in_block % planes * 64 + in_block / planes;
    out[at] = static_cast<std::int8_t>(codes[k] - shift);
  }
  return out;
}

void check_row(const KernelSet& kernels, int bits, int shift, const std::vector<std::uint8_t>& codes) {
  const auto columns = static_cast<std::int64_t>(codes.size());
  const std::vector<std::int8_t> expected = planes_by_rule(codes, bits, shift);
  std::int32_t sum = 0;
  for (const std::int8_t value : expected) sum += value;
  for (const bool unused : {false, true}) {
    const std::vector<std::uint64_t> words = packed_by_rule(codes, 1, columns, bits, unused);
    for (const Side side : sides) {
      CONTEXT(
          "%s, %d bits, shift %d, %ld columns, unused bits %d, guard at the %s", isa_name(kernels.isa), bits, shift,
          long{columns}, unused ? 1 : 0, name_of(side));
      Guarded<std::uint64_t> input(words, side);
      Guarded<std::int8_t> planes(static_cast<std::int64_t>(expected.size()), side);
      CHECK_EQUAL(kernels.for_bits(bits).expand_planes(input.data(), columns, shift, planes.data()), sum);
      CHECK_EQUAL(planes.values(), expected);
      CHECK(planes.intact());
    }
  }
}

}  // namespace

TEST(rows_of_every_length) {
  Random random(1);
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const int bits : widths) {
      const int max = bittensor::max_code(bits);
      for (const std::int64_t columns : lengths(bits)) {
        const std::vector<std::uint8_t> codes = random_codes(random, columns, bits);
        // At 8 bits, 128 is the one shift with which every code fits a signed byte.
        for (const int shift : bits == 8 ? std::vector{128} : std::vector{0, 1, max / 2, max}) {
          check_row(*kernels, bits, shift, codes);
        }
      }
    }
  }
}

TEST(extremes_in_long_rows) {
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const int bits : widths) {
      const int max = bittensor::max_code(bits);
      for (const int code : {0, max}) {
        const std::vector<std::uint8_t> codes(20'011, static_cast<std::uint8_t>(code));
        for (const int shift : bits == 8 ? std::vector{128} : std::vector{0, max}) {
          check_row(*kernels, bits, shift, codes);
        }
      }
    }
    // The row of ones of the 8-bit product.
    check_row(*kernels, 8, 0, std::vector<std::uint8_t>(1000, 1));
    check_row(*kernels, 8, 0, std::vector<std::uint8_t>(1000, 127));
  }
}
