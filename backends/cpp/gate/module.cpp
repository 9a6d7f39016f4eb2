// The cases of this module, as the driver sees them.

#include "module.hpp"

#include <memory>

#include "bittensor/export.hpp"
#include "bittensor/kernel_table.hpp"
#include "cases.hpp"

namespace {

const std::vector<Case>& all_cases() {
  static const std::vector<Case> cases = [] {
    std::vector<Case> found;
    for (const bittensor::Isa isa : bittensor::known_isas()) {
      if (!bittensor::is_supported(isa)) continue;
      for (Case& each : cases_of(bittensor::kernels_for(isa))) found.push_back(std::move(each));
    }
    return found;
  }();
  return cases;
}

std::unique_ptr<Operands> operands;
std::function<void()> run;

}  // namespace

extern "C" {

BITTENSOR_API int gate_count() {
  return static_cast<int>(all_cases().size());
}

BITTENSOR_API GateCase gate_describe(int index) {
  const Case& each = all_cases().at(static_cast<std::size_t>(index));
  return {each.name.c_str(), each.kernel.c_str(), each.isa.c_str(), each.operations, each.bytes, each.timed ? 1 : 0};
}

BITTENSOR_API void gate_clear() {
  run = nullptr;
  operands.reset();
}

BITTENSOR_API void gate_prepare(int index) {
  gate_clear();
  operands = std::make_unique<Operands>();
  run = all_cases().at(static_cast<std::size_t>(index)).make(*operands);
}

BITTENSOR_API void gate_run() {
  run();
}

BITTENSOR_API const char* gate_kernels() {
  static const std::string names = [] {
    std::string list;
    for (const bittensor::KernelEntry& each : bittensor::kernel_table()) {
      if (each.supported) list += each.name + "\n";
    }
    return list;
  }();
  return names.c_str();
}
}
