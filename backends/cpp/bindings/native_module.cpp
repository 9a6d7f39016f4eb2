// The Python module bittensor_cpp._native: CPU features, the kernel table, every kernel by name on plain buffers, and
// the limits of the machine. Nothing here knows torch.

#include "native_module.hpp"

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <utility>

#include "bittensor/isa.hpp"
#include "bittensor/kernel_table.hpp"
#include "bittensor/limits.hpp"

namespace py = pybind11;

namespace {

py::list kernel_table() {
  py::list rows;
  for (const bittensor::KernelEntry& entry : bittensor::kernel_table()) {
    py::dict row;
    row["name"] = entry.name;
    row["kind"] = bittensor::kind_name(entry.kind);
    row["bits"] = entry.bits;
    row["isa"] = bittensor::isa_name(entry.isa);
    row["supported"] = entry.supported;
    row["calls"] = entry.calls;
    rows.append(row);
  }
  return rows;
}

// Other Python threads may run meanwhile.
void bind_machine_limits(py::module_& module) {
  using bittensor::Sampling;
  constexpr Sampling defaults{};
  const auto released = py::call_guard<py::gil_scoped_release>();
  module.def(
      "int8_peak",
      [](const std::string& isa, int threads, double seconds, int repeats) {
        return bittensor::int8_peak(bittensor::parse_isa(isa), {threads, seconds, repeats});
      },
      py::arg("isa"), py::arg("threads") = 1, py::arg("seconds") = defaults.seconds,
      py::arg("repeats") = defaults.repeats, released,
      "Products of bytes summed in 32 bits, operations per second; a multiply-add counts as two.");
  module.def(
      "fma_peak",
      [](const std::string& isa, int threads, double seconds, int repeats) {
        return bittensor::fma_peak(bittensor::parse_isa(isa), {threads, seconds, repeats});
      },
      py::arg("isa"), py::arg("threads") = 1, py::arg("seconds") = defaults.seconds,
      py::arg("repeats") = defaults.repeats, released,
      "float32 multiply-adds, operations per second; a multiply-add counts as two.");
  module.def(
      "read_bandwidth",
      [](std::int64_t bytes, int threads, double seconds, int repeats) {
        return bittensor::read_bandwidth(bytes, {threads, seconds, repeats});
      },
      py::arg("size"), py::arg("threads") = 1, py::arg("seconds") = defaults.seconds,
      py::arg("repeats") = defaults.repeats, released,
      "Bytes per second read from a buffer of `size` bytes that the threads divide.");
  module.def(
      "copy_bandwidth",
      [](std::int64_t bytes, int threads, double seconds, int repeats) {
        return bittensor::copy_bandwidth(bytes, {threads, seconds, repeats});
      },
      py::arg("size"), py::arg("threads") = 1, py::arg("seconds") = defaults.seconds,
      py::arg("repeats") = defaults.repeats, released,
      "Bytes per second that memcpy copies between buffers of `size` bytes; a byte read and written counts once.");
}

}  // namespace

// What the library shares between threads is constant, atomic or a thread's own: it needs no lock of the interpreter.
PYBIND11_MODULE(_native, module, py::mod_gil_not_used()) {
  module.doc() = "CPU features, the kernel table and every kernel of libbittensor by name.";
  module.attr("__version__") = BITTENSOR_VERSION;

  module.def(
      "known_isas",
      [] {
        py::list names;
        for (const bittensor::Isa isa : bittensor::known_isas()) names.append(bittensor::isa_name(isa));
        return names;
      },
      "Names of all instruction sets there are kernels for, weakest first.");
  module.def(
      "supported_isas",
      [] {
        py::list names;
        for (const bittensor::Isa isa : bittensor::known_isas()) {
          if (bittensor::is_supported(isa)) names.append(bittensor::isa_name(isa));
        }
        return names;
      },
      "Names of the instruction sets this machine can run, weakest first.");
  module.def(
      "choose_isa",
      [] {
        const bittensor::IsaChoice choice = bittensor::choose_isa();
        return std::pair<std::string, std::string>(bittensor::isa_name(choice.isa), choice.reason);
      },
      "The instruction set in use and the reason; ValueError if BITTENSOR_ISA is unknown or unsupported.");
  module.def(
      "cpu_features",
      [] {
        py::dict features;
        for (const auto& [name, present] : bittensor::cpu_features()) features[py::str(name)] = present;
        return features;
      },
      "Processor features by name.");
  module.def("kernel_table", &kernel_table, "Every kernel: name, kind, bits, isa, supported, calls.");

  bittensor::binding::bind_code_kernels(module);
  bittensor::binding::bind_linear_kernels(module);
  bittensor::binding::bind_layer_kernels(module);
  bind_machine_limits(module);
}
