// Which kernels run: the list of instruction sets, what this machine supports, and the cap set by the environment.

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <stdexcept>

#include "bittensor/isa.hpp"

namespace bittensor {

extern const KernelSet scalar_kernels;
extern const KernelSet avx2_kernels;
extern const KernelSet avxvnni_kernels;
extern const KernelSet avx512_kernels;
extern const KernelSet avx512vnni_kernels;
extern const TileKernels amx_kernels;

namespace {

struct CpuFeatures {
  bool avx2 = false, fma = false, f16c = false, avx_vnni = false;
  bool avx512f = false, avx512bw = false, avx512dq = false, avx512vl = false;
  bool avx512_vnni = false, avx512_vbmi = false, avx512_bf16 = false, gfni = false;
  bool amx_tile = false, amx_int8 = false, amx_bf16 = false;
  bool os_avx = false, os_avx512 = false, os_amx = false;
  bool is_amd = false;
};

std::uint64_t saved_register_state() {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<std::uint64_t>(high) << 32 | low;
}

/// Linux saves the contents of tiles only for processes that ask, once for all threads.
bool request_tile_data() {
  constexpr long request_permission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long tile_data = 18;               // the bit of XCR0
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

CpuFeatures read_cpu_features() {
  CpuFeatures f;
  std::uint32_t a = 0;
  std::uint32_t b = 0;
  std::uint32_t c = 0;
  std::uint32_t d = 0;
  const auto bit = [](std::uint32_t value, int position) { return (value >> position & 1U) != 0; };
  if (__get_cpuid(0, &a, &b, &c, &d) == 0) return f;
  f.is_amd = b == signature_AMD_ebx && d == signature_AMD_edx && c == signature_AMD_ecx;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return f;
  f.fma = bit(c, 12);
  f.f16c = bit(c, 29);
  if (bit(c, 27)) {  // OSXSAVE: the operating system tells which registers it saves
    const std::uint64_t state = saved_register_state();
    f.os_avx = (state & 0x06) == 0x06;        // xmm, ymm
    f.os_avx512 = (state & 0xE6) == 0xE6;     // and opmask, both halves of zmm
    f.os_amx = (state & 0x60000) == 0x60000;  // configuration and contents of tiles
  }
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) != 0) {
    const std::uint32_t subleaves = a;
    f.avx2 = bit(b, 5);
    f.avx512f = bit(b, 16);
    f.avx512dq = bit(b, 17);
    f.avx512bw = bit(b, 30);
    f.avx512vl = bit(b, 31);
    f.avx512_vbmi = bit(c, 1);
    f.gfni = bit(c, 8);
    f.avx512_vnni = bit(c, 11);
    f.amx_bf16 = bit(d, 22);
    f.amx_tile = bit(d, 24);
    f.amx_int8 = bit(d, 25);
    if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0) {
      f.avx_vnni = bit(a, 4);
      f.avx512_bf16 = bit(a, 5);
    }
  }
  f.os_amx = f.os_amx && f.amx_tile && request_tile_data();
  return f;
}

const CpuFeatures& cpu() {
  static const CpuFeatures features = read_cpu_features();
  return features;
}

struct Implementation {
  const char* name;
  const KernelSet& kernels;
  bool (*is_supported)(const CpuFeatures&);
};

bool has_avx2(const CpuFeatures& f) {
  return f.os_avx && f.avx2 && f.fma && f.f16c;
}

bool has_avx512(const CpuFeatures& f) {
  return has_avx2(f) && f.os_avx512 && f.avx512f && f.avx512bw && f.avx512dq && f.avx512vl;
}

/// The tiles of AMX serve the int8 linear and the integer product; everything else runs on vectors.
KernelSet with_tiles(KernelSet set) {
  set.isa = Isa::amx;
  for (std::size_t i = 0; i < std::size(set.codes); ++i) {
    set.codes[i].integer_dot = amx_kernels.integer_dot[i];
    set.codes[i].decodes_once = true;
  }
  std::ranges::copy(amx_kernels.int8_linear, set.linear.int8_linear);
  set.linear.decodes_once = true;
  return set;
}
const KernelSet amx_set = with_tiles(avx512vnni_kernels);

