#pragma once

/// The cases of one instruction set as they are collected. Each subject adds its own, in the file *_cases.cpp of its
/// name.

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "bittensor/isa.hpp"
#include "bittensor/kernel_table.hpp"
#include "cases.hpp"

using Run = std::function<void()>;

/// A row with a tail. It is counted, but not timed: in tens of nanoseconds, where the code lies decides.
inline constexpr std::int64_t short_row = 100;
/// Rows that one call of an epilogue's case takes, one after the other, as the loop nests do.
inline constexpr std::int64_t epilogue_rows = 32;

inline std::string number(std::int64_t value) {
  return std::to_string(value);
}

inline double real(std::int64_t value) {
  return static_cast<double>(value);
}

/// Collects the cases of one instruction set.
class CaseList {
 public:
  explicit CaseList(const bittensor::KernelSet& kernels) : kernels_(kernels), isa_(bittensor::isa_name(kernels.isa)) {}

  const bittensor::KernelSet& kernels() const { return kernels_; }

  /// A case of a kernel; `bits` is 0 for kernels of all widths.
  void add(
      bittensor::KernelKind kind, int bits, const std::string& operands, double operations, double bytes,
      std::function<Run(Operands&)> make) {
    const bool timed = operands != "k" + number(short_row);
    const std::string kernel = table_name(kind, bits);
    found_.push_back({kernel, kernel + "/" + operands, isa_, operations, bytes, timed, std::move(make)});
  }

  /// A case of a whole operation.
  void add(
      const std::string& operation, const std::string& operands, double operations, double bytes,
      std::function<Run(Operands&)> make) {
    found_.push_back({"", operation + "_" + isa_ + "/" + operands, isa_, operations, bytes, true, std::move(make)});
  }

  std::vector<Case> take() { return std::move(found_); }

 private:
  std::string table_name(bittensor::KernelKind kind, int bits) const {
    return bittensor::kind_name(kind) + (bits == 0 ? "" : "_b" + number(bits)) + "_" + isa_;
  }

  const bittensor::KernelSet& kernels_;
  std::string isa_;
  std::vector<Case> found_;
};

void add_code_cases(CaseList& cases);
void add_linear_cases(CaseList& cases);
void add_gradient_cases(CaseList& cases);
void add_convolution_cases(CaseList& cases);
void add_transformer_cases(CaseList& cases);
void add_operation_cases(CaseList& cases);
