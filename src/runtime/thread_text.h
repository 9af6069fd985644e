// A text for each thread, kept without anything that ends the process when there is no memory.
//
// A thread-local buffer would be allocated by the dynamic loader when a thread first touches it, and the loader ends
// the process when it cannot: exactly when an error about missing memory has to be recorded. So a thread's text is
// allocated here, where that may fail.
#pragma once

#include <pthread.h>

#include <cstddef>

namespace q3 {

class ThreadText {
public:
    explicit ThreadText(size_t bytes) noexcept;
    ~ThreadText();
    ThreadText(const ThreadText &) = delete;
    ThreadText &operator=(const ThreadText &) = delete;

    // This thread's buffer of the given size, freed when the thread ends; null when there is no memory for it.
    char *buffer() const noexcept;
    // The same, or null if the thread has none yet.
    const char *existing() const noexcept;
    size_t bytes() const noexcept { return bytes_; }

private:
    const size_t bytes_;
    pthread_key_t key_{};
    const bool made_;
};

}  // namespace q3
