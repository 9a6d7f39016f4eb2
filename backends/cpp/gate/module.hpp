#pragma once

/// What the driver sees of a module: cases by number, through plain C, because two modules of different versions are
/// loaded into one process.

extern "C" {
/// One case. Strings live as long as the module.
struct GateCase {
  const char* name;    // "int8_linear_b4_avx2/m4-g128-symmetric": a kernel of the table, and its operands
  const char* kernel;  // the kernel, or "" for a whole operation
  const char* isa;
  double operations;  // see `Case`
  double bytes;
  int timed;
};

/// Number of cases on instruction sets that this machine can run.
using GateCount = int (*)();
using GateDescribe = GateCase (*)(int index);
/// Makes the operands of a case; "gate_run" works on those of the last one, "gate_clear" gives their memory back.
using GatePrepare = void (*)(int index);
using GateRun = void (*)();
/// Names of all kernels of the library that this machine can run, each followed by a newline.
using GateKernels = const char* (*)();
}
