#pragma once

/// Many short loops in a row, on threads that stay awake between them.

#include <memory>
#include <type_traits>

#include "bittensor/export.hpp"
#include "bittensor/parallel.hpp"

namespace bittensor {

/// A program that starts many loops wakes its threads once: waking one takes longer than a short loop.
class BITTENSOR_API Team {
 public:
  /// Calls `program(loop)` once, on one thread of `parallel`, and returns when it has returned; an exception of the
  /// program is thrown again. The other threads of `parallel` wait, busily, for the loops that the program starts by
  /// `loop`, a `ParallelFor`. Where they come late or never, the program's thread does their share: it never waits for
  /// a thread that has not begun.
  template <class F>
  static void run(const ParallelFor& parallel, F&& program) {
    using Function = std::remove_reference_t<F>;
    run_program(
        parallel, [](const ParallelFor& loop, void* context) { (*static_cast<Function*>(context))(loop); },
        const_cast<std::remove_const_t<Function>*>(std::addressof(program)));
  }

 private:
  using Program = void (*)(const ParallelFor& loop, void* context);

  static void run_program(const ParallelFor& parallel, Program program, void* context);
};

}  // namespace bittensor
