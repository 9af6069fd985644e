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
        double seconds;
        // Whether the caller's thread did everything, because there is one chunk only.
        bool alone() const { return nthreads == 1 || count <= least; }
        // The size of the chunk that is claimed when `left` are left.
        uint32_t chunk(uint32_t left) const;
    };
    // The function that is called after every fork of every pool, by the forking thread; null, as at first: none.
    static void observe(void (*observer)(const Fork &fork));

    // Calls body(begin, end, thread) over [0, count) in chunks of at most `grain`, claimed in order by whoever is
    // free; returns when all are done. thread < size(). Runs inline when there is one chunk. body must not throw.
    // One caller at a time.
    template <typename Body> void parallelFor(uint32_t count, uint32_t grain, const Body &body) {
        parallelFor(count, grain, grain, body);
    }

    // Does the same in chunks that begin large, for work that gains from long runs, and end small, so that threads
    // finish together. A chunk is half of a thread's share of what is left, in multiples of `least` and at most `most`.
    template <typename Body> void parallelFor(uint32_t count, uint32_t least, uint32_t most, const Body &body) {
        if (count == 0) {
            return;
        }
        const Watch watch({nthreads_, count, least, most, 0.0});
        if (nthreads_ == 1 || count <= least) {
            body(0U, count, 0U);
            return;
        }
        run(
            count, least, most,
            [](const void *b, uint32_t begin, uint32_t end, uint32_t thread) {
                (*static_cast<const Body *>(b))(begin, end, thread);
            },
            &body);
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
    void run(uint32_t count, uint32_t least, uint32_t most, Invoke invoke, const void *body);
    void work(uint32_t thread);
    void workerLoop(uint32_t thread);
    void stop();

    uint32_t nthreads_;
    uint32_t spin_limit_;
    std::vector<std::thread> workers_;

    // The job; written by the caller before generation_ is advanced.
    Invoke invoke_ = nullptr;
    const void *body_ = nullptr;
    uint32_t count_ = 0;
    uint32_t least_ = 1, most_ = 1;
    alignas(64) std::atomic<uint32_t> next_{0};
    alignas(64) std::atomic<uint32_t> generation_{0};
    alignas(64) std::atomic<uint32_t> active_{0};  // workers still in the current job
    std::atomic<bool> quit_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<uint32_t> sleepers_hint_{0};
};

}  // namespace q3
