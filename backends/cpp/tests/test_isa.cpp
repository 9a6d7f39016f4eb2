// Which instruction sets there are, which this machine runs, and the cap set by the environment.

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "bittensor/isa.hpp"
#include "bittensor/kernel_table.hpp"
#include "bittensor/pack.hpp"
#include "check.hpp"
#include "kernels_under_test.hpp"

namespace {

/// Sets BITTENSOR_ISA, or removes it, until the end of the scope.
class Cap {
 public:
  explicit Cap(const char* isa) {
    if (isa != nullptr) {
      setenv(variable, isa, 1);
    } else {
      unsetenv(variable);
    }
  }
  ~Cap() {
    if (before_.empty()) {
      unsetenv(variable);
    } else {
      setenv(variable, before_.c_str(), 1);
    }
  }
  Cap(const Cap&) = delete;
  Cap& operator=(const Cap&) = delete;

 private:
  static constexpr const char* variable = "BITTENSOR_ISA";
  std::string before_ = std::getenv(variable) != nullptr ? std::getenv(variable) : "";
};

}  // namespace

TEST(every_instruction_set_of_the_processor_is_supported) {
  const std::vector<const bittensor::KernelSet*> sets = kernels_under_test();
  CHECK(sets.front()->isa == bittensor::Isa::scalar);
  for (const bittensor::KernelSet* set : sets) CHECK(bittensor::is_supported(set->isa));
}

TEST(names_are_read_back) {
  for (const bittensor::Isa isa : bittensor::known_isas()) {
    CONTEXT("%s", bittensor::isa_name(isa));
    if (bittensor::is_supported(isa)) {
      CHECK(bittensor::parse_isa(bittensor::isa_name(isa)) == isa);
      CHECK(bittensor::kernels_for(isa).isa == isa);
    } else {
      CHECK_THROWS(
          std::invalid_argument, "not supported by this machine", bittensor::parse_isa(bittensor::isa_name(isa)));
      CHECK_THROWS(std::invalid_argument, "not supported by this machine", bittensor::kernels_for(isa));
    }
  }
}

TEST(unknown_names_are_refused) {
  for (const char* name : {"", "AVX2", "avx2 ", "avx", "sse9"}) {
    CONTEXT("'%s'", name);
    CHECK_THROWS(
        std::invalid_argument, "unknown instruction set '" + std::string(name) + "'", bittensor::parse_isa(name));
    CHECK_THROWS(std::invalid_argument, "scalar, avx2", bittensor::parse_isa(name));
    if (*name == '\0') continue;
    const Cap cap(name);
    CHECK_THROWS(std::invalid_argument, "BITTENSOR_ISA: unknown instruction set", bittensor::choose_isa());
  }
}

TEST(without_a_cap_the_best_is_chosen) {
  for (const char* none : {static_cast<const char*>(nullptr), ""}) {
    const Cap cap(none);
    CHECK(bittensor::choose_isa().isa == kernels_under_test().back()->isa);
  }
}

TEST(the_cap_is_honoured) {
  for (const bittensor::Isa isa : bittensor::known_isas()) {
    const char* name = bittensor::isa_name(isa);
    CONTEXT("%s", name);
    const Cap cap(name);
    if (bittensor::is_supported(isa)) {
      const bittensor::IsaChoice choice = bittensor::choose_isa();
      CHECK(choice.isa == isa);
      CHECK_EQUAL(choice.reason, "BITTENSOR_ISA=" + std::string(name));
    } else {
      CHECK_THROWS(std::invalid_argument, "BITTENSOR_ISA: ", bittensor::choose_isa());
    }
  }
}

TEST(kernel_sets_are_complete) {
  for (const bittensor::KernelSet* set : kernels_under_test()) {
    CHECK(set->store_sums != nullptr);
    for (const int bits : widths) {
      CONTEXT("%s, %d bits", isa_name(set->isa), bits);
      const bittensor::CodeKernels& kernels = set->for_bits(bits);
      CHECK(kernels.pack_row != nullptr && kernels.unpack_row != nullptr && kernels.expand_planes != nullptr);
      CHECK(kernels.integer_dot != nullptr && kernels.store_codes != nullptr);
    }
  }
}

TEST(the_table_names_every_kernel_and_counts_its_use) {
  const auto calls = [](const std::string& name) {
    for (const bittensor::KernelEntry& entry : bittensor::kernel_table()) {
      if (entry.name == name) return entry.calls;
    }
    check::fail(__FILE__, __LINE__, "the table lacks " + name);
  };
  for (const bittensor::KernelSet* set : kernels_under_test()) {
    const std::string isa = bittensor::isa_name(set->isa);
    for (const int bits : widths) {
      CONTEXT("%s, %d bits", isa.c_str(), bits);
      const std::string suffix = "_b" + std::to_string(bits) + "_" + isa;
      for (const char* kind : {"unpack_row", "expand_planes", "integer_dot", "store_codes"}) calls(kind + suffix);
      const std::uint64_t before = calls("pack_row" + suffix);
      const std::uint8_t code = 1;
      std::uint64_t word = 0;
      CHECK(!bittensor::pack(&code, 1, 1, bits, &word, *set));
      CHECK_EQUAL(calls("pack_row" + suffix), before + 1);
    }
    calls("store_sums_" + isa);
  }
  CHECK(std::ranges::all_of(bittensor::kernel_table(), [](const bittensor::KernelEntry& entry) {
    return entry.supported == bittensor::is_supported(entry.isa);
  }));
}

TEST(features_are_listed_once) {
  std::vector<std::string> names;
  for (const auto& [name, present] : bittensor::cpu_features()) names.push_back(name);
  std::ranges::sort(names);
  CHECK(std::ranges::adjacent_find(names) == names.end());
  CHECK(std::ranges::find(names, "os_avx512") != names.end());
}
