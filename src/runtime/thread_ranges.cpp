#include "runtime/thread_ranges.h"

#include <algorithm>

namespace q3 {
namespace {

constexpr uint32_t kWord = 64;  // ranges of an Open

}  // namespace

ThreadRanges::ThreadRanges(uint32_t nthreads)
    : nthreads_(nthreads), ranges_(nthreads), open_((nthreads + kWord - 1) / kWord) {}

void ThreadRanges::divide(uint32_t count, uint32_t least, uint32_t most) {
    const uint32_t units = count / least + (count % least != 0 ? 1 : 0);
    count_ = count;
    least_ = least;
    most_ = std::max(1U, most / least);
    base_ = units / nthreads_;
    extra_ = units % nthreads_;
    turn_ ^= 1U;
    const uint32_t filled = std::min(units, nthreads_);
    for (uint64_t i = 0; i < open_.size(); ++i) {
        const uint64_t here = std::clamp<uint64_t>(filled, i * kWord, (i + 1) * kWord) - i * kWord;
        open_[i].bits.store(here == kWord ? ~uint64_t{0} : (uint64_t{1} << here) - 1, std::memory_order_relaxed);
    }
}

uint32_t ThreadRanges::firstOpen(uint32_t from, uint32_t to) const {
    for (uint32_t at = from; at < to; at = (at / kWord + 1) * kWord) {
        const uint64_t bits = open_[at / kWord].bits.load(std::memory_order_relaxed) >> at % kWord;
        if (bits != 0) {
            return std::min(to, at + static_cast<uint32_t>(__builtin_ctzll(bits)));
        }
    }
    return to;
}

uint32_t ThreadRanges::countOpen() const {
    uint32_t count = 0;
    for (const Open &open : open_) {
        count += static_cast<uint32_t>(__builtin_popcountll(open.bits.load(std::memory_order_relaxed)));
    }
    return count;
}

// The owner takes half of what is left. Another thread takes half of a thread's share of all that is left, if the other
// ranges that are not empty have as much left as this one: much while few threads are done, so that their runs are long
// too, and little when many threads help with a single range.
bool ThreadRanges::take(uint32_t range, bool own, uint32_t &begin, uint32_t &end) {
    std::atomic<uint64_t> &taken = ranges_[range].taken[turn_];
    const uint32_t size = sizeOf(range);
    const uint64_t open = own ? nthreads_ : countOpen();
    uint64_t was = taken.load(std::memory_order_relaxed);
    while (true) {
        const auto front = static_cast<uint32_t>(was);
        const auto back = static_cast<uint32_t>(was >> 32);
        const uint32_t left = size - front - back;
        if (left == 0) {
            return false;
        }
        const uint64_t units = std::clamp<uint64_t>(left * open / (2 * uint64_t{nthreads_}), 1, most_);
        if (!taken.compare_exchange_weak(was, was + (own ? units : units << 32), std::memory_order_relaxed)) {
            continue;
        }
        if (units == left) {
            open_[range / kWord].bits.fetch_and(~(uint64_t{1} << range % kWord), std::memory_order_relaxed);
        }
        const uint32_t start = base_ * range + std::min(range, extra_);
        const uint64_t first = start + (own ? front : size - back - units);
        begin = static_cast<uint32_t>(first * least_);
        end = static_cast<uint32_t>(std::min<uint64_t>(count_, (first + units) * least_));
        return true;
    }
}

ThreadRanges::Claims::Claims(ThreadRanges &ranges, uint32_t thread) : ranges_(ranges), thread_(thread), at_(thread) {
    ranges_.ranges_[thread].taken[ranges_.turn_ ^ 1U].store(0, std::memory_order_relaxed);
}

bool ThreadRanges::Claims::next(uint32_t &begin, uint32_t &end) {
    do {
        if (ranges_.take(at_, at_ == thread_, begin, end)) {
            return true;
        }
    } while (moveOn());
    return false;
}

// Ranges never fill again, so one round suffices.
bool ThreadRanges::Claims::moveOn() {
    if (at_ >= thread_) {
        at_ = ranges_.firstOpen(at_ + 1, ranges_.nthreads_);
        if (at_ < ranges_.nthreads_) {
            return true;
        }
        at_ = ranges_.firstOpen(0, thread_);
    } else {
        at_ = ranges_.firstOpen(at_ + 1, thread_);
    }
    return at_ < thread_;
}

}  // namespace q3
