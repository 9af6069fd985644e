// A process that fork() made has a copy of the memory, but not of the threads, and possibly of locks that one of them
// held.
#pragma once

#include <sys/types.h>
#include <unistd.h>

namespace q3 {

// The process that something was made in.
class HomeProcess {
public:
    HomeProcess() noexcept : id_(getpid()) {}

    bool left() const noexcept { return getpid() != id_; }
    // Throws DEVICE_NOT_INITIALIZED and what to do when this is a fork of that process.
    void require() const;

private:
    pid_t id_;
};

}  // namespace q3
