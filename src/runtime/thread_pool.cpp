#include "runtime/thread_pool.h"

#include <algorithm>

#include "runtime/cpu_info.h"
#include "runtime/worker_thread.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace q3 {
namespace {

// Polls for about 50 microseconds: longer than the gap between two ops of a step, shorter than anybody notices.
constexpr uint32_t kSpinLimit = 2000;

}  // namespace

void relaxCpu() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

ThreadPool::ThreadPool(uint32_t nthreads) : nthreads_(std::max(1U, nthreads)), ranges_(nthreads_) {
    // With more threads than CPUs, polling steals the time of the thread that is waited for.
    spin_limit_ = nthreads_ <= availableCpus() ? kSpinLimit : 0;
    workers_.reserve(nthreads_ - 1);
    try {
        for (uint32_t i = 1; i < nthreads_; ++i) {
            workers_.push_back(startThread([this, i] { workerLoop(i); }));
        }
    } catch (...) {
        stop();
        throw;
    }
}

ThreadPool::~ThreadPool() {
    stop();
}

void ThreadPool::stop() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        quit_.store(true);
        generation_.fetch_add(1);
    }
    wake_.notify_all();
    for (std::thread &worker : workers_) {
        worker.join();
    }
    workers_.clear();
}

void ThreadPool::run(const Fork &fork, Invoke invoke, const void *body) {
    invoke_ = invoke;
    body_ = body;
    in_order_ = fork.in_order;
    if (in_order_) {
        count_ = fork.count;
        grain_ = fork.least;
        next_.store(0, std::memory_order_relaxed);
    } else {
        ranges_.divide(fork.count, fork.least, fork.most);
    }
    active_.store(nthreads_ - 1, std::memory_order_relaxed);
    generation_.fetch_add(1);  // seq_cst: ordered against the sleeper's hint below
    if (sleepers_hint_.load() > 0) {
        // Taking the lock makes sure that a worker about to sleep either sees the new generation or gets the notify.
        {
            const std::lock_guard<std::mutex> lock(mutex_);
        }
        wake_.notify_all();
    }
    work(0);
    for (uint32_t spin = 0; active_.load(std::memory_order_acquire) != 0; ++spin) {
        if (spin < spin_limit_) {
            relaxCpu();
        } else {
            std::this_thread::yield();
        }
    }
}

std::atomic<void (*)(const ThreadPool::Fork &fork)> ThreadPool::observer_{nullptr};

void ThreadPool::observe(void (*observer)(const Fork &fork)) {
    observer_.store(observer);
}

void ThreadPool::Watch::begin(const Fork &fork) {
    watching_ = true;
    fork_ = fork;
    start_ = std::chrono::steady_clock::now();
}

void ThreadPool::Watch::end() {
    fork_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    if (const auto observer = observer_.load()) {
        observer(fork_);
    }
}

void ThreadPool::work(uint32_t thread) {
    if (in_order_) {
        workInOrder(thread);
        return;
    }
    ThreadRanges::Claims claims(ranges_, thread);
    for (uint32_t begin = 0, end = 0; claims.next(begin, end);) {
        invoke_(body_, begin, end, thread);
    }
}

void ThreadPool::workInOrder(uint32_t thread) {
    uint32_t begin = next_.load(std::memory_order_relaxed);
    while (begin < count_) {
        const uint32_t size = std::min(count_ - begin, grain_);
        if (next_.compare_exchange_weak(begin, begin + size, std::memory_order_relaxed)) {
            invoke_(body_, begin, begin + size, thread);
            begin = next_.load(std::memory_order_relaxed);
        }
    }
}

void ThreadPool::workerLoop(uint32_t thread) {
    uint32_t seen = 0;
    while (true) {
        uint32_t spin = 0;
        while (generation_.load() == seen) {
            if (spin < spin_limit_) {
                ++spin;
                relaxCpu();
                continue;
            }
            std::unique_lock<std::mutex> lock(mutex_);
            sleepers_hint_.fetch_add(1);
            wake_.wait(lock, [&] { return generation_.load() != seen; });
            sleepers_hint_.fetch_sub(1);
        }
        if (quit_.load()) {
            return;
        }
        ++seen;  // a job cannot end before every worker has joined it, so none is ever skipped
        work(thread);
        active_.fetch_sub(1, std::memory_order_release);
    }
}

}  // namespace q3
