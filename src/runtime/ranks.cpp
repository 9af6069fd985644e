#include "runtime/ranks.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <string>

#include "runtime/error.h"
#include "runtime/packed_file.h"
#include "runtime/thread_pool.h"
#include "runtime/worker_thread.h"

namespace q3 {
namespace {

// Polls for some 250 microseconds: ranks do equal work, so the others are rarely later than that.
constexpr uint32_t kSpinLimit = 10000;

// Elements per share are a multiple of this, so that no two ranks write to one cache line.
constexpr size_t kShareUnit = 64;

void pinThread(const std::vector<uint32_t> &cpus) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const uint32_t cpu : cpus) {
        if (cpu < CPU_SETSIZE) {
            CPU_SET(cpu, &set);
        }
    }
    if (CPU_COUNT(&set) > 0) {
        pthread_setaffinity_np(pthread_self(), sizeof set, &set);  // a failure costs speed only
    }
}

}  // namespace

void rethrowOfRank(uint32_t rank, uint32_t nranks, const std::exception_ptr &error) {
    if (nranks == 1) {
        std::rethrow_exception(error);
    }
    const std::string prefix = "rank " + std::to_string(rank) + " of " + std::to_string(nranks) + ": ";
    try {
        std::rethrow_exception(error);
    } catch (const Error &e) {
        if (e.status() == QWEN3_STATUS_CANCELLED) {
            throw;
        }
        throw Error(e.status(), prefix + e.what());
    } catch (const PackedFileError &) {  // no failure: the weights are packed instead
        throw;
    } catch (const std::bad_alloc &) {
        throw Error(QWEN3_STATUS_OUT_OF_MEMORY, prefix + "out of host memory");
    } catch (const std::exception &e) {
        throw Error(QWEN3_STATUS_INTERNAL_ERROR, prefix + e.what());
    }
}

// ---------------------------------------------------------------- RankBarrier

void RankBarrier::wait() {
    const uint32_t generation = generation_.load();
    if (aborted_.load()) {
        throw RankStopped{};
    }
    if (arrived_.fetch_add(1) + 1 == size_) {
        arrived_.store(0);
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            generation_.fetch_add(1);
        }
        changed_.notify_all();
        return;
    }
    for (uint32_t i = 0; spin_ && i < kSpinLimit && !passed(generation) && !aborted_.load(); ++i) {
        relaxCpu();
    }
    if (!passed(generation)) {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return passed(generation) || aborted_.load(); });
    }
    if (!passed(generation)) {
        throw RankStopped{};
    }
}

void RankBarrier::abort() noexcept {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        aborted_.store(true);
    }
    changed_.notify_all();
}

void RankBarrier::reset() noexcept {
    arrived_.store(0);
    aborted_.store(false);
}

// ---------------------------------------------------------------- RankGroup

RankGroup::RankGroup(uint32_t size, bool spin, std::vector<std::vector<uint32_t>> cpus, bool on_caller)
    : size_(size), on_caller_(size == 1 && on_caller), cpus_(std::move(cpus)), barrier_(size, spin), errors_(size) {
    if (on_caller_) {
        return;
    }
    workers_.reserve(size_);
    try {
        for (uint32_t rank = 0; rank < size_; ++rank) {
            workers_.push_back(startThread([this, rank] { workerLoop(rank); }));
        }
    } catch (...) {
        stop();
        throw;
    }
}

RankGroup::~RankGroup() {
    stop();
}

void RankGroup::stop() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        quit_ = true;
    }
    wake_.notify_all();
    for (std::thread &worker : workers_) {
        worker.join();
    }
    workers_.clear();
}

void RankGroup::run(const std::function<void(uint32_t)> &body) {
    if (on_caller_) {
        body(0);
        return;
    }
    {
        std::unique_lock<std::mutex> lock(mutex_);
        body_ = &body;
        pending_ = size_;
        ++job_;
        wake_.notify_all();
        done_.wait(lock, [&] { return pending_ == 0; });
    }
    barrier_.reset();
    std::vector<std::exception_ptr> errors(size_);
    errors.swap(errors_);
    for (uint32_t rank = 0; rank < size_; ++rank) {
        if (errors[rank] != nullptr) {
            rethrowOfRank(rank, size_, errors[rank]);
        }
    }
}

void RankGroup::workerLoop(uint32_t rank) {
    if (rank < cpus_.size() && !cpus_[rank].empty()) {
        pinThread(cpus_[rank]);
    }
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
        wake_.wait(lock, [&] { return quit_ || job_ != seen; });
        if (quit_) {
            return;
        }
        seen = job_;
        lock.unlock();
        std::exception_ptr error;
        try {
            (*body_)(rank);
        } catch (const RankStopped &) {  // another rank has the reason
        } catch (...) {
            error = std::current_exception();
            barrier_.abort();
        }
        lock.lock();
        errors_[rank] = error;
        if (--pending_ == 0) {
            done_.notify_one();
        }
    }
}

// ---------------------------------------------------------------- HostAllReduce

void HostAllReduce::run(uint32_t rank, void *data, size_t count, const Sum &sum) {
    buffers_[rank] = data;
    barrier_.wait();
    const size_t units = (count + kShareUnit - 1) / kShareUnit;
    const size_t begin = std::min(count, units * rank / buffers_.size() * kShareUnit);
    const size_t end = std::min(count, units * (rank + 1) / buffers_.size() * kShareUnit);
    if (begin < end) {
        sum(buffers_.data(), begin, end);
    }
    barrier_.wait();  // others have written into data; and nobody may change its own before all have read it
}

}  // namespace q3
