// The table of kernels and the count of their calls.

#include "bittensor/kernel_table.hpp"

#include <array>
#include <atomic>

#include "bittensor/isa.hpp"
#include "count_call.hpp"

namespace bittensor {
namespace {

struct Kind {
  const char* name;
  std::array<bool, 9> widths;  // [0]: does not depend on the width
};

constexpr std::array<bool, 9> every_width = {false, true, true, false, true, false, false, false, true};
constexpr std::array<bool, 9> linear_widths = {false, false, true, false, true, false, false, false, true};
constexpr std::array<bool, 9> no_width = {true};

/// In the order of KernelKind.
constexpr std::array kinds = {
    Kind{"pack_row", every_width},
    Kind{"unpack_row", every_width},
    Kind{"expand_planes", every_width},
    Kind{"integer_dot", every_width},
    Kind{"store_codes", every_width},
    Kind{"store_sums", no_width},
    Kind{"quantize_row", no_width},
    Kind{"int8_linear", linear_widths},
    Kind{"store_outputs", no_width},
    Kind{"widen_row", no_width},
    Kind{"split_row", no_width},
    Kind{"add_digits", no_width},
    Kind{"dequantize_panel", linear_widths},
    Kind{"panel_product", no_width},
    Kind{"codes_product", linear_widths},
    Kind{"normalize_row", no_width},
    Kind{"gate_row", no_width},
    Kind{"softmax_row", no_width},
    Kind{"dequantize_row", linear_widths},
    Kind{"int8_lanes", linear_widths},
    Kind{"float_lanes", linear_widths},
};
constexpr std::size_t isa_limit = 16;

/// Slot 0 of a kind counts kernels that do not depend on the width.
std::atomic<std::uint64_t>& calls(KernelKind kind, int bits, Isa isa) {
  static std::array<std::atomic<std::uint64_t>, kinds.size() * 9 * isa_limit> counts;
  const auto row = static_cast<std::size_t>(kind) * 9 + static_cast<std::size_t>(bits);
  return counts[row * isa_limit + static_cast<std::size_t>(isa)];
}

}  // namespace

void count_call(KernelKind kind, int bits, Isa isa) {
  calls(kind, bits, isa).fetch_add(1, std::memory_order_relaxed);
}

const char* kind_name(KernelKind kind) {
  return kinds[static_cast<std::size_t>(kind)].name;
}

std::vector<KernelEntry> kernel_table() {
  std::vector<KernelEntry> table;
  for (const Isa isa : known_isas()) {
    for (std::size_t k = 0; k < kinds.size(); ++k) {
      for (int bits = 0; bits <= 8; ++bits) {
        if (!kinds[k].widths[static_cast<std::size_t>(bits)]) continue;
        const std::string width = bits == 0 ? "" : "_b" + std::to_string(bits);
        const auto kind = static_cast<KernelKind>(k);
        table.push_back(
            {kinds[k].name + width + "_" + isa_name(isa), kind, bits, isa, is_supported(isa),
             calls(kind, bits, isa).load(std::memory_order_relaxed)});
      }
    }
  }
  return table;
}

}  // namespace bittensor
