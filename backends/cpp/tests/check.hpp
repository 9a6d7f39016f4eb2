#pragma once

/// TEST, CHECK, CHECK_EQUAL, CHECK_THROWS and the program that runs them. A failed check ends its test; the exit status
/// is 1 if any failed. A test program is one file, which includes this once.

#include <concepts>
#include <cstdio>
#include <ranges>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace check {

inline std::vector<std::pair<const char*, void (*)()>> tests;
inline char context[256] = "";  // what is being checked, for messages; set by CONTEXT

[[noreturn]] inline void fail(const char* file, int line, const std::string& message) {
  throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + message);
}

template <class T>
std::string show(const T& value) {
  if constexpr (std::integral<T>) return std::to_string(value);  // bytes as numbers
  return (std::ostringstream() << value).str();
}

/// Compares values, or containers, whose first difference it shows.
template <class A, class B>
void equal(const char* file, int line, const std::string& what, const A& actual, const B& expected) {
  if constexpr (std::ranges::range<A> && !std::convertible_to<A, std::string>) {
    equal(file, line, what + ", size", std::ranges::size(actual), std::ranges::size(expected));
    for (std::size_t i = 0; i < std::ranges::size(actual); ++i) {
      if (actual[i] != expected[i]) equal(file, line, what + "[" + show(i) + "]", actual[i], expected[i]);
    }
  } else if (!(actual == expected)) {
    fail(file, line, what + ": got " + show(actual) + ", expected " + show(expected));
  }
}

/// `part` is a part of the message.
template <class Exception, class F>
void throws(const char* file, int line, const std::string& what, const std::string& part, const F& f) {
  std::string said = "nothing";
  try {
    f();
  } catch (const Exception& error) {
    said = error.what();
    if (said.find(part) != std::string::npos) return;
  }
  fail(file, line, what + ": expected an exception that says \"" + part + "\", got " + said);
}

}  // namespace check

#define TEST(title)                                                                   \
  static void title();                                                                \
  static const bool title##_added = (check::tests.emplace_back(#title, title), true); \
  static void title()
#define CONTEXT(...) static_cast<void>(std::snprintf(check::context, sizeof check::context, __VA_ARGS__))
#define CHECK(...) ((__VA_ARGS__) ? void() : check::fail(__FILE__, __LINE__, #__VA_ARGS__))
#define CHECK_EQUAL(actual, expected) check::equal(__FILE__, __LINE__, #actual, actual, expected)
#define CHECK_THROWS(exception, message, ...) \
  check::throws<exception>(__FILE__, __LINE__, #__VA_ARGS__, message, [&] { static_cast<void>(__VA_ARGS__); })

// NOLINTNEXTLINE(misc-definitions-in-headers): included once by each program
int main() {
  int status = 0;
  for (const auto& [name, run] : check::tests) {
    CONTEXT("%s", name);
    try {
      run();
    } catch (const std::exception& error) {
      std::printf("FAILED %s\n  %s\n  with: %s\n", name, error.what(), check::context);
      status = 1;
    }
  }
  std::printf("%zu tests\n", check::tests.size());
  return status;
}
