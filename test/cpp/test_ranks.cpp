// The ranks of a tensor parallel model: placement, threads, barrier, sums, and KV blocks on several ranks.
#include <sched.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "engine/kv_cache.h"
#include "model/split.h"
#include "runtime/error.h"
#include "runtime/numa.h"
#include "runtime/ranks.h"

using namespace q3;
using Cpus = std::vector<uint32_t>;
using Nodes = std::vector<Cpus>;

namespace {

// What the function throws, as "status text"; "" if nothing.
template <typename Function> std::string thrown(const Function &function) {
    try {
        function();
    } catch (const Error &error) {
        return std::to_string(error.status()) + " " + error.what();
    }
    return "";
}

bool contains(const std::string &text, const std::string &part) {
    return text.find(part) != std::string::npos;
}

// ---------------------------------------------------------------- placement

void testCpuLists() {
    CHECK((parseCpuList("0-3,8,10-11\n") == Cpus{0, 1, 2, 3, 8, 10, 11}));
    CHECK((parseCpuList("5") == Cpus{5}));
    for (const char *bad : {"", "\n", "x", "1-", "3-1", "1,,2", "1-2-3", "-4", "1 2", "0-99999999"}) {
        CHECK(parseCpuList(bad).empty());
    }
}

void writeFile(const std::string &path, const std::string &text) {
    std::ofstream(path) << text;
}

void testNumaNodes() {
    char folder[] = "/tmp/q3-numa-XXXXXX";
    CHECK(mkdtemp(folder) != nullptr);
    const std::string root = folder;
    CHECK(numaNodes(root).empty());  // such as in a container without sysfs
    cpu_set_t set;
    CHECK(sched_getaffinity(0, sizeof set, &set) == 0);
    uint32_t mine = 0;
    while (!CPU_ISSET(mine, &set)) {
        ++mine;
    }
    uint32_t other = 0;
    while (CPU_ISSET(other, &set)) {
        ++other;
    }
    // Node 1 has only memory, node 3 a CPU that this process may not use, node 4 is offline.
    for (const int node : {0, 1, 2, 3, 4}) {
        CHECK(mkdir((root + "/node" + std::to_string(node)).c_str(), 0700) == 0);
    }
    writeFile(root + "/online", "0-3\n");
    writeFile(root + "/node0/cpulist", std::to_string(mine) + "\n");
    writeFile(root + "/node1/cpulist", "\n");
    writeFile(root + "/node2/cpulist", std::to_string(mine) + "," + std::to_string(other) + "\n");
    writeFile(root + "/node3/cpulist", std::to_string(other) + "\n");
    writeFile(root + "/node4/cpulist", std::to_string(mine) + "\n");
    CHECK((numaNodes(root) == Nodes{{mine}, {mine}}));
    CHECK(std::system(("rm -r " + root).c_str()) == 0);
}

void testPlaces() {
    const Nodes two = {{0, 1}, {2, 3}}, three = {{0}, {1}, {2}};
    CHECK(placeRanks(two, 1).empty());
    CHECK(placeRanks({{0, 1}}, 2).empty());
    CHECK(placeRanks({}, 2).empty());
    CHECK((placeRanks(two, 2) == two));
    CHECK((placeRanks(two, 4) == Nodes{{0, 1}, {0, 1}, {2, 3}, {2, 3}}));
    CHECK((placeRanks(three, 2) == Nodes{{0}, {1, 2}}));
    CHECK((placeRanks({{0}, {1}, {2}, {3}}, 2) == Nodes{{0, 1}, {2, 3}}));
    const auto shares = [](uint32_t total, uint32_t n) {
        Cpus result;
        for (uint32_t rank = 0; rank < n; ++rank) {
            result.push_back(threadsOfRank(total, rank, n));
        }
        return result;
    };
    CHECK((shares(8, 2) == Cpus{4, 4}));
    CHECK((shares(7, 3) == Cpus{3, 2, 2}));
    CHECK((shares(1, 3) == Cpus{1, 1, 1}));
}

void testRanksStayOnTheirCpus() {
    cpu_set_t before;
    CHECK(sched_getaffinity(0, sizeof before, &before) == 0);
    Cpus allowed;
    for (uint32_t cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
        if (CPU_ISSET(cpu, &before)) {
            allowed.push_back(cpu);
        }
    }
    const Nodes places = {{allowed.front()}, {allowed.back()}};
    RankGroup group(2, false, places);
    std::vector<int> right(4, 0);
    group.run([&](uint32_t rank) {
        const auto on = [&] {
            cpu_set_t set;
            return sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) == 1 &&
                   CPU_ISSET(places[rank][0], &set);
        };
        right[rank] = on() ? 1 : 0;
        std::thread([&] { right[2 + rank] = on() ? 1 : 0; }).join();  // as the threads of a pool made here
    });
    CHECK((right == std::vector<int>{1, 1, 1, 1}));
    cpu_set_t after;
    CHECK(sched_getaffinity(0, sizeof after, &after) == 0 && CPU_EQUAL(&before, &after));
}

