#pragma once

/// The instruction sets that the tests run, which must be all that the processor reports, and the sizes and codes that
/// they try.

#include <array>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "bittensor/codes.hpp"
#include "bittensor/isa.hpp"
#include "check.hpp"

inline constexpr std::array widths = {1, 2, 4, 8};

/// Whether the processor reports what an instruction set needs, by the compiler's own detection, not the library's.
inline bool processor_has(const std::string& isa) {
  const bool avx2 =
      __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 && __builtin_cpu_supports("f16c") != 0;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
                      __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512dq") != 0;
  if (isa == "scalar") return true;
  if (isa == "avx2") return avx2;
  if (isa == "avxvnni") return avx2 && __builtin_cpu_supports("avxvnni") != 0;
  if (isa == "avx512") return avx512;
  if (isa == "avx512vnni") return avx512 && __builtin_cpu_supports("avx512vnni") != 0;
  if (isa == "amx") {
    return avx512 && __builtin_cpu_supports("avx512vnni") != 0 && __builtin_cpu_supports("gfni") != 0 &&
           __builtin_cpu_supports("amx-int8") != 0 && __builtin_cpu_supports("amx-tile") != 0;
  }
  check::fail(__FILE__, __LINE__, "no rule tells whether this processor has '" + isa + "': add one here");
}

/// The kernels of every instruction set of this machine. Prints their names, and fails if one is missing.
inline std::vector<const bittensor::KernelSet*> kernels_under_test() {
  std::vector<const bittensor::KernelSet*> sets;
  std::string names;
  for (const bittensor::Isa isa : bittensor::known_isas()) {
    const std::string name = bittensor::isa_name(isa);
    CONTEXT("instruction set %s", name.c_str());
    CHECK_EQUAL(bittensor::is_supported(isa), processor_has(name));
    if (!bittensor::is_supported(isa)) continue;
    sets.push_back(&bittensor::kernels_for(isa));
    names += " " + name;
  }
  static bool printed = false;
  if (!printed) std::printf("instruction sets:%s\n", names.c_str());
  printed = true;
  return sets;
}

/// Row lengths at the borders of vectors, words, chunks and blocks of 64 bytes.
inline std::vector<std::int64_t> lengths(int bits) {
  std::vector<std::int64_t> all = {0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000};
  const std::int64_t block_codes = std::int64_t{bittensor::block_bytes} * 8 / bits;
  for (const std::int64_t blocks : {1, 2, 3}) {
    for (const std::int64_t extra : {-1, 0, 1}) all.push_back(blocks * block_codes + extra);
  }
  return all;
}

using Random = std::mt19937;

inline int random_between(Random& random, int low, int high) {
  return std::uniform_int_distribution(low, high)(random);
}

inline std::vector<std::uint8_t> random_codes(Random& random, std::int64_t count, int bits) {
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(count));
  for (std::uint8_t& code : codes)
    code = static_cast<std::uint8_t>(random() & static_cast<unsigned>(bittensor::max_code(bits)));
  return codes;
}

/// Packs rows by the rule of docs/numerics.md, section 1, spelled out bit by bit. Unused bits get the value `unused`.
inline std::vector<std::uint64_t> packed_by_rule(
    const std::vector<std::uint8_t>& codes, std::int64_t rows, std::int64_t columns, int bits, bool unused = false) {
  const std::int64_t per_word = 64 / bits;
  const std::int64_t row_words = (columns + per_word - 1) / per_word;
  std::vector<std::uint64_t> words(static_cast<std::size_t>(rows * row_words));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t k = 0; k < row_words * per_word; ++k) {
      const std::uint64_t ones = (std::uint64_t{1} << bits) - 1;
      const std::uint64_t code = k < columns ? codes[static_cast<std::size_t>(r * columns + k)] : (unused ? ones : 0);
      words[static_cast<std::size_t>(r * row_words + k / per_word)] |= code << (k % per_word * bits);
    }
  }
  return words;
}
