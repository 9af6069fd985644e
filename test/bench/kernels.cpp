// Times single kernels of the best table of this CPU: weights per second of the row kernels, from L1/L2 and from
// memory.
//   bench_kernels [k]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "ops/cpu/buffer.h"
#include "ops/cpu/dispatch.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/pack.h"

using namespace q3;
using namespace q3::cpu;

namespace {

constexpr uint32_t kRows = 6;  // no table has smaller tiles

using Clock = std::chrono::steady_clock;

// Shortest of many runs: what the kernel can do when nothing disturbs it.
template <typename Body> double shortest(const Body &body) {
    double best = 1e9;
    for (int run = 0; run < 25; ++run) {
        const auto start = Clock::now();
        body();
        best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
    }
    return best;
}

// A layer of [rows, k] with values as trained weights have them.
std::unique_ptr<CpuLinear> randomLayer(uint32_t rows, uint32_t k, int32_t dtype, ThreadPool &pool) {
    std::vector<float> values(size_t{rows} * k);
    uint32_t state = 1;
    for (float &value : values) {
        float sum = -6.0F;  // twelve uniforms make a normal
        for (int i = 0; i < 12; ++i) {
            state = state * 1664525U + 1013904223U;
            sum += static_cast<float>(state >> 8) * 0x1.0p-24F;
        }
        value = 0.02F * sum;
    }
    const LinearSource source{"bench", 0, QWEN3_DTYPE_F32, {{values.data(), rows, k, k, 1, nullptr}}};
    return packPanels(source, dtype, false, pool);
}

}  // namespace

int main(int argc, char **argv) {
    const auto k = static_cast<uint32_t>(argc > 1 ? std::atoi(argv[1]) : 1024);
    if (k == 0) {
        std::fprintf(stderr, "usage: bench_kernels [k]\n");
        return 2;
    }
    const Kernels &kernels = selectKernels();
    ThreadPool pool(1);
    std::printf("table %s, one thread, k = %u: G weights/s (GB/s)\n", kernels.name, k);
    std::printf("%-6s %-8s %14s %14s %14s %14s\n", "format", "from", "1 row", "2 rows", "4 rows", "6 rows");
    for (const int32_t dtype : {QWEN3_DTYPE_BF16, QWEN3_DTYPE_BF12, QWEN3_DTYPE_INT8, QWEN3_DTYPE_INT4}) {
        for (const uint32_t npanels : {4U, 2048U}) {
            const auto layer = randomLayer(npanels * kPanelRows, k, dtype, pool);
            const std::vector<float> x(size_t{kRows} * k, 0.01F);
            std::vector<float> y(size_t{kRows} * npanels * kPanelRows);
            const size_t groups = layer->groups();
            std::vector<int16_t> codes(kRows * groups * kGroup);
            std::vector<float> scales(kRows * groups);
            std::vector<int32_t> offsets(kRows * groups);
            const QuantRows quant{codes.data(), scales.data(), offsets.data(), groups * kGroup, groups};
            for (uint32_t r = 0; r < kRows; ++r) {
                kernels.quantize(x.data() + size_t{r} * k, k, quant, r);
            }
            const int repeats = npanels == 4 ? 200 : 1;
            std::printf("%-6s %-8s", dtypeName(dtype), npanels == 4 ? "cache" : "memory");
            for (const uint32_t rows : {1U, 2U, 4U, 6U}) {
                const double time = shortest([&] {
                    for (int i = 0; i < repeats; ++i) {
                        const size_t ldy = size_t{npanels} * kPanelRows;
                        if (isQuantised(layer->type)) {
                            kernels.gemv_quant[layer->type - kExactTypes](layer->panel(0), layer->panel_bytes, npanels,
                                                                          layer->groups(), quant, rows, y.data(), ldy);
                        } else {
                            kernels.gemv[layer->type](layer->panel(0), layer->panel_bytes, npanels, k, x.data(), k,
                                                      rows, y.data(), ldy);
                        }
                    }
                });
                const double weights = static_cast<double>(layer->out) * k * repeats;
                const double bytes = static_cast<double>(layer->panel_bytes) * npanels * repeats;
                std::printf("  %5.1f (%5.1f)", weights / time / 1e9, bytes / time / 1e9);
            }
            std::printf("\n");
        }
    }
    return 0;
}