// ---------------------------------------------------------------- threads

void testJobs(uint32_t size, bool spin) {
    RankGroup group(size, spin);
    CHECK(group.size() == size);
    for (int round = 0; round < 200; ++round) {
        std::vector<std::atomic<int>> calls(size);
        std::atomic<uint32_t> at_barrier{0};
        std::atomic<bool> early{false};
        group.run([&](uint32_t rank) {
            ++calls[rank];
            for (uint32_t i = 1; i <= 3; ++i) {
                ++at_barrier;
                group.barrier().wait();
                early = early || at_barrier.load() < i * size;
                group.barrier().wait();
            }
        });
        CHECK(std::all_of(calls.begin(), calls.end(), [](const std::atomic<int> &n) { return n == 1; }));
        CHECK(!early.load());
    }
}

void testFailuresStopAllRanks(bool spin) {
    RankGroup group(3, spin);
    for (int round = 0; round < 100; ++round) {
        const auto failing = static_cast<uint32_t>(round % 3);
        const int meetings = round % 5;
        std::atomic<int> ended{0};
        const std::string text = thrown([&] {
            group.run([&](uint32_t rank) {
                for (int i = 0; i < meetings; ++i) {
                    group.barrier().wait();
                }
                if (rank == failing) {
                    fail(QWEN3_STATUS_OUT_OF_MEMORY, "no memory for %d", 7);
                }
                group.barrier().wait();  // never complete
                ++ended;
            });
        });
        CHECK(text == std::to_string(QWEN3_STATUS_OUT_OF_MEMORY) + " rank " + std::to_string(failing) +
                          " of 3: no memory for 7");
        CHECK(ended == 0);
        // The next job finds everything as new.
        group.run([&](uint32_t) {
            group.barrier().wait();
            ++ended;
        });
        CHECK(ended == 3);
    }
    // Several failures: the lowest rank's. A cancelled step is no rank's fault.
    CHECK(contains(thrown([&] {
                       group.run([](uint32_t rank) {
                           if (rank > 0) {
                               fail(QWEN3_STATUS_INTERNAL_ERROR, "problem %u", rank);
                           }
                       });
                   }),
                   "rank 1 of 3: problem 1"));
    CHECK(thrown([&] { group.run([](uint32_t) { fail(QWEN3_STATUS_CANCELLED, "stop"); }); }) ==
          std::to_string(QWEN3_STATUS_CANCELLED) + " stop");
    CHECK(contains(thrown([&] { group.run([](uint32_t rank) { rank == 2 ? throw std::bad_alloc() : void(); }); }),
                   "rank 2 of 3: out of host memory"));
    RankGroup single(1, false);
    CHECK(
        contains(thrown([&] { single.run([](uint32_t) { fail(QWEN3_STATUS_BAD_PARAM, "as it is"); }); }), "as it is"));
}

// ---------------------------------------------------------------- sums

