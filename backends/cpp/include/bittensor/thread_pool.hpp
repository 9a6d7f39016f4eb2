#pragma once

/// Threads for programs that have none of their own to lend. Inside torch, torch's threads are used instead.

#include <memory>

#include "bittensor/export.hpp"
#include "bittensor/parallel.hpp"

namespace bittensor {

/// A fixed number of threads that run `ParallelFor` loops; the thread that starts a loop works on it too.
/// Several threads may start loops at once: they take turns. A loop must not start another one on the same pool.
/// A process that fork() makes has a copy of the pool without its threads: a loop on it would never end. It can only be
/// destroyed there, which frees nothing.
class BITTENSOR_API ThreadPool {
 public:
  /// `thread_count` counts the calling thread. Throws std::invalid_argument if it is below 1, and
  /// std::system_error if the system gives no more threads.
  explicit ThreadPool(int thread_count);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  /// The loop to pass to the library. The pool must outlive it.
  ParallelFor parallel_for();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace bittensor
