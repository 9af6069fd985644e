// The thread pool and how it divides work: everything once, in chunks of the right sizes, neighbours to one thread, and
// nothing left to a thread that sleeps.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "check.h"
#include "runtime/thread_pool.h"
#include "runtime/thread_ranges.h"

namespace {

struct Chunk {
    uint32_t begin, end;
    uint32_t size() const { return end - begin; }
};
using Chunks = std::vector<Chunk>;

struct Sizes {
    uint32_t count, least, most;
};

// Chunks are the whole of [0, count), each part once, and none but the last is shorter or longer than it may be.
bool cover(const std::vector<Chunks> &of_threads, const Sizes &sizes) {
    Chunks all;
    for (const Chunks &chunks : of_threads) {
        all.insert(all.end(), chunks.begin(), chunks.end());
    }
    std::sort(all.begin(), all.end(), [](const Chunk &a, const Chunk &b) { return a.begin < b.begin; });
    uint32_t at = 0;
    for (const Chunk &chunk : all) {
        const bool whole = chunk.size() >= sizes.least && chunk.size() % sizes.least == 0;
        if (chunk.begin != at || chunk.end <= at || chunk.size() > sizes.most || !(whole || chunk.end == sizes.count)) {
            return false;
        }
        at = chunk.end;
    }
    return at == sizes.count;
}

void testPool(uint32_t nthreads) {
    q3::ThreadPool pool(nthreads);
    CHECK(pool.size() == nthreads);
    std::vector<Sizes> cases = {{~0U, 1U << 24, 1U << 28}, {~0U - 5, 3U << 22, ~0U}, {nthreads * 5 + 1, 1, 1}};
    for (uint32_t i = 0; i < (nthreads < 64 ? 300 : 20); ++i) {
        const uint32_t least = 1 + i % 5;
        cases.push_back({1 + i * 7 % 90, least, least * (1 + i % 4)});  // every fourth time one size
    }
    for (const Sizes &sizes : cases) {
        for (const bool in_order : {false, true}) {
            std::vector<Chunks> chunks(nthreads);
            std::atomic<bool> bad_thread{false};
            const auto body = [&](uint32_t begin, uint32_t end, uint32_t thread) {
                if (thread < nthreads) {
                    chunks[thread].push_back({begin, end});
                } else {
                    bad_thread = true;
                }
            };
            if (in_order) {
                pool.parallelFor(sizes.count, sizes.least, body);
            } else {
                pool.parallelFor(sizes.count, sizes.least, sizes.most, body);
            }
            CHECK(!bad_thread.load());
            if (nthreads == 1 || sizes.count <= sizes.least) {
                CHECK(cover(chunks, {sizes.count, sizes.count, sizes.count}));
                continue;
            }
            CHECK(cover(chunks, {sizes.count, sizes.least, in_order ? sizes.least : sizes.most}));
            for (const Chunks &mine : chunks) {
                CHECK(!in_order || std::is_sorted(mine.begin(), mine.end(),
                                                  [](const Chunk &a, const Chunk &b) { return a.begin < b.begin; }));
            }
        }
        if (sizes.count == 90) {  // let the workers fall asleep
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
    }
    pool.parallelFor(0, 1, [](uint32_t, uint32_t, uint32_t) { CHECK(false); });
}

// Waits for other threads, but not for ever if there is an error.
template <typename Done> bool waitFor(const Done &done) {
    for (int i = 0; i < 20000 && !done(); ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return done();
}

// All threads begin at the front of a range of their own, and the ranges are nearly equal.
void testOwnRanges() {
    constexpr uint32_t kThreads = 5, kCount = 4 * 103 - 1, kLeast = 4;
    q3::ThreadPool pool(kThreads);
    std::vector<Chunks> chunks(kThreads);
    std::atomic<uint32_t> begun{0};
    pool.parallelFor(kCount, kLeast, 16, [&](uint32_t begin, uint32_t end, uint32_t thread) {
        chunks[thread].push_back({begin, end});
        ++begun;
        CHECK(waitFor([&] { return begun.load() >= kThreads; }));
    });
    CHECK(cover(chunks, {kCount, kLeast, 16}));
    for (uint32_t thread = 0; thread < kThreads; ++thread) {
        const uint32_t ideal = kCount * thread / kThreads;
        CHECK(!chunks[thread].empty() && chunks[thread][0].begin < ideal + 2 * kLeast &&
              chunks[thread][0].begin + 2 * kLeast > ideal && chunks[thread][0].size() == 16);
    }
}

// The thread that claims first sleeps until everything else is done: that costs the others nothing.
void testSleeper(uint32_t nthreads) {
    constexpr uint32_t kCount = 10000;
    q3::ThreadPool pool(nthreads);
    std::atomic<bool> sleeps{false};
    std::atomic<uint32_t> done{0};
    for (int round = 0; round < 3; ++round) {
        sleeps = false;
        done = 0;
        pool.parallelFor(kCount, 4, 64, [&](uint32_t begin, uint32_t end, uint32_t) {
            if (!sleeps.exchange(true)) {
                CHECK(waitFor([&] { return done.load() == kCount - (end - begin); }));
            }
            done += end - begin;
        });
        CHECK(done.load() == kCount);
    }
}

// Lets some threads claim, in turn, until nothing is left.
std::vector<Chunks> claimAll(q3::ThreadRanges &ranges, uint32_t nthreads, const Sizes &sizes,
                             const std::vector<uint32_t> &awake) {
    ranges.divide(sizes.count, sizes.least, sizes.most);
    std::vector<q3::ThreadRanges::Claims> claims;
    for (uint32_t i = 0; i < nthreads; ++i) {
        claims.emplace_back(ranges, i);
    }
    std::vector<Chunks> chunks(nthreads);
    for (bool some = true; some;) {
        some = false;
        for (const uint32_t thread : awake) {
            Chunk chunk{};
            if (claims[thread].next(chunk.begin, chunk.end)) {
                chunks[thread].push_back(chunk);
                some = true;
            }
        }
    }
    return chunks;
}

// A thread's own chunks are neighbours, from front to back, each half of what is left; others' come from back to front,
// range after range, beginning with the one that follows its own.
void testClaims() {
    constexpr uint32_t kThreads = 70, kLeast = 4, kRange = 40 * kLeast;
    const Sizes sizes{kThreads * kRange, kLeast, 13 * kLeast};
    q3::ThreadRanges ranges(kThreads);
    std::vector<uint32_t> everybody;
    for (uint32_t i = 0; i < kThreads; ++i) {
        everybody.push_back(i);
    }
    for (int turn = 0; turn < 3; ++turn) {
        const std::vector<Chunks> chunks = claimAll(ranges, kThreads, sizes, everybody);
        for (uint32_t i = 0; i < kThreads; ++i) {
            uint32_t at = i * kRange;
            CHECK(chunks[i].size() == 7);
            for (uint32_t n = 0; n < chunks[i].size(); ++n) {
                constexpr uint32_t kHalves[7] = {13, 13, 7, 3, 2, 1, 1};  // 40 (20 is too many), 27, 14, 7, 4, 2, 1
                CHECK(chunks[i][n].begin == at && chunks[i][n].size() == kHalves[n % 7] * kLeast);
                at = chunks[i][n].end;
            }
        }
        for (const uint32_t awake : {0U, 65U, 69U}) {
            const std::vector<Chunks> alone = claimAll(ranges, kThreads, sizes, {awake});
            CHECK(cover(alone, sizes));
            uint32_t range = awake;
            uint32_t at = range * kRange;
            for (const Chunk &chunk : alone[awake]) {
                CHECK((range == awake ? chunk.begin : chunk.end) == at);
                at = range == awake ? chunk.end : chunk.begin;
                if (at == (range + (range == awake ? 1 : 0)) * kRange) {  // nothing is left of it
                    range = (range + 1) % kThreads;
                    at = (range + 1) * kRange;
                }
            }
        }
    }
}

// Who helps takes much where few can help, and little where many do.
void testHelp() {
    const Sizes sizes{8 * 320, 1, 1000};
    q3::ThreadRanges many(8);
    for (const Chunks &chunks : claimAll(many, 8, sizes, {1, 2, 3, 4, 5, 6, 7})) {
        for (const Chunk &chunk : chunks) {
            CHECK(chunk.begin >= 320 || chunk.size() <= 320 / 16);
        }
    }
    q3::ThreadRanges two(2);
    const Chunks helper = claimAll(two, 2, {2 * 320, 1, 1000}, {1})[1];
    const auto stolen =
        std::find_if(helper.begin(), helper.end(), [](const Chunk &chunk) { return chunk.begin < 320; });
    CHECK(stolen != helper.end() && stolen->begin == 240 && stolen->end == 320);
}

}  // namespace

int main() {
    for (const uint32_t nthreads : {1U, 2U, 3U, 8U, 130U}) {
        testPool(nthreads);
    }
    testOwnRanges();
    testSleeper(2);
    testSleeper(7);
    testClaims();
    testHelp();
    return q3test::finish("test_thread_pool");
}
