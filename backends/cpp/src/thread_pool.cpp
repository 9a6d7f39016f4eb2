#include "bittensor/thread_pool.hpp"

#include <unistd.h>

#include <condition_variable>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

namespace bittensor {

/// One loop at a time. A loop is published under the mutex with a new generation number; every worker takes its share
/// by its index and reports back; the caller takes share 0 and waits for the rest.
struct ThreadPool::State {
  std::mutex turn;  // held by the thread whose loop runs
  std::mutex mutex;
  std::condition_variable published;
  std::condition_variable finished;
  std::uint64_t generation = 0;
  bool stop = false;
  int pending = 0;
  std::int64_t count = 0;
  ParallelFor::Body body = nullptr;
  void* context = nullptr;
  std::vector<std::thread> workers;
  const pid_t process = getpid();

  State() = default;
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  /// Also runs when the pool's constructor fails half way, with the threads that it had started.
  ~State() {
    {
      const std::lock_guard lock(mutex);
      stop = true;
    }
    published.notify_all();
    for (std::thread& worker : workers) {
      if (worker.joinable()) worker.join();
    }
  }

  std::int64_t shares() const { return static_cast<std::int64_t>(workers.size()) + 1; }

  void run_share(std::int64_t share, std::int64_t total, ParallelFor::Body f, void* with) const {
    const std::int64_t begin = total * share / shares();
    const std::int64_t end = total * (share + 1) / shares();
    if (begin < end) f(begin, end, with);
  }

  void work(std::int64_t share) {
    std::uint64_t seen = 0;
    std::unique_lock lock(mutex);
    while (true) {
      published.wait(lock, [&] { return stop || generation != seen; });
      if (stop) return;
      seen = generation;
      const auto [total, f, with] = std::tuple(count, body, context);
      lock.unlock();
      run_share(share, total, f, with);
      lock.lock();
      if (--pending == 0) finished.notify_one();
    }
  }

  void run(std::int64_t total, ParallelFor::Body f, void* with) {
    const std::lock_guard my_turn(turn);
    {
      const std::lock_guard lock(mutex);
      count = total;
      body = f;
      context = with;
      pending = static_cast<int>(workers.size());
      ++generation;
    }
    published.notify_all();
    run_share(0, total, f, with);
    std::unique_lock lock(mutex);
    finished.wait(lock, [&] { return pending == 0; });
  }
};

ThreadPool::ThreadPool(int thread_count) : state_(std::make_unique<State>()) {
  if (thread_count < 1) {
    throw std::invalid_argument("thread_count: expected at least 1, got " + std::to_string(thread_count));
  }
  // Every worker reads the number of workers, so it is final before the first one starts.
  state_->workers.resize(static_cast<std::size_t>(thread_count - 1));
  for (std::size_t i = 0; i < state_->workers.size(); ++i) {
    state_->workers[i] = std::thread([state = state_.get(), i] { state->work(static_cast<std::int64_t>(i) + 1); });
  }
}

/// In another process there is nobody to join, and threads that wait no more hold the mutexes that they held.
ThreadPool::~ThreadPool() {
  if (state_->process != getpid()) std::ignore = state_.release();
}

ParallelFor ThreadPool::parallel_for() {
  const auto run = [](void* pool, std::int64_t count, ParallelFor::Body body, void* context) {
    static_cast<State*>(pool)->run(count, body, context);
  };
  return {run, state_.get(), static_cast<int>(state_->workers.size()) + 1};
}

}  // namespace bittensor
