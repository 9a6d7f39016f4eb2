// The table of kernels and the count of their calls.

#include "bittensor/kernel_table.hpp"

#include <array>
#include <atomic>

#include "bittensor/isa.hpp"

namespace bittensor {
namespace {

constexpr std::array kind_names = {"pack_row", "unpack_row", "expand_planes", "integer_dot", "store_codes", "store_sums"};
constexpr std::array widths = {1, 2, 4, 8};
constexpr std::size_t isa_limit = 16;

/// Slot 0 of a kind counts kernels that do not depend on the width.
std::atomic<std::uint64_t>& calls(KernelKind kind, int bits, Isa isa) {
  static std::array<std::atomic<std::uint64_t>, kind_names.size() * 9 * isa_limit> counts;
  const auto row = static_cast<std::size_t>(kind) * 9 + static_cast<std::size_t>(bits);
  return counts[row * isa_limit + static_cast<std::size_t>(isa)];
}

}  // namespace

void count_call(KernelKind kind, int bits, Isa isa) {
  calls(kind, bits, isa).fetch_add(1, std::memory_order_relaxed);
}

std::vector<KernelEntry> kernel_table() {
  std::vector<KernelEntry> table;
  for (const Isa isa : known_isas()) {
    for (std::size_t k = 0; k < kind_names.size(); ++k) {
      const auto kind = static_cast<KernelKind>(k);
      const auto add = [&](int bits) {
        const std::string width = bits == 0 ? "" : "_b" + std::to_string(bits);
        table.push_back(
            {kind_names[k] + width + "_" + isa_name(isa), kind, bits, isa, is_supported(isa),
             calls(kind, bits, isa).load(std::memory_order_relaxed)});
      };
      if (kind == KernelKind::store_sums) {
        add(0);
      } else {
        for (const int bits : widths) add(bits);
      }
    }
  }
  return table;
}

}  // namespace bittensor