// The sum of floats depends on the order, which must be that of the ranks wherever it is done.
void testSums(uint32_t size) {
    RankGroup group(size, false);
    HostAllReduce reduce(group.barrier(), size);
    CHECK(reduce.size() == size);
    for (const size_t count : {1, 2, 63, 64, 65, 1000, 4099}) {
        std::vector<std::vector<float>> data(size, std::vector<float>(count));
        std::vector<float> expected(count);
        for (size_t i = 0; i < count; ++i) {
            for (uint32_t rank = 0; rank < size; ++rank) {
                data[rank][i] = (rank % 2 == 0 ? 1.0F : -1.0F) * static_cast<float>((i * 7919 + rank * 104729) % 1000) *
                                (rank == 1 ? 1e6F : 1e-3F);
                expected[i] = rank == 0 ? data[0][i] : expected[i] + data[rank][i];
            }
        }
        group.run([&](uint32_t rank) {
            reduce.run(rank, data[rank].data(), count, [&](void *const *buffers, size_t begin, size_t end) {
                for (size_t i = begin; i < end; ++i) {
                    float total = static_cast<float *>(buffers[0])[i];
                    for (uint32_t r = 1; r < size; ++r) {
                        total += static_cast<float *>(buffers[r])[i];
                    }
                    for (uint32_t r = 0; r < size; ++r) {
                        static_cast<float *>(buffers[r])[i] = total;
                    }
                }
            });
            for (float &value : data[rank]) {  // at once: nobody else may still be reading
                value = -value;
            }
        });
        for (float &value : expected) {
            value = -value;
        }
        CHECK(std::all_of(data.begin(), data.end(), [&](const std::vector<float> &d) { return d == expected; }));
    }
}

// ---------------------------------------------------------------- cutting

ModelConfig config(uint32_t nh, uint32_t nkvh, uint32_t di, uint32_t dvoc) {
    ModelConfig c{};
    c.nlayer = 1;
    c.d = 64;
    c.dh = 16;
    c.nh = nh;
    c.nkvh = nkvh;
    c.di = di;
    c.dvoc = dvoc;
    return c;
}

// Every part of the model is on exactly one rank, but for KV heads that several need.
void testSplits() {
    struct Case {
        uint32_t nh, nkvh, di, dvoc, nranks;
    };
    for (const Case &t :
         {Case{8, 2, 320, 640, 1}, Case{8, 2, 320, 640, 2}, Case{8, 2, 320, 640, 4}, Case{8, 2, 320, 640, 8},
          Case{6, 3, 200, 517, 3}, Case{6, 2, 96, 256, 6}, Case{8, 8, 8, 9, 8}, Case{64, 8, 25600, 151936, 8}}) {
        const ModelConfig model = config(t.nh, t.nkvh, t.di, t.dvoc);
        const std::vector<RankSlice> slices = splitModel(model, t.nranks);
        uint32_t head = 0, inner = 0, vocab = 0;
        std::map<uint32_t, uint32_t> owners;  // of a KV head
        for (const RankSlice &s : slices) {
            CHECK(s.first_head == head && s.first_inner == inner && s.first_vocab == vocab);
            CHECK(s.config.nh > 0 && s.config.nkvh > 0 && s.config.di > 0 && s.config.dvoc > 0);
            CHECK(s.config.nh % s.config.nkvh == 0);
            for (uint32_t h = 0; h < s.config.nh; ++h) {  // each query head finds its own KV head
                CHECK((s.first_head + h) / model.group() == s.first_kv_head + h / s.config.group());
            }
            for (uint32_t h = 0; h < s.config.nkvh; ++h) {
                ++owners[s.first_kv_head + h];
            }
            head += s.config.nh;
            inner += s.config.di;
            vocab += s.config.dvoc;
        }
        CHECK(head == t.nh && inner == t.di && vocab == t.dvoc && owners.size() == t.nkvh);
        for (const auto &owner : owners) {
            CHECK(owner.second == std::max(1U, t.nranks / t.nkvh));
        }
    }
    // The published models: whole groups of 32 and panels of 16 everywhere.
    for (const RankSlice &s : splitModel(config(32, 8, 9728, 151936), 8)) {
        CHECK(s.config.di == 9728 / 8 && s.first_inner % 32 == 0 && s.first_vocab % 32 == 0);
    }
    const std::string text = thrown([] { splitModel(config(24, 6, 96, 256), 5); });
    CHECK(text == std::to_string(QWEN3_STATUS_BAD_PARAM) +
                      " ndev is 5: a model of nh 24 and nkvh 6 heads can be cut over 1, 2, 3, 6, 12 or 24 devices");
    CHECK(contains(thrown([] { splitModel(config(8, 8, 4, 256), 8); }), "1, 2 or 4 devices"));
}

