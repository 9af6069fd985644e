// Times single kernels of the best table of this CPU: weights per second of the row kernels, from L1/L2 and from
// memory; the tiles of prefill; the sampler.
//   bench_kernels [k]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "engine/sampler.h"
#include "ops/cpu/host_buffer.h"
#include "ops/cpu/kernels/dispatch.h"
#include "ops/cpu/kernels/kernels.h"
#include "ops/cpu/pack/pack.h"

using namespace q3;
using namespace q3::cpu;

namespace {

constexpr uint32_t kRows = kMaxTileRows;

// Rows to time: as in decode, in small batches, and full tiles.
std::vector<uint32_t> someRows(const KernelTable &kernels) {
    std::vector<uint32_t> rows{1, 2, 4, 6};
    for (const uint32_t tile : {kernels.tile_rows, kernels.quant_tile_rows}) {
        if (tile > rows.back()) {
            rows.push_back(tile);
        }
    }
    return rows;
}

void printRows(const KernelTable &kernels, int width) {
    for (const uint32_t rows : someRows(kernels)) {
        std::printf(" %*u %s", width - 5, rows, rows == 1 ? "row " : "rows");
    }
    std::printf("\n");
}

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

std::vector<float> normals(size_t n, float deviation) {
    std::vector<float> values(n);
    uint32_t state = 1;
    for (float &value : values) {
        float sum = -6.0F;  // twelve uniforms make a normal
        for (int i = 0; i < 12; ++i) {
            state = state * 1664525U + 1013904223U;
            sum += static_cast<float>(state >> 8) * 0x1.0p-24F;
        }
        value = deviation * sum;
    }
    return values;
}

// A layer of [rows, k] with values as trained weights have them.
std::unique_ptr<CpuLinear> randomLayer(uint32_t rows, uint32_t k, DType dtype, ThreadPool &pool) {
    const std::vector<float> values = normals(size_t{rows} * k, 0.02F);
    const LinearSource source{"bench", 0, {{values.data(), DType::kF32, rows, k, k, 1}}};
    return packPanels(source, formatOf(dtype), pool);
}

// Layers whose activations are rounded to one or two bf16.
void benchRounded(const KernelTable &kernels, uint32_t k, ThreadPool &pool) {
    for (const DType dtype : {DType::kBf16, DType::kBf12}) {
        for (uint32_t pieces = 1; pieces <= kMaxPieces; ++pieces) {
            for (const uint32_t npanels : {4U, 2048U}) {
                const auto layer = randomLayer(npanels * kPanelRows, k, dtype, pool);
                const std::vector<float> values(k, 0.01F);
                const size_t row_bytes = roundedRowBytes(k, pieces, kernels.pair_bytes) + 64;
                const HostBuffer x(kRows * row_bytes);
                for (uint32_t r = 0; r < kRows; ++r) {
                    kernels.round[pieces - 1](values.data(), k, x.as<char>() + r * row_bytes);
                }
                std::vector<float> y(size_t{kRows} * npanels * kPanelRows);
                const int repeats = npanels == 4 ? 200 : 1;
                std::printf("%-4s x%u %-7s", dtypeName(dtype), pieces, npanels == 4 ? "cache" : "memory");
                for (const uint32_t rows : someRows(kernels)) {
                    if (rows > kernels.rounded_tile_rows) {
                        continue;
                    }
                    const double time = shortest([&] {
                        for (int i = 0; i < repeats; ++i) {
                            kernels.multiplyRounded[pieces - 1][layer->format](
                                layer->panel(0), layer->panel_bytes, npanels, k, {x.as<char>(), row_bytes}, rows,
                                y.data(), size_t{npanels} * kPanelRows, false);
                        }
                    });
                    const double weights = static_cast<double>(layer->out) * k * repeats;
                    const double bytes = static_cast<double>(layer->panel_bytes) * npanels * repeats;
                    std::printf("  %5.1f (%5.1f)", weights / time / 1e9, bytes / time / 1e9);
                }
                std::printf("\n");
            }
        }
    }
}

// The register tile of attention, from L1.
void benchTile(const KernelTable &kernels) {
    constexpr uint32_t kDepth = 256;
    constexpr int kRepeats = 2000;
    const uint32_t rows = kernels.tile_rows;
    std::vector<float> c(size_t{rows} * kValueWidth);
    const double work = static_cast<double>(rows) * kValueWidth * kDepth * kRepeats / 1e9;

    const std::vector<float> a(size_t{rows} * kDepth, 1.0F);
    const std::vector<float> b(size_t{kDepth} * kValueWidth, 1.0F);
    const float *from[] = {b.data(), b.data() + kPanelRows};
    float *to[] = {c.data(), c.data() + kPanelRows};
    const double floats = shortest([&] {
        for (int i = 0; i < kRepeats; ++i) {
            kernels.tile(a.data(), 1, rows, from, kValueWidth, kDepth, to, kValueWidth, rows, 2, true);
        }
    });
    std::printf("attention's tile of %u rows: %.1f G multiply-adds/s\n", rows, work / floats);
}

// Attention of few rows: the f16 keys and values of one head, in tiles of 16 tokens.
void benchFewRows(const KernelTable &kernels) {
    constexpr uint32_t kHead = 128;
    constexpr size_t kTileBytes = kHead * kPanelRows * sizeof(uint16_t);
    std::printf("attention of few rows, f16: GB/s of");
    printRows(kernels, 8);
    for (const uint32_t ntiles : {4U, 16384U}) {
        const HostBuffer tiles(ntiles * kTileBytes);  // in huge pages, like the cache
        std::fill_n(tiles.as<uint16_t>(), tiles.bytes() / sizeof(uint16_t), uint16_t{0x2c00});  // 1/16
        std::vector<const char *> at;
        for (uint32_t t = 0; t < ntiles + kTilesTogether; ++t) {
            at.push_back(tiles.as<char>() + t % ntiles * kTileBytes);
        }
        const std::vector<float> rows(size_t{kRows} * kHead, 0.01F);
        std::vector<float> out(size_t{kRows} * kHead);
        const auto show = [&](const char *name, const auto &use) {
            std::printf("  %-6s %-6s                   ", name, ntiles == 4 ? "cache" : "memory");
            for (const uint32_t nrows : someRows(kernels)) {
                if (nrows > kernels.tile_rows) {
                    continue;
                }
                const uint32_t repeats = ntiles == 4 ? 1000 : 1;
                const double time = shortest([&] {
                    for (uint32_t t = 0; t < ntiles * repeats; t += kTilesTogether) {
                        use(KvTiles{at.data() + t % ntiles, kTilesTogether, kTilesTogether}, nrows);
                    }
                });
                std::printf(" %8.1f", static_cast<double>(kTileBytes) * ntiles * repeats / time / 1e9);
            }
            std::printf("\n");
        };
        show("keys", [&](const KvTiles &keys, uint32_t nrows) {
            kernels.score[kF16](rows.data(), kHead, nrows, keys, kHead, out.data(), kHead);
        });
        show("values", [&](const KvTiles &values, uint32_t nrows) {
            kernels.weigh[kF16](rows.data(), kHead, nrows, values, kTilesTogether * kPanelRows, kHead / kPanelRows,
                                out.data(), kHead, true);
        });
    }
}

void benchSampler() {
    constexpr uint32_t kVocabulary = 151936;
    Sampler sampler(kVocabulary);
    std::vector<float> logits = normals(kVocabulary, 4.0F);
    const auto time = [&](float temperature, int32_t top_k, int32_t no_logprob) {
        Qwen3SamplingParams params{};
        params.struct_size = sizeof params;
        params.temperature = temperature;
        params.top_k = top_k;
        params.top_p = 0.95F;
        params.repetition_penalty = 1.0F;
        params.no_logprob = no_logprob;
        return 1e3 * shortest([&] {
                   Qwen3SampleResult result{};
                   sampler.sample(logits.data(), params, 0, result);
               });
    };
    std::printf("sampling of %u logits, ms: greedy %.2f, with log-probability %.2f, top-k 20 %.2f, top-p only %.2f\n",
                kVocabulary, time(0.0F, 0, 1), time(0.0F, 0, 0), time(0.6F, 20, 1), time(0.6F, 0, 1));
}

}  // namespace

