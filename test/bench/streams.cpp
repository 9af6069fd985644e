// Times the kernels of few rows on weights that come from memory, all threads together: how fast decode and batches
// could read a model if products were all that they did.
//   bench_streams [threads] [k]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <vector>

#include "ops/cpu/host_buffer.h"
#include "ops/cpu/kernels/dispatch.h"
#include "ops/cpu/kernels/kernels.h"
#include "runtime/thread_pool.h"

using namespace q3;
using namespace q3::cpu;

namespace {

constexpr size_t kBytes = size_t{400} << 20;       // more than any L3 keeps
constexpr size_t kClaimBytes = size_t{512} << 10;  // as in ops/cpu/linear.cpp
constexpr uint32_t kRowCounts[] = {1, 2, 4, 6, 8, 12, 14, 16, 20, 24, 28};
constexpr uint32_t kMostRows = *std::rbegin(kRowCounts);
constexpr int kRuns = 7;

// Rows of activations in every form that kernels take: ones, as far as their form has such.
class Activations {
public:
    explicit Activations(uint32_t k)
        : k_(k), groups_((k + kGroup - 1) / kGroup), floats_(size_t{kMostRows} * k * sizeof(float)),
          rounded_(kMostRows * rowBytes()), codes_(kMostRows * groups_ * codeGroupBytes(kSplitCodes)),
          scales_(kMostRows * groups_, 1.0F), offsets_(kMostRows * groups_) {
        std::fill_n(floats_.as<float>(), size_t{kMostRows} * k, 1.0F);
        std::memset(codes_.as<char>(), 1, codes_.bytes());
        for (uint32_t r = 0; r < kMostRows; ++r) {
            kernels_.round[0](floats_.as<float>(), k, rounded_.as<char>() + r * rowBytes());
        }
    }

    // One call of the kernel for weights of `format` that come from memory; false: none takes so many rows.
    bool multiply(WeightFormat format, const char *panels, size_t panel_bytes, uint32_t npanels, uint32_t rows,
                  float *y) const {
        const size_t ldy = size_t{npanels} * kPanelRows;
        if (takesCodes(format)) {
            const bool streamed = !isAffine(format) && kernels_.quant_stream_rows > 0;
            if (rows > (streamed ? kernels_.quant_stream_rows : kernels_.tileRows(format))) {
                return false;
            }
            const QuantRows x{codes_.as<char>(), const_cast<float *>(scales_.data()),
                              const_cast<int32_t *>(offsets_.data()), rows,
                              codeGroupBytes(kernels_.codes[k8Bits][format].order)};
            kernels_.quantPanels(format, k8Bits, true)(panels, panel_bytes, npanels, groups_, x, rows, y, ldy, false);
            return true;
        }
        const bool streamed = format == kBf16 && kernels_.streamBf16 != nullptr;
        if (rows > (streamed ? kernels_.bf16_stream_rows : kernels_.rounded_tile_rows)) {
            return false;
        }
        const RoundedRows x{rounded_.as<char>(), rowBytes()};
        (streamed ? kernels_.streamBf16 : kernels_.multiplyRounded[0][format])(panels, panel_bytes, npanels, k_, x,
                                                                               rows, y, ldy, false);
        return true;
    }

private:
    size_t rowBytes() const { return roundedRowBytes(k_, 1, kernels_.pair_bytes) + 64; }

    const KernelTable &kernels_ = selectKernels();
    uint32_t k_, groups_;
    HostBuffer floats_, rounded_, codes_;
    std::vector<float> scales_;
    std::vector<int32_t> offsets_;
};

double seconds(std::chrono::steady_clock::time_point from) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - from).count();
}

}  // namespace

int main(int argc, char **argv) {
    const auto threads = static_cast<uint32_t>(argc > 1 ? std::atoi(argv[1]) : 2);
    const auto k = static_cast<uint32_t>(argc > 2 ? std::atoi(argv[2]) : 1024);
    if (threads == 0 || k == 0 || k % 256 != 0) {
        std::fprintf(stderr, "usage: bench_streams [threads] [k, a multiple of 256]\n");
        return 2;
    }
    ThreadPool pool(threads);
    const Activations x(k);
    std::printf("table %s, %u threads, k = %u: GB/s of weights, the median of %d runs\nrows   ", selectKernels().name,
                threads, k, kRuns);
    for (const uint32_t rows : kRowCounts) {
        std::printf(" %5u", rows);
    }
    const HostBuffer weights(kBytes);
    for (const WeightFormat format : {kBf16, kQ8, kQ4, kA8, kA4, kK4, kK6, kF8, kBf12}) {
        // Numbers near 1 as scales and weights; groups of bf12 whose weights are all in range have zeros in front.
        std::memset(weights.as<char>(), format == kBf12 ? 0 : 0x3c, kBytes);
        const size_t panel_bytes = panelBytes(format, k);
        const auto npanels = static_cast<uint32_t>(kBytes / panel_bytes);
        const auto most = std::clamp(static_cast<uint32_t>(kClaimBytes / panel_bytes) / 4 * 4, 4U, 64U);
        std::vector<std::vector<float>> sums(threads, std::vector<float>(size_t{kMostRows} * most * kPanelRows));
        std::printf("\n%-7s", infoOf(format).name);
        for (const uint32_t rows : kRowCounts) {
            std::vector<double> times;
            bool taken = true;
            for (int run = 0; run < kRuns && taken; ++run) {
                const auto start = std::chrono::steady_clock::now();
                pool.parallelFor(npanels, 4, most, [&](uint32_t begin, uint32_t end, uint32_t thread) {
                    for (uint32_t p = begin; p < end; p += most) {  // one thread gets all at once
                        const char *panels = weights.as<char>() + p * panel_bytes;
                        if (!x.multiply(format, panels, panel_bytes, std::min(most, end - p), rows,
                                        sums[thread].data())) {
                            taken = false;  // the same for all threads
                        }
                    }
                });
                times.push_back(seconds(start));
            }
            if (!taken) {
                std::printf("      ");
                continue;
            }
            std::nth_element(times.begin(), times.begin() + kRuns / 2, times.end());
            std::printf(" %5.1f", static_cast<double>(panel_bytes) * npanels / times[kRuns / 2] / 1e9);
        }
        std::fflush(stdout);
    }
    std::printf("\n");
    return 0;
}
