// Numbers divided over threads so that each walks through a run of neighbours of its own, as memory likes it, and helps
// the others when it is done.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace q3 {

// [0, count) is cut into as many ranges as there are threads, nearly equal, in units of `least`. A thread claims from
// the front of its own range: half of what is left, at most `most`, so that chunks begin long and end short. When its
// range is empty it takes from the back of others', those that follow its own first. So a thread that is late or slow
// costs at most the chunk that it has claimed.
class ThreadRanges {
public:
    explicit ThreadRanges(uint32_t nthreads);

    // Divides anew. Only when no thread claims any more, and then all threads claim.
    void divide(uint32_t count, uint32_t least, uint32_t most);

    // One thread's claims after one divide().
    class Claims {
    public:
        Claims(ThreadRanges &ranges, uint32_t thread);
        // Claims [begin, end); false: everything is claimed.
        bool next(uint32_t &begin, uint32_t &end);

    private:
        // Goes on to the next range that may have something left; false: there is none.
        bool moveOn();

        ThreadRanges &ranges_;
        uint32_t thread_;
        uint32_t at_;  // whose range it claims from
    };

private:
    // How many units of a range are taken: from its front in the lower 32 bits, from its back in the upper ones. The
    // owner zeroes one of the two while the other is in use, so that nobody has to touch all ranges before a fork.
    struct alignas(64) Range {
        std::atomic<uint64_t> taken[2] = {{0}, {0}};
    };
    // A bit for each of 64 ranges that may have something left: who looks for some does not look at each.
    struct alignas(64) Open {
        std::atomic<uint64_t> bits{0};
    };

    uint32_t sizeOf(uint32_t range) const { return base_ + (range < extra_ ? 1 : 0); }
    bool take(uint32_t range, bool own, uint32_t &begin, uint32_t &end);
    uint32_t firstOpen(uint32_t from, uint32_t to) const;
    uint32_t countOpen() const;

    uint32_t count_ = 0, least_ = 1;
    // In units of least_: what every range has, how many ranges have one more, and how long a chunk may be.
    uint32_t base_ = 0, extra_ = 0, most_ = 1;
    uint32_t turn_ = 0;  // which of Range::taken is in use
    uint32_t nthreads_;
    std::vector<Range> ranges_;
    std::vector<Open> open_;
};

}  // namespace q3
