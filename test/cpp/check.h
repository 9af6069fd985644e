// The few lines of test framework that the C++ tests need: CHECK counts and prints failures, finish() is main's result.
#pragma once

#include <cstdio>

namespace q3test {

inline int failures = 0;

inline void check(bool ok, const char *text, const char *file, int line) {
    if (!ok) {
        ++failures;
        std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, text);
    }
}

inline int finish(const char *name) {
    std::printf("%s: %s (%d failures)\n", name, failures == 0 ? "ok" : "FAILED", failures);
    return failures == 0 ? 0 : 1;
}

}  // namespace q3test

#define CHECK(condition) q3test::check(static_cast<bool>(condition), #condition, __FILE__, __LINE__)
