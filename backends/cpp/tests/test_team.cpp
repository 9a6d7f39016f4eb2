// Loops of a team: every index once, whatever threads come, and one program.

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <vector>

#include "bittensor/team.hpp"
#include "bittensor/thread_pool.hpp"
#include "check.hpp"

using bittensor::ParallelFor;
using bittensor::Team;

namespace {

/// Runs loops of many lengths and checks that each visits its indices once. The counters are plain: the end of a loop
/// orders what its threads wrote before what the program reads.
void check_program(const ParallelFor& parallel) {
  int programs = 0;
  Team::run(parallel, [&](const ParallelFor& loop) {
    ++programs;
    CHECK_EQUAL(loop.thread_count(), parallel.thread_count());
    std::vector<int> visits(1000, 0);
    int loops = 0;
    for (int repeat = 0; repeat < 20; ++repeat) {
      for (const std::int64_t count : {0, 1, 2, 3, 31, 32, 33, 100, 1000}) {
        loop(count, [&](std::int64_t begin, std::int64_t end) {
          for (std::int64_t i = begin; i < end; ++i) ++visits[static_cast<std::size_t>(i)];
        });
        loops += count == 1000 ? 1 : 0;
        const int of_first = visits[0];
        const auto first_of_other = std::ranges::find_if(
            visits.begin(), visits.begin() + count, [&](int visited) { return visited > of_first; });
        CHECK(first_of_other == visits.begin() + count);
      }
    }
    CHECK_EQUAL(visits[999], loops);
    CHECK_EQUAL(visits[0], 20 * 8);
  });
  CHECK_EQUAL(programs, 1);
}

/// A loop whose ranges run one after the other on the calling thread, from the last to the first.
ParallelFor one_after_the_other(int threads) {
  const auto run = [](void* count, std::int64_t total, ParallelFor::Body body, void* context) {
    const std::int64_t shares = std::min<std::int64_t>(*static_cast<int*>(count), total);
    for (std::int64_t i = shares; i-- > 0;) body(total * i / shares, total * (i + 1) / shares, context);
  };
  static int counts[8] = {0, 1, 2, 3, 4, 5, 6, 7};
  return {run, &counts[threads], threads};
}

}  // namespace

TEST(every_index_is_visited_once) {
  check_program({});
  for (const int threads : {1, 2, 3, 4, 7}) {
    CONTEXT("%d threads", threads);
    bittensor::ThreadPool pool(threads);
    for (int i = 0; i < 20; ++i) check_program(pool.parallel_for());
  }
}

TEST(no_threads_are_one) {
  for (const int threads : {0, -1}) {
    const auto run = [](void*, std::int64_t count, ParallelFor::Body body, void* context) { body(0, count, context); };
    const ParallelFor loop(run, nullptr, threads);
    CHECK_EQUAL(loop.thread_count(), 1);
    CHECK_EQUAL(ParallelFor(run, nullptr, nullptr, threads).thread_count(), 1);
    check_program(loop);
  }
}

TEST(threads_that_come_when_all_is_done_are_not_waited_for) {
  for (const int threads : {2, 3, 7}) {
    CONTEXT("%d threads", threads);
    check_program(one_after_the_other(threads));
  }
}

TEST(what_is_expected_changes_nothing) {
  bittensor::ThreadPool pool(2);
  const std::vector<char> memory(1 << 20);
  ParallelFor().expect(memory.data(), 100);
  pool.parallel_for().expect(memory.data(), 100);
  Team::run(pool.parallel_for(), [&](const ParallelFor& loop) {
    std::vector<int> visits(64, 0);
    for (const std::int64_t bytes : {0, 1, 63, 1000, 1 << 20}) {
      loop.expect(memory.data(), bytes);
      loop.expect(nullptr, 0);
      loop.expect(memory.data(), bytes);
      loop(64, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) ++visits[static_cast<std::size_t>(i)];
      });
    }
    CHECK_EQUAL(visits, std::vector<int>(64, 5));
  });
}

TEST(threads_share_a_long_loop) {
  bittensor::ThreadPool pool(2);
  Team::run(pool.parallel_for(), [](const ParallelFor& loop) {
    std::atomic<int> together{0};
    // Ends only if two ranges run at the same time.
    loop(2, [&](std::int64_t, std::int64_t) {
      ++together;
      while (together < 2) {
      }
    });
    CHECK_EQUAL(together.load(), 2);
  });
}

TEST(an_exception_of_the_program_is_the_callers) {
  bittensor::ThreadPool pool(3);
  for (const ParallelFor& parallel : {ParallelFor(), pool.parallel_for(), one_after_the_other(2)}) {
    CHECK_THROWS(std::runtime_error, "half way", Team::run(parallel, [](const ParallelFor& loop) {
                   loop(10, [](std::int64_t, std::int64_t) {});
                   throw std::runtime_error("half way");
                 }));
    check_program(parallel);
  }
}

TEST(an_exception_of_a_loop_is_the_programs) {
  for (const int threads : {1, 2, 4}) {
    CONTEXT("%d threads", threads);
    bittensor::ThreadPool pool(threads);
    int caught = 0;
    Team::run(pool.parallel_for(), [&](const ParallelFor& loop) {
      for (std::int64_t wrong = 0; wrong < 100; wrong += 7) {
        try {
          loop(100, [&](std::int64_t begin, std::int64_t end) {
            if (begin <= wrong && wrong < end) throw std::runtime_error("one chunk failed");
          });
        } catch (const std::runtime_error&) {
          ++caught;
        }
      }
    });
    CHECK_EQUAL(caught, 15);
    check_program(pool.parallel_for());
  }
}