// ---------------------------------------------------------------- KV blocks

class FailingMemory final : public BlockMemory {
public:
    void *allocate(size_t bytes) override {
        if (fail_in > 0 && --fail_in == 0) {
            fail(QWEN3_STATUS_OUT_OF_MEMORY, "injected");
        }
        ++live;
        return std::calloc(1, bytes);
    }
    void release(void *block) noexcept override {
        --live;
        std::free(block);
    }
    void copy(void *dst, const void *src, size_t bytes) override {
        if (fail_copy) {
            fail(QWEN3_STATUS_INTERNAL_ERROR, "copy");
        }
        std::copy_n(static_cast<const char *>(src), bytes, static_cast<char *>(dst));
    }
    int live = 0;
    int fail_in = 0;
    bool fail_copy = false;
};

void testBlocksOfRanks() {
    constexpr uint32_t kTokens = 4;
    FailingMemory memories[2];
    {
        BlockPool pool({&memories[0], &memories[1]}, kTokens * sizeof(int), kTokens, 200);
        CHECK(pool.ranks() == 2 && pool.blockBytes() == 32 && pool.blocksLeft() == 6);
        KVCache cache(pool);
        const auto value = [](const KVCache &c, uint32_t rank, uint32_t pos) -> int & {
            return static_cast<int *>(c.blocks(rank)[pos / kTokens])[pos % kTokens];
        };
        const auto append = [&](KVCache &c, uint32_t pos, uint32_t count, int base) {
            c.prepare(pos, count);
            for (uint32_t i = pos; i < pos + count; ++i) {
                value(c, 0, i) = base + static_cast<int>(i);
                value(c, 1, i) = -base - static_cast<int>(i);
            }
            c.setLength(pos + count);
            c.truncate(pos + count);
        };
        append(cache, 0, 6, 100);
        CHECK(pool.usedBytes() == 64 && memories[0].live == 2 && memories[1].live == 2);
        const auto copy = cache.duplicate(6);
        CHECK(pool.usedBytes() == 64);
        // A rank that cannot copy, or has no memory: nothing has changed anywhere, and the error names it.
        memories[1].fail_copy = true;
        CHECK(contains(thrown([&] { copy->prepare(6, 1); }), "rank 1 of 2: copy"));
        memories[1].fail_copy = false;
        memories[1].fail_in = 1;
        CHECK(contains(thrown([&] { copy->prepare(6, 7); }), "rank 1 of 2: injected"));
        CHECK(pool.usedBytes() == 64 && memories[0].live == memories[1].live);
        append(*copy, 6, 2, 200);  // copied on both ranks before it is written
        CHECK(pool.usedBytes() == 96);
        for (uint32_t i = 0; i < 6; ++i) {
            CHECK(value(cache, 0, i) == 100 + int(i) && value(cache, 1, i) == -100 - int(i));
            CHECK(value(*copy, 0, i) == 100 + int(i) && value(*copy, 1, i) == -100 - int(i));
        }
        CHECK(value(*copy, 0, 7) == 207 && value(*copy, 1, 7) == -207);
        CHECK(cache.blocks(0)[0] == copy->blocks(0)[0] && cache.blocks(1)[0] == copy->blocks(1)[0]);
        CHECK(cache.blocks(0)[1] != copy->blocks(0)[1] && cache.blocks(1)[1] != copy->blocks(1)[1]);
    }
    CHECK(memories[0].live == 0 && memories[1].live == 0);
}

}  // namespace

int main() {
    testCpuLists();
    testNumaNodes();
    testPlaces();
    testRanksStayOnTheirCpus();
    for (const uint32_t size : {1U, 2U, 5U}) {
        testJobs(size, false);
        testSums(size);
    }
    testJobs(2, true);
    testFailuresStopAllRanks(false);
    testFailuresStopAllRanks(true);
    testSplits();
    testBlocksOfRanks();
    return q3test::finish("test_ranks");
}