int main(int argc, char **argv) {
    const auto k = static_cast<uint32_t>(argc > 1 ? std::atoi(argv[1]) : 1024);
    if (k == 0) {
        std::fprintf(stderr, "usage: bench_kernels [k]\n");
        return 2;
    }
    const KernelTable &kernels = selectKernels();
    ThreadPool pool(1);
    std::printf("table %s, one thread, k = %u: G weights/s (GB/s)\n", kernels.name, k);
    std::printf("%-12s %-8s", "format*code", "from");
    printRows(kernels, 14);
    struct Case {
        DType dtype;
        CodeWidth width;
        const char *with;
    };
    for (const auto &[dtype, width, with] :
         {Case{DType::kBf16, k8Bits, nullptr}, Case{DType::kBf12, k8Bits, nullptr}, Case{DType::kInt8, k16Bits, "*16"},
          Case{DType::kInt8, k8Bits, "*8"}, Case{DType::kInt4, k16Bits, "*16"}, Case{DType::kInt4, k8Bits, "*8"}}) {
        for (const uint32_t npanels : {4U, 2048U}) {
            const auto layer = randomLayer(npanels * kPanelRows, k, dtype, pool);
            const std::vector<float> x(size_t{kRows} * (k + 16), 0.01F);
            std::vector<float> y(size_t{kRows} * npanels * kPanelRows);
            const size_t count = kRows * layer->groups();
            const HostBuffer codes(count * codeGroupBytes(kSplitCodes));  // aligned
            std::vector<float> scales(count);
            std::vector<int32_t> offsets(count);
            const int repeats = npanels == 4 ? 200 : 1;
            const std::string name = std::string(dtypeName(dtype)) + (with == nullptr ? "" : with);
            std::printf("%-12s %-8s", name.c_str(), npanels == 4 ? "cache" : "memory");
            for (const uint32_t rows : someRows(kernels)) {
                if (rows > kernels.tileRows(layer->format)) {
                    continue;
                }
                const CodeKernels &with_codes = kernels.codes[width][layer->format];
                const QuantRows quant{codes.as<char>(), scales.data(), offsets.data(), rows,
                                      codeGroupBytes(with_codes.order)};
                for (uint32_t r = 0; r < rows && takesCodes(layer->format); ++r) {
                    with_codes.quantize(x.data() + size_t{r} * k, k, quant, r);
                }
                const double time = shortest([&] {
                    for (int i = 0; i < repeats; ++i) {
                        const size_t ldy = size_t{npanels} * kPanelRows;
                        if (takesCodes(layer->format)) {
                            with_codes.multiply(layer->panel(0), layer->panel_bytes, npanels, layer->groups(), quant,
                                                rows, y.data(), ldy, false);
                        } else {
                            kernels.multiplyPanels[layer->format](layer->panel(0), layer->panel_bytes, npanels, k,
                                                                  x.data(), k + 16, rows, y.data(), ldy, false);
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
    benchRounded(kernels, k, pool);
    benchTile(kernels);
    benchFewRows(kernels);
    benchSampler();
    return 0;
}
