// The ranks of a tensor parallel model: one worker thread each, a barrier at which they meet, and sums over host
// memory.
//
// A rank that fails ends the job for all: it aborts the barrier, so nobody waits for it. Nothing here knows the model.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace q3 {

// Thrown by a barrier to ranks that have to stop because another one failed.
struct RankStopped final : std::exception {
    const char *what() const noexcept override { return "another rank failed"; }
};

// Throws `error` again as an Error of the same status whose text begins with the rank, if there are several. CANCELLED
// keeps its text.
[[noreturn]] void rethrowOfRank(uint32_t rank, uint32_t nranks, const std::exception_ptr &error);

class RankBarrier {
public:
    // spin: poll before sleeping; only sensible when every rank's threads have CPUs of their own.
    RankBarrier(uint32_t size, bool spin) : size_(size), spin_(spin) {}

    // Returns when all ranks have come. Throws RankStopped when the barrier is or gets aborted before that.
    void wait();
    void abort() noexcept;
    // Makes an aborted barrier usable again; no rank may be inside.
    void reset() noexcept;

private:
    bool passed(uint32_t generation) const { return generation_.load() != generation; }

    const uint32_t size_;
    const bool spin_;
    std::atomic<uint32_t> arrived_{0};
    std::atomic<uint32_t> generation_{0};
    std::atomic<bool> aborted_{false};
    std::mutex mutex_;
    std::condition_variable changed_;
};

class RankGroup {
public:
    // cpus[rank]: the CPUs that the rank's thread, and every thread it starts, may use; empty, or no entry: any.
    // on_caller: one rank runs on the caller's thread; otherwise on one of its own, as several do, so that threads that
    // other libraries start for it block signals as ours do.
    RankGroup(uint32_t size, bool spin, std::vector<std::vector<uint32_t>> cpus = {}, bool on_caller = true);
    ~RankGroup();
    RankGroup(const RankGroup &) = delete;
    RankGroup &operator=(const RankGroup &) = delete;

    uint32_t size() const { return size_; }
    RankBarrier &barrier() { return barrier_; }

    // Calls body(rank) on every rank's thread at once (see on_caller) and returns when all have ended. When
    // bodies throw, the error of the lowest rank that failed by itself is thrown, see rethrowOfRank. One caller at a
    // time.
    void run(const std::function<void(uint32_t)> &body);

private:
    void workerLoop(uint32_t rank);
    void stop();

    const uint32_t size_;
    const bool on_caller_;  // there are no threads
    const std::vector<std::vector<uint32_t>> cpus_;
    RankBarrier barrier_;
    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    const std::function<void(uint32_t)> *body_ = nullptr;
    uint64_t job_ = 0;
    uint32_t pending_ = 0;
    bool quit_ = false;
    std::vector<std::exception_ptr> errors_;
};

// Sums over buffers of all ranks that are in one address space. Every rank adds up one part of the elements, in the
// order of the ranks, and hands it to all: the result is the same to the bit everywhere and every time.
class HostAllReduce {
public:
    HostAllReduce(RankBarrier &barrier, uint32_t size) : barrier_(barrier), buffers_(size) {}

    // sum(buffers, begin, end): elements [begin, end) of every buffers[rank] become their sum; must not throw.
    using Sum = std::function<void(void *const *buffers, size_t begin, size_t end)>;

    // Called by every rank with its own data [count]; complete on return. Throws RankStopped.
    void run(uint32_t rank, void *data, size_t count, const Sum &sum);
    uint32_t size() const { return static_cast<uint32_t>(buffers_.size()); }

private:
    RankBarrier &barrier_;
    std::vector<void *> buffers_;
};

}  // namespace q3