/// Weakest first. An instruction set joins the library by one row here.
const std::array implementations = {
    Implementation{"scalar", scalar_kernels, [](const CpuFeatures&) { return true; }},
    Implementation{"avx2", avx2_kernels, has_avx2},
    Implementation{"avxvnni", avxvnni_kernels, [](const CpuFeatures& f) { return has_avx2(f) && f.avx_vnni; }},
    Implementation{"avx512", avx512_kernels, has_avx512},
    Implementation{
        "avx512vnni", avx512vnni_kernels, [](const CpuFeatures& f) { return has_avx512(f) && f.avx512_vnni; }},
    Implementation{
        "amx", amx_set,
        [](const CpuFeatures& f) {
          return has_avx512(f) && f.avx512_vnni && f.gfni && f.os_amx && f.amx_tile && f.amx_int8;
        }},
};

const Implementation& implementation(Isa isa) {
  for (const Implementation& each : implementations) {
    if (each.kernels.isa == isa) return each;
  }
  throw std::logic_error("an instruction set is missing from the list of implementations");
}

std::string names(bool supported_only) {
  std::string list;
  for (const Implementation& each : implementations) {
    if (supported_only && !each.is_supported(cpu())) continue;
    list += (list.empty() ? "" : ", ") + std::string(each.name);
  }
  return list;
}

}  // namespace

const char* isa_name(Isa isa) {
  return implementation(isa).name;
}

std::vector<Isa> known_isas() {
  std::vector<Isa> isas;
  isas.reserve(implementations.size());
  for (const Implementation& each : implementations) isas.push_back(each.kernels.isa);
  return isas;
}

bool is_supported(Isa isa) {
  return implementation(isa).is_supported(cpu());
}

const KernelSet& kernels_for(Isa isa) {
  const Implementation& found = implementation(isa);
  if (!found.is_supported(cpu())) {
    throw std::invalid_argument(
        "instruction set '" + std::string(found.name) +
        "' is not supported by this machine; it supports: " + names(true));
  }
  return found.kernels;
}

const Tuning& tuning() {
  static constexpr Tuning amd = {
      .fetch = {.row_tiles = 3, .ahead = 2304, .next_run = true},
      .serial_products = std::int64_t{1} << 20,
      .least_rows = 2,
      .row_in_order = true,
      .decodes = false,
      .words_ahead = 0};
  static constexpr Tuning others = {
      .fetch = {},
      .serial_products = std::int64_t{3} << 19,
      .least_rows = 3,
      .row_in_order = false,
      .decodes = true,
      .words_ahead = 16384};
  return cpu().is_amd ? amd : others;
}

Isa parse_isa(std::string_view name) {
  for (const Implementation& each : implementations) {
    if (name == each.name) return kernels_for(each.kernels.isa).isa;
  }
  throw std::invalid_argument("unknown instruction set '" + std::string(name) + "'; known: " + names(false));
}

IsaChoice choose_isa() {
  const char* cap = std::getenv("BITTENSOR_ISA");
  if (cap != nullptr && *cap != '\0') {
    try {
      return {parse_isa(cap), std::string("BITTENSOR_ISA=") + cap};
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(std::string("BITTENSOR_ISA: ") + error.what());
    }
  }
  Isa best = Isa::scalar;
  for (const Implementation& each : implementations) {
    if (each.is_supported(cpu())) best = each.kernels.isa;
  }
  return {best, "the best this machine supports"};
}

std::vector<std::pair<std::string, bool>> cpu_features() {
  const CpuFeatures& f = cpu();
  return {
      {"avx2", f.avx2},
      {"fma", f.fma},
      {"f16c", f.f16c},
      {"avx_vnni", f.avx_vnni},
      {"avx512f", f.avx512f},
      {"avx512bw", f.avx512bw},
      {"avx512dq", f.avx512dq},
      {"avx512vl", f.avx512vl},
      {"avx512_vnni", f.avx512_vnni},
      {"avx512_vbmi", f.avx512_vbmi},
      {"avx512_bf16", f.avx512_bf16},
      {"gfni", f.gfni},
      {"amx_tile", f.amx_tile},
      {"amx_int8", f.amx_int8},
      {"amx_bf16", f.amx_bf16},
      {"os_avx", f.os_avx},
      {"os_avx512", f.os_avx512},
      {"os_amx", f.os_amx},
  };
}

}  // namespace bittensor
