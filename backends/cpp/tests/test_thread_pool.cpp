// Loops on a pool: every index once, whatever the number of threads and of loops.

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <stdexcept>
#include <thread>

#include "bittensor/thread_pool.hpp"
#include "check.hpp"

namespace {

/// Runs a loop and checks that its ranges cover [0, count) once. The counters are plain: the end of a loop orders
/// what its threads wrote before what the caller reads.
void check_coverage(const bittensor::ParallelFor& loop, std::int64_t count) {
  std::vector<int> visits(static_cast<std::size_t>(count), 0);
  std::atomic<std::int64_t> ranges{0};
  loop(count, [&](std::int64_t begin, std::int64_t end) {
    ranges += begin < end ? 1 : loop.thread_count() + 1;  // no range is empty
    for (std::int64_t i = begin; i < end; ++i) ++visits[static_cast<std::size_t>(i)];
  });
  CHECK(std::ranges::all_of(visits, [](int visited) { return visited == 1; }));
  CHECK(ranges <= loop.thread_count());
  CHECK(ranges >= (count > 0 ? 1 : 0));
}

}  // namespace

TEST(without_threads_everything_runs_on_the_caller) {
  const bittensor::ParallelFor loop;
  CHECK_EQUAL(loop.thread_count(), 1);
  for (const std::int64_t count : {0, 1, 2, 1000}) check_coverage(loop, count);
  const std::thread::id caller = std::this_thread::get_id();
  loop(5, [&](std::int64_t, std::int64_t) { CHECK(std::this_thread::get_id() == caller); });
}

TEST(ranges_cover_every_count) {
  for (const int threads : {1, 2, 3, 4, 7}) {
    bittensor::ThreadPool pool(threads);
    CHECK_EQUAL(pool.parallel_for().thread_count(), threads);
    for (std::int64_t count = 0; count < 40; ++count) {
      CONTEXT("%d threads, count %ld", threads, long{count});
      check_coverage(pool.parallel_for(), count);
    }
    check_coverage(pool.parallel_for(), 100'003);
  }
}

TEST(a_negative_count_runs_nothing) {
  bittensor::ThreadPool pool(2);
  bool ran = false;
  pool.parallel_for()(-3, [&](std::int64_t, std::int64_t) { ran = true; });
  CHECK(!ran);
}

TEST(many_short_loops) {
  bittensor::ThreadPool pool(3);
  const bittensor::ParallelFor loop = pool.parallel_for();
  std::vector<std::int64_t> sums(3, 0);
  for (int i = 0; i < 2000; ++i) {
    loop(3, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t k = begin; k < end; ++k) sums[static_cast<std::size_t>(k)] += k + 1;
    });
  }
  CHECK_EQUAL(sums, std::vector<std::int64_t>({2000, 4000, 6000}));
}

TEST(several_threads_share_a_pool) {
  bittensor::ThreadPool pool(3);
  constexpr int loops = 300;
  constexpr std::int64_t count = 50;
  std::vector<std::vector<int>> visits(4, std::vector<int>(count, 0));
  {
    std::vector<std::jthread> callers;
    callers.reserve(visits.size());
    for (std::vector<int>& mine : visits) {
      callers.emplace_back([&] {
        for (int i = 0; i < loops; ++i) {
          pool.parallel_for()(count, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t k = begin; k < end; ++k) ++mine[static_cast<std::size_t>(k)];
          });
        }
      });
    }
  }
  for (const std::vector<int>& mine : visits) CHECK_EQUAL(mine, std::vector<int>(count, loops));
}

TEST(an_exception_of_a_range_reaches_the_caller) {
  for (const int threads : {1, 2, 4}) {
    bittensor::ThreadPool pool(threads);
    for (std::int64_t wrong = 0; wrong < 8; ++wrong) {
      CONTEXT("%d threads, range of %ld", threads, long{wrong});
      const auto fails = [&](std::int64_t begin, std::int64_t end) {
        if (begin <= wrong && wrong < end) throw std::runtime_error("one range failed");
      };
      CHECK_THROWS(std::runtime_error, "one range failed", pool.parallel_for()(8, fails));
      check_coverage(pool.parallel_for(), 100);  // the pool goes on
    }
    const auto all_fail = [](std::int64_t, std::int64_t) { throw std::runtime_error("every range failed"); };
    CHECK_THROWS(std::runtime_error, "every range failed", pool.parallel_for()(8, all_fail));
  }
}

TEST(pools_come_and_go) {
  for (int i = 0; i < 50; ++i) {
    bittensor::ThreadPool pool(1 + i % 4);
    if (i % 2 == 0) check_coverage(pool.parallel_for(), i);
  }
}

TEST(a_forked_process_may_destroy_the_pool) {
  auto pool = std::make_unique<bittensor::ThreadPool>(3);
  check_coverage(pool->parallel_for(), 100);
  const pid_t child = fork();
  if (child == 0) {
    alarm(10);  // in place of a hang
    pool.reset();
    _exit(0);
  }
  int status = -1;
  CHECK_EQUAL(waitpid(child, &status, 0), child);
  CHECK_EQUAL(status, 0);
  check_coverage(pool->parallel_for(), 100);
}

TEST(a_pool_needs_a_thread) {
  CHECK_THROWS(std::invalid_argument, "expected at least 1, got 0", bittensor::ThreadPool(0));
  CHECK_THROWS(std::invalid_argument, "got -2", bittensor::ThreadPool(-2));
}
