// Loads modules of cases and runs them.
//
//   gate_driver list MODULE                                     every kernel, then every case
//   gate_driver count MODULE ISA...                             each case once, inside `measured`, for callgrind
//   gate_driver time MODULE ROUNDS ISA...                       seconds of each case, first decile
//   gate_driver compare FIRST SECOND ROUNDS PERCENT NAME...     nanoseconds of each case in both, sample by sample
//
// PERCENT, a multiple of 10, is a planted slowdown of the second, or of the first if it is negative: so many more calls
// are made in what counts as one. Lines are fields with tabs between them, as `benchmarks/gate` reads them.

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "module.hpp"

/// What callgrind counts: it begins and ends with this function, by name.
extern "C" __attribute__((noinline)) void measured(GateRun run) {
  run();
  __asm__ volatile("" : : : "memory");  // no tail call, which would leave before the work is done
}

namespace {

class Module {
 public:
  explicit Module(const std::string& path) : handle_(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) {
    if (handle_ == nullptr) throw std::runtime_error(dlerror());
    describe_ = symbol<GateDescribe>("gate_describe");
    prepare_ = symbol<GatePrepare>("gate_prepare");
    clear = symbol<GateRun>("gate_clear");
    run = symbol<GateRun>("gate_run");
    kernels = symbol<GateKernels>("gate_kernels")();
    const int count = symbol<GateCount>("gate_count")();
    for (int i = 0; i < count; ++i) {
      cases.push_back(describe_(i));
      indices_[cases.back().name] = i;
    }
  }

  void prepare(const std::string& name) const { prepare_(indices_.at(name)); }

  std::vector<GateCase> cases;
  const char* kernels;
  GateRun clear;
  GateRun run;

 private:
  template <class T>
  T symbol(const char* name) const {
    void* found = dlsym(handle_, name);
    if (found == nullptr) throw std::runtime_error(dlerror());
    return reinterpret_cast<T>(found);
  }

  void* handle_;
  GateDescribe describe_;
  GatePrepare prepare_;
  std::map<std::string, int> indices_;
};

double seconds(const Module& module, long calls) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  for (long i = 0; i < calls; ++i) module.run();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Calls that fill a sample of 50 microseconds, from `calls` on: short beside the time for which a busy system takes
/// the processor away, so that most samples are whole.
long calls_of_a_sample(const Module& module, long calls = 1) {
  constexpr double sample = 50e-6;
  while (seconds(module, calls) < sample) calls *= 2;
  return calls;
}

void list(const Module& module) {
  for (const char* name = module.kernels; *name != '\0'; ++name) {
    std::string line = "kernel\t";
    for (; *name != '\n'; ++name) line += *name;
    std::puts(line.c_str());
  }
  for (const GateCase& each : module.cases) {
    std::printf(
        "case\t%s\t%s\t%s\t%.0f\t%.0f\t%d\n", each.name, each.kernel, each.isa, each.operations, each.bytes,
        each.timed);
  }
}

bool is_among(const GateCase& each, const std::vector<std::string>& isas) {
  return std::ranges::find(isas, each.isa) != isas.end();
}

void count(const Module& module, const std::vector<std::string>& isas) {
  for (const GateCase& each : module.cases) {
    if (!is_among(each, isas)) continue;
    module.prepare(each.name);
    module.run();  // what happens once, happens now
    measured(module.run);
    std::puts(each.name);
  }
}

void time(const Module& module, int rounds, const std::vector<std::string>& isas) {
  for (const GateCase& each : module.cases) {
    if (!is_among(each, isas)) continue;
    module.prepare(each.name);
    module.run();
    const long calls = calls_of_a_sample(module);
    std::vector<double> taken;
    taken.reserve(static_cast<std::size_t>(rounds));
    for (int round = 0; round < rounds; ++round) taken.push_back(seconds(module, calls) / static_cast<double>(calls));
    std::ranges::sort(taken);
    std::printf("%s\t%.6g\n", each.name, taken[taken.size() / 10]);
    std::fflush(stdout);
  }
}

/// How often operands are made anew. A first-level cache finds its way by the address, and so the same work takes up to
/// a fifth longer at one address than at another; both modules get the places of each other in turn.
constexpr int placements = 8;

/// In each round first, second, second, first, or the other way round: what drifts, drifts for both. For each placement
/// two lines: the name, "first" or "second", nanoseconds of each sample.
void compare(
    const Module& first, const Module& second, int rounds, int percent, const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    long calls = 0;
    for (int placement = 0; placement < placements; ++placement) {
      const bool swapped = placement % 2 != 0;
      for (const Module* each : {&first, &second}) each->clear();
      for (const Module* each : {swapped ? &second : &first, swapped ? &first : &second}) {
        each->prepare(name);
        each->run();
      }
      if (calls == 0) calls = calls_of_a_sample(first, percent == 0 ? 1 : 10);
      const long more = calls * std::abs(percent) / 100;
      const std::array counts = {calls + (percent < 0 ? more : 0), calls + (percent > 0 ? more : 0)};
      std::array<std::vector<double>, 2> samples;
      for (int round = 0; round < rounds; ++round) {
        for (int turn = 0; turn < 4; ++turn) {
          const std::size_t which = (turn == 0 || turn == 3) == (round % 2 != 0) ? 1 : 0;
          const double taken = seconds(which == 0 ? first : second, counts[which]);
          samples[which].push_back(1e9 * taken / static_cast<double>(calls));
        }
      }
      for (const std::size_t which : {std::size_t{0}, std::size_t{1}}) {
        std::printf("%s\t%s", name.c_str(), which == 0 ? "first" : "second");
        for (const double sample : samples[which]) std::printf("\t%.3f", sample);
        std::puts("");
      }
    }
    std::fflush(stdout);
  }
}

int run(const std::vector<std::string>& words) {
  const auto from = [&](std::size_t index) { return std::vector<std::string>(words.begin() + index, words.end()); };
  const std::string command = words.size() > 2 ? words[1] : "";
  if (command == "list") {
    list(Module(words[2]));
  } else if (command == "count") {
    count(Module(words[2]), from(3));
  } else if (command == "time" && words.size() > 3) {
    time(Module(words[2]), std::stoi(words[3]), from(4));
  } else if (command == "compare" && words.size() > 5) {
    compare(Module(words[2]), Module(words[3]), std::stoi(words[4]), std::stoi(words[5]), from(6));
  } else {
    std::fputs("usage: gate_driver list|count|time|compare ...; see the head of driver.cpp\n", stderr);
    return 2;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gate_driver: %s\n", error.what());
    return 2;
  }
}
