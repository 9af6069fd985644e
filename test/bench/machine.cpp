// Measures what this machine can do, for the benchmarks to compare with: the best read bandwidth over a set of access
// patterns, the float32 fused-multiply-add peak, and the peaks of the instructions that multiply bf16 and bytes, as far
// as the CPU has them. Prints one JSON object. With --repeat it then answers every line
// on standard input with a shorter one: the limits at that moment.
//   machine [--repeat] [threads] [megabytes per thread]
#include <cpuid.h>
#include <immintrin.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <utility>
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

// Independent chains that cover latency x throughput of every core: 12 of float32, 24 of the longer instructions.
constexpr int kChains = 12;
constexpr int kLongChains = 24;

__attribute__((target("avx2,fma"))) void multiplyAdd(size_t rounds) {
    __m256 acc[kChains];
    for (int i = 0; i < kChains; ++i) {
        acc[i] = _mm256_set1_ps(static_cast<float>(i));
    }
    __m256 a = _mm256_set1_ps(0.999F);
    const __m256 b = _mm256_set1_ps(0.5F);
    for (size_t r = 0; r < rounds; ++r) {
        __asm__ volatile("" : "+x"(a));  // not a constant: the loop must not be folded
        for (int i = 0; i < kChains; ++i) {
            acc[i] = _mm256_fmadd_ps(acc[i], a, b);
        }
    }
    float total = 0.0F;
    for (int i = 0; i < kChains; ++i) {
        total += acc[i][0];
    }
    sink = total;
}

__attribute__((target("avx512f"))) void multiplyAddWide(size_t rounds) {
    __m512 acc[kChains];
    for (int i = 0; i < kChains; ++i) {
        acc[i] = _mm512_set1_ps(static_cast<float>(i));
    }
    __m512 a = _mm512_set1_ps(0.999F);
    const __m512 b = _mm512_set1_ps(0.5F);
    for (size_t r = 0; r < rounds; ++r) {
        __asm__ volatile("" : "+v"(a));
        for (int i = 0; i < kChains; ++i) {
            acc[i] = _mm512_fmadd_ps(acc[i], a, b);
        }
    }
    float total = 0.0F;
    for (int i = 0; i < kChains; ++i) {
        total += acc[i][0];
    }
    sink = total;
}

__attribute__((target("avx512f,avx512bf16"))) void dotBf16(size_t rounds) {
    __m512 acc[kLongChains];
#pragma GCC unroll 24
    for (int i = 0; i < kLongChains; ++i) {
        acc[i] = _mm512_set1_ps(static_cast<float>(i));
    }
    __m512i a = _mm512_set1_epi32(0x3f803f80);  // ones
    for (size_t r = 0; r < rounds; ++r) {
        __asm__ volatile("" : "+v"(a));
#pragma GCC unroll 24
        for (int i = 0; i < kLongChains; ++i) {
            acc[i] = _mm512_dpbf16_ps(acc[i], reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(a));
        }
    }
    float total = 0.0F;
#pragma GCC unroll 24
    for (int i = 0; i < kLongChains; ++i) {
        total += _mm512_reduce_add_ps(acc[i]);
    }
    sink = total;
}

__attribute__((target("avx512f,avx512vnni"))) void dotBytes(size_t rounds) {
    __m512i acc[kLongChains];
#pragma GCC unroll 24
    for (int i = 0; i < kLongChains; ++i) {
        acc[i] = _mm512_set1_epi32(i);
    }
    __m512i a = _mm512_set1_epi32(0x01010101);
    for (size_t r = 0; r < rounds; ++r) {
        __asm__ volatile("" : "+v"(a));
#pragma GCC unroll 24
        for (int i = 0; i < kLongChains; ++i) {
            acc[i] = _mm512_dpbusd_epi32(acc[i], a, a);
        }
    }
    int total = 0;
#pragma GCC unroll 24
    for (int i = 0; i < kLongChains; ++i) {
        total += _mm512_reduce_add_epi32(acc[i]);
    }
    sink = static_cast<float>(total);
}

