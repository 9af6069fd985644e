// A fork-join pool for short, memory-bound loops: a decode step forks a few hundred times, so a fork must cost about a
// microsecond when workers are awake, and must not burn CPUs or collapse when they are not.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "runtime/thread_ranges.h"

namespace q3 {

constexpr uint32_t kMaxThreads = 1024;

// Tells the CPU that this is a polling loop.
void relaxCpu();

class ThreadPool {
public:
    explicit ThreadPool(uint32_t nthreads);
    ~ThreadPool();
    ThreadPool(const ThreadPool &) = delete;
    ThreadPool &operator=(const ThreadPool &) = delete;

    uint32_t size() const { return nthreads_; }

    // One parallelFor, for tools that study how work divides.
    struct Fork {
        uint32_t nthreads, count, least, most;
        bool in_order;  // chunks of `least` are claimed in order; else from ThreadRanges
        double seconds;
        // Whether the caller's thread did everything, because there is one chunk only.
        bool alone() const { return nthreads == 1 || count <= least; }
    };
    // The function that is called after every fork of every pool, by the forking thread; null, as at first: none.
    static void observe(void (*observer)(const Fork &fork));

    // Calls body(begin, end, thread) over [0, count) in chunks of at most `grain`, claimed in order by whoever is
    // free; returns when all are done. thread < size(). Runs inline when there is one chunk. body must not throw.
    // One caller at a time.
    template <typename Body> void parallelFor(uint32_t count, uint32_t grain, const Body &body) {
        fork({nthreads_, count, grain, grain, true, 0.0}, body);
    }

    // Does the same in chunks of `least` to `most`, of which each thread claims neighbours as far as it can
    // (ThreadRanges), for work that gains from long runs through memory.
    template <typename Body> void parallelFor(uint32_t count, uint32_t least, uint32_t most, const Body &body) {
        fork({nthreads_, count, least, most, false, 0.0}, body);
    }

private:
    // Tells the observer about a fork when it ends.
    class Watch {
    public:
        explicit Watch(const Fork &fork) {
            if (observer_.load(std::memory_order_relaxed) != nullptr) {
                begin(fork);
            }
        }
        ~Watch() {
            if (watching_) {
                end();
            }
        }
        Watch(const Watch &) = delete;
        Watch &operator=(const Watch &) = delete;

    private:
        void begin(const Fork &fork);
        void end();
        bool watching_ = false;
        Fork fork_;
        std::chrono::steady_clock::time_point start_;
    };
    static std::atomic<void (*)(const Fork &fork)> observer_;

    using Invoke = void (*)(const void *body, uint32_t begin, uint32_t end, uint32_t thread);
    template <typename Body> void fork(const Fork &fork, const Body &body) {
        if (fork.count == 0) {
            return;
        }
        const Watch watch(fork);
        if (fork.alone()) {
            body(0U, fork.count, 0U);
            return;
        }
        run(
            fork,
            [](const void *b, uint32_t begin, uint32_t end, uint32_t thread) {
                (*static_cast<const Body *>(b))(begin, end, thread);
            },
            &body);
    }
    void run(const Fork &fork, Invoke invoke, const void *body);
    void work(uint32_t thread);
    void workInOrder(uint32_t thread);
    void workerLoop(uint32_t thread);
    void stop();

    uint32_t nthreads_;
    uint32_t spin_limit_;
    std::vector<std::thread> workers_;

    // The job; written by the caller before generation_ is advanced. It fits a cache line, with that of ranges_.
    alignas(64) Invoke invoke_ = nullptr;
    const void *body_ = nullptr;
    bool in_order_ = true;
    uint32_t count_ = 0;
    uint32_t grain_ = 1;
    ThreadRanges ranges_;
    alignas(64) std::atomic<uint32_t> next_{0};
    alignas(64) std::atomic<uint32_t> generation_{0};
    alignas(64) std::atomic<uint32_t> active_{0};  // workers still in the current job
    std::atomic<bool> quit_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<uint32_t> sleepers_hint_{0};
};

}  // namespace q3
