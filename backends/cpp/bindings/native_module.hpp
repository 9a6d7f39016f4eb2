#pragma once

/// The parts of the Python module bittensor_cpp._native. Each defines the functions of its subject, in a file of its
/// name.

#include <pybind11/pybind11.h>

namespace bittensor::binding {

void bind_code_kernels(pybind11::module_& module);
void bind_linear_kernels(pybind11::module_& module);
void bind_layer_kernels(pybind11::module_& module);

}  // namespace bittensor::binding