// Configures eight tiles of 16 rows of 64 bytes, whose contents do not matter.
__attribute__((target("amx-tile"))) void configureTiles() {
    struct alignas(64) {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    __asm__ volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
}

// Four products of two left and two right tiles.
__attribute__((target("amx-tile,amx-bf16"))) void tilesBf16(size_t rounds) {
    configureTiles();
    for (size_t r = 0; r < rounds; ++r) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
}

__attribute__((target("amx-tile,amx-int8"))) void tilesBytes(size_t rounds) {
    configureTiles();
    for (size_t r = 0; r < rounds; ++r) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_release();
}

// Whether Linux lets this process use tiles of a CPU whose leaf 7 has this bit in edx.
bool mayUseTiles(unsigned bit) {
    constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
    constexpr long kTileData = 18;
    unsigned eax = 0;
    unsigned ebx = 0;
    unsigned ecx = 0;
    unsigned edx = 0;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx >> bit & 1U) != 0 &&
           syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// An instruction's loop and the operations (multiplications and additions) of a round.
struct Peak {
    const char *name;
    bool (*has)();
    void (*run)(size_t rounds);
    double operations;
};

const Peak kPeaks[] = {
    {"fma_gflops", [] { return __builtin_cpu_supports("avx512f") != 0; }, multiplyAddWide, kChains * 16.0 * 2},
    {"fma_gflops", [] { return true; }, multiplyAdd, kChains * 8.0 * 2},
    {"bf16_gflops", [] { return __builtin_cpu_supports("avx512bf16") != 0; }, dotBf16, kLongChains * 32.0 * 2},
    {"int8_gops", [] { return __builtin_cpu_supports("avx512vnni") != 0; }, dotBytes, kLongChains * 64.0 * 2},
    {"amx_bf16_gflops", [] { return mayUseTiles(22); }, tilesBf16, 4 * 16.0 * 16 * 32 * 2},
    {"amx_int8_gops", [] { return mayUseTiles(25); }, tilesBytes, 4 * 16.0 * 16 * 64 * 2},
};

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

// Memory of one page size, a part for each thread, every page touched.
class Buffers {
public:
    Buffers(unsigned threads, size_t bytes, bool huge) : bytes_(bytes) {
        for (unsigned t = 0; t < threads; ++t) {
            void *p = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (p == MAP_FAILED) {
                std::perror("mmap");
                std::exit(1);
            }
            mapped_.push_back(p);
            auto *start = reinterpret_cast<char *>((reinterpret_cast<uintptr_t>(p) + kHugePage - 1) & ~(kHugePage - 1));
            madvise(start, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
            for (size_t i = 0; i < bytes; i += 4096) {
                start[i] = 1;
            }
            parts_.push_back(start);
        }
    }
    Buffers(const Buffers &) = delete;
    Buffers &operator=(const Buffers &) = delete;
    ~Buffers() {
        for (void *p : mapped_) {
            munmap(p, bytes_ + kHugePage);
        }
    }

    // GB/s of all threads that read their parts once.
    double rate(const Pattern &pattern) const {
        const auto threads = static_cast<unsigned>(parts_.size());
        const double time = timed(threads, [&](unsigned t) { pattern.read(parts_[t], bytes_); });
        return static_cast<double>(bytes_) * threads / time / 1e9;
    }

private:
    static constexpr size_t kHugePage = size_t{2} << 20;
    size_t bytes_;
    std::vector<void *> mapped_;
    std::vector<char *> parts_;
};

template <typename Measure> double best(int repeats, const Measure &measure) {
    double result = 0.0;
    for (int i = 0; i < repeats; ++i) {
        result = std::max(result, measure());
    }
    return result;
}

// GFLOP/s (or, of integers, GOP/s) of a peak's loop on all threads, in about `seconds` seconds.
double rateOf(const Peak &peak, unsigned threads, double seconds_wished) {
    size_t rounds = 20'000;
    double time = 0.0;
    while ((time = timed(threads, [&](unsigned) { peak.run(rounds); })) < seconds_wished / 4) {
        rounds *= time > 0.0 ? std::max<size_t>(2, static_cast<size_t>(seconds_wished / 2 / time)) : 2;
    }
    return peak.operations * static_cast<double>(rounds) * threads / time / 1e9;
}

struct Read {
    bool huge;
    const Pattern *pattern;
    double rate;
};

std::vector<Read> readAllPatterns(unsigned threads, size_t bytes) {
    std::vector<Read> reads;
    for (const bool huge : {false, true}) {
        const Buffers buffers(threads, bytes, huge);
        for (const Pattern &pattern : kPatterns) {
            reads.push_back({huge, &pattern, best(3, [&] { return buffers.rate(pattern); })});
        }
    }
    return reads;
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

template <typename Measure> double middle(int repeats, const Measure &measure) {
    std::vector<double> results;
    for (int i = 0; i < repeats; ++i) {
        results.push_back(measure());
    }
    return median(std::move(results));
}

// Prints the peaks that this CPU has, each name once, as members of a JSON object.
template <typename Measure> void printPeaks(const Measure &measure) {
    const char *last = "";
    for (const Peak &peak : kPeaks) {
        if (std::strcmp(peak.name, last) != 0 && peak.has()) {
            last = peak.name;
            std::printf(", \"%s\": %.1f", peak.name, measure(peak));
        }
    }
}

// Prints a line of figures for every line of input, in about a tenth of a second each. A shared machine's limits change
// within seconds, so whoever compares with them asks right before and right after. Figures are medians and not the best
// of some passes, because the program under test gets no better moments either.
void answer(unsigned threads, size_t bytes, std::vector<Read> reads) {
    const size_t part = std::min(bytes, size_t{256} << 20);
    const Buffers small(threads, part, false);
    const Buffers large(threads, part, true);
    const auto rate = [&](const Read &read) { return (read.huge ? large : small).rate(*read.pattern); };
    // The best pattern was perhaps only lucky, so the best six are measured in turn.
    constexpr size_t kCandidates = 6;
    std::sort(reads.begin(), reads.end(), [](const Read &a, const Read &b) { return a.rate > b.rate; });
    reads.resize(kCandidates);
    std::vector<double> samples[kCandidates];
    for (int round = 0; round < 9; ++round) {
        for (size_t i = 0; i < kCandidates; ++i) {
            samples[i].push_back(rate(reads[i]));
        }
    }
    size_t chosen = 0;
    double highest = 0.0;
    for (size_t i = 0; i < kCandidates; ++i) {
        const double rate_of_it = median(samples[i]);
        if (rate_of_it > highest) {
            highest = rate_of_it;
            chosen = i;
        }
    }
    const Read read = reads[chosen];
    while (std::getchar() != EOF) {  // a line is one character, its end
        std::printf("{\"bandwidth_gbps\": %.2f", middle(5, [&] { return rate(read); }));
        printPeaks([&](const Peak &peak) { return middle(3, [&] { return rateOf(peak, threads, 0.005); }); });
        std::printf("}\n");
        std::fflush(stdout);
    }
}

}  // namespace

int main(int argc, char **argv) {
    const bool repeat = argc > 1 && std::strcmp(argv[1], "--repeat") == 0;
    argc -= repeat ? 1 : 0;
    argv += repeat ? 1 : 0;
    const unsigned threads = argc > 1 ? static_cast<unsigned>(std::atoi(argv[1])) : std::thread::hardware_concurrency();
    const size_t megabytes = argc > 2 ? static_cast<size_t>(std::atoi(argv[2])) : 512;
    if (threads == 0 || megabytes == 0 || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
        std::fprintf(stderr, "usage: machine [--repeat] [threads] [megabytes per thread]; needs AVX2 and FMA\n");
        return 2;
    }
    const size_t bytes = megabytes << 20;
    const std::vector<Read> reads = readAllPatterns(threads, bytes);
    std::printf("{\"threads\": %u, \"reads\": [", threads);
    double bandwidth = 0.0;
    for (const Read &read : reads) {
        std::printf("%s{\"huge\": %s, \"streams\": %d, \"prefetch\": %d, \"gbps\": %.2f}",
                    &read == reads.data() ? "" : ", ", read.huge ? "true" : "false", read.pattern->streams,
                    read.pattern->ahead, read.rate);
        bandwidth = std::max(bandwidth, read.rate);
    }
    std::printf("], \"bandwidth_gbps\": %.2f", bandwidth);
    printPeaks([&](const Peak &peak) { return best(5, [&] { return rateOf(peak, threads, 0.05); }); });
    std::printf("}\n");
    std::fflush(stdout);
    if (repeat) {
        answer(threads, bytes, reads);
    }
    return 0;
}
