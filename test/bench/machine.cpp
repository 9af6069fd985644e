// Measures what this machine can do, for the benchmarks to compare with: the best read bandwidth over a set of access
// patterns, and the float32 fused-multiply-add peak. Prints one JSON object.
//   machine [threads] [megabytes per thread]
#include <immintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

double seconds(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

// Runs body(thread) on n threads at once and returns the wall time.
template <typename Body> double timed(unsigned n, const Body &body) {
    const auto start = Clock::now();
    std::vector<std::thread> threads;
    for (unsigned t = 1; t < n; ++t) {
        threads.emplace_back([&body, t] { body(t); });
    }
    body(0);
    for (std::thread &thread : threads) {
        thread.join();
    }
    return seconds(start);
}

volatile float sink;

// Sums `bytes` read as Streams interleaved sequential streams, prefetching `Ahead` bytes ahead in each (0: not).
template <int Streams, int Ahead> __attribute__((target("avx2,fma"))) void readAll(const char *data, size_t bytes) {
    const size_t part = bytes / Streams / 128 * 128;
    __m256 sums[Streams];
    for (int s = 0; s < Streams; ++s) {
        sums[s] = _mm256_setzero_ps();
    }
    for (size_t i = 0; i < part; i += 128) {
        for (int s = 0; s < Streams; ++s) {
            const auto *p = reinterpret_cast<const float *>(data + s * part + i);
            if (Ahead > 0) {
                _mm_prefetch(reinterpret_cast<const char *>(p) + Ahead, _MM_HINT_T0);
                _mm_prefetch(reinterpret_cast<const char *>(p) + Ahead + 64, _MM_HINT_T0);
            }
            sums[s] =
                _mm256_add_ps(sums[s], _mm256_add_ps(_mm256_add_ps(_mm256_load_ps(p), _mm256_load_ps(p + 8)),
                                                     _mm256_add_ps(_mm256_load_ps(p + 16), _mm256_load_ps(p + 24))));
        }
    }
    float total = 0.0F;
    for (int s = 0; s < Streams; ++s) {
        total += sums[s][0];
    }
    sink = total;
}

// 12 independent chains cover latency x throughput of every AVX2 core.
__attribute__((target("avx2,fma"))) void multiplyAdd(size_t rounds) {
    __m256 acc[12];
    for (int i = 0; i < 12; ++i) {
        acc[i] = _mm256_set1_ps(static_cast<float>(i));
    }
    __m256 a = _mm256_set1_ps(0.999F);
    const __m256 b = _mm256_set1_ps(0.5F);
    for (size_t r = 0; r < rounds; ++r) {
        __asm__ volatile("" : "+x"(a));  // not a constant: the loop must not be folded
        for (int i = 0; i < 12; ++i) {
            acc[i] = _mm256_fmadd_ps(acc[i], a, b);
        }
    }
    float total = 0.0F;
    for (int i = 0; i < 12; ++i) {
        total += acc[i][0];
    }
    sink = total;
}

struct Pattern {
    int streams;
    int ahead;
    void (*read)(const char *, size_t);
};

const Pattern kPatterns[] = {
    {1, 0, readAll<1, 0>},       {2, 0, readAll<2, 0>},       {4, 0, readAll<4, 0>},       {8, 0, readAll<8, 0>},
    {1, 512, readAll<1, 512>},   {2, 512, readAll<2, 512>},   {4, 512, readAll<4, 512>},   {8, 512, readAll<8, 512>},
    {1, 2048, readAll<1, 2048>}, {2, 2048, readAll<2, 2048>}, {4, 2048, readAll<4, 2048>}, {8, 2048, readAll<8, 2048>},
};

}  // namespace

int main(int argc, char **argv) {
    const unsigned threads = argc > 1 ? static_cast<unsigned>(std::atoi(argv[1])) : std::thread::hardware_concurrency();
    const size_t megabytes = argc > 2 ? static_cast<size_t>(std::atoi(argv[2])) : 512;
    if (threads == 0 || megabytes == 0 || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
        std::fprintf(stderr, "usage: machine [threads] [megabytes per thread]; needs AVX2 and FMA\n");
        return 2;
    }
    const size_t bytes = megabytes << 20;
    std::printf("{\"threads\": %u, \"reads\": [", threads);
    double best = 0.0;
    bool first = true;
    for (const bool huge : {false, true}) {
        std::vector<char *> buffers;
        for (unsigned t = 0; t < threads; ++t) {
            void *p = mmap(nullptr, bytes + (2 << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (p == MAP_FAILED) {
                std::perror("mmap");
                return 1;
            }
            auto *start = reinterpret_cast<char *>((reinterpret_cast<uintptr_t>(p) + (2 << 20) - 1) >> 21 << 21);
            madvise(start, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
            for (size_t i = 0; i < bytes; i += 4096) {
                start[i] = 1;
            }
            buffers.push_back(start);
        }
        for (const Pattern &pattern : kPatterns) {
            double rate = 0.0;
            for (int repeat = 0; repeat < 3; ++repeat) {
                const double time = timed(threads, [&](unsigned t) { pattern.read(buffers[t], bytes); });
                rate = std::max(rate, static_cast<double>(bytes) * threads / time / 1e9);
            }
            std::printf("%s{\"huge\": %s, \"streams\": %d, \"prefetch\": %d, \"gbps\": %.2f}", first ? "" : ", ",
                        huge ? "true" : "false", pattern.streams, pattern.ahead, rate);
            first = false;
            best = std::max(best, rate);
        }
        for (char *buffer : buffers) {
            munmap(buffer, bytes);
        }
    }
    double peak = 0.0;
    for (int repeat = 0; repeat < 5; ++repeat) {
        constexpr size_t kRounds = 20'000'000;
        const double time = timed(threads, [](unsigned) { multiplyAdd(kRounds); });
        peak = std::max(peak, 12.0 * 8 * 2 * kRounds * threads / time / 1e9);
    }
    std::printf("], \"bandwidth_gbps\": %.2f, \"fma_gflops\": %.1f}\n", best, peak);
    return 0;
}
