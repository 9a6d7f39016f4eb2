// The limits of the machine. Other Python threads may run meanwhile.

#include <cstdint>
#include <string>

#include "bittensor/isa.hpp"
#include "bittensor/limits.hpp"
#include "native_module.hpp"

namespace bittensor::binding {

namespace py = pybind11;

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

}  // namespace bittensor::binding
