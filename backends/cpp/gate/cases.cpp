// Operands of every kernel: small enough for the second-level cache, so that what is measured is the kernel.

#include "cases.hpp"

#include "case_list.hpp"

std::vector<Case> cases_of(const bittensor::KernelSet& kernels) {
  CaseList cases(kernels);
  add_code_cases(cases);
  add_linear_cases(cases);
  add_gradient_cases(cases);
  add_convolution_cases(cases);
  add_transformer_cases(cases);
  add_operation_cases(cases);
  return cases.take();
}
