// Every kernel of every table this CPU can run against the scalar table, on odd sizes. Products are compared bit for
// bit: the tables promise the same chain of fused multiply-adds (kernels.h). Exponentials and sums are compared within
// the rounding of their size.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "ops/cpu/kernels/dispatch.h"
#include "ops/cpu/kernels/kernels.h"
#include "ops/cpu/pack/quant.h"
#include "ops/cpu/panel_element.h"
#include "ops/half.h"
#include "runtime/error.h"
#include "runtime/worker_thread.h"

using namespace q3;
using namespace q3::cpu;

namespace {

std::mt19937 rng(1);

std::vector<float> randomFloats(size_t n, float scale = 1.0F) {
    std::normal_distribution<float> normal(0.0F, scale);
    std::vector<float> out(n);
    for (float &value : out) {
        value = normal(rng);
    }
    return out;
}

// Random float weights of one type in whatever layout: n elements, 64-byte aligned as panels are.
struct AlignedWeights {
    std::vector<float> storage;
    void *data = nullptr;
    AlignedWeights(WeightFormat type, size_t n) : storage(n + 32) {
        auto address = reinterpret_cast<uintptr_t>(storage.data());
        data = reinterpret_cast<void *>((address + 63) / 64 * 64);
        const std::vector<float> values = randomFloats(n);
        kScalarKernels.store[type](data, values.data(), static_cast<uint32_t>(n));
    }
};

bool same(const std::vector<float> &a, const std::vector<float> &b) {
    return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Calls product(first k, count) for two blocks of k, the first of whole groups of every format.
template <typename Product> void inTwoCuts(uint32_t k, const Product &product) {
    constexpr uint32_t kUnit = kScaleGroups * kGroup;
    const uint32_t cut = k / 2 / kUnit * kUnit;
    if (cut > 0) {
        product(0, cut);
    }
    product(cut, k - cut);
}

void testPanels(const KernelTable &kernels, WeightFormat type) {
    for (const uint32_t k : {1U, 2U, 7U, 64U, 257U}) {
        for (const uint32_t npanels : {1U, 3U, 4U, 9U}) {
            const size_t padded = roundUp(k, infoOf(type).group);
            const size_t panel_bytes = panelBytes(type, k);
            const AlignedWeights weights(type, padded * kPanelRows * npanels);
            for (uint32_t rows = 1; rows <= kernels.tile_rows; ++rows) {
                const std::vector<float> x = randomFloats(size_t{rows} * k);
                std::vector<float> expected(size_t{rows} * npanels * kPanelRows, 1.0F);
                std::vector<float> actual(expected.size(), 2.0F);
                const size_t width = size_t{npanels} * kPanelRows;
                kScalarKernels.multiplyPanels[type](weights.data, panel_bytes, npanels, k, x.data(), k, rows,
                                                    expected.data(), width, false);
                kernels.multiplyPanels[type](weights.data, panel_bytes, npanels, k, x.data(), k, rows, actual.data(),
                                             width, false);
                CHECK(same(expected, actual));
                inTwoCuts(k, [&](uint32_t from, uint32_t count) {
                    kernels.multiplyPanels[type](static_cast<const char *>(weights.data) + panelOffset(type, from),
                                                 panel_bytes, npanels, count, x.data() + from, k, rows, actual.data(),
                                                 width, from > 0);
                });
                CHECK(same(expected, actual));
            }
        }
    }
}

// Rows of activations in the form that a table multiplies.
struct Rounded {
    std::vector<char> data;
    RoundedRows rows;
    Rounded(const KernelTable &kernels, const std::vector<float> &x, uint32_t k, uint32_t nrows, uint32_t pieces)
        : data(nrows * (roundedRowBytes(k, pieces, kernels.pair_bytes) + 64), 7) {
        rows = {data.data(), data.size() / nrows};
        for (uint32_t r = 0; r < nrows; ++r) {
            kernels.round[pieces - 1](x.data() + size_t{r} * k, k, data.data() + r * rows.row_bytes);
        }
    }
    RoundedRows from(uint32_t k, uint32_t pieces, const KernelTable &kernels) const {
        return {rows.data + roundedRowBytes(k, pieces, kernels.pair_bytes), rows.row_bytes};
    }
};

// Numbers whose products and sums are normal, subnormal and zero.
std::vector<float> tinyFloats(size_t n) {
    std::vector<float> out = randomFloats(n);
    for (float &value : out) {
        value = std::ldexp(value, -static_cast<int>(rng() % 90) - 40);
    }
    return out;
}

// The chain over pairs of k, or the order of AMX, written out, on values that the formula of rounding to nearest even
// gives. at(i): weight i < k.
template <typename Weight>
float roundedProduct(const Weight &at, const float *x, uint32_t k, uint32_t pieces, bool by_groups) {
    std::vector<float> left(x, x + k);
    left.resize(roundUp(k, kGroup));
    std::vector<float> part[kMaxPieces];
    for (uint32_t piece = 0; piece < pieces; ++piece) {
        for (float &value : left) {
            part[piece].push_back(bf16ToFloat(floatToBf16(value)));
            value -= part[piece].back();
        }
    }
    const auto weight = [&](uint32_t i) { return i < k ? at(i) : 0.0F; };
    float sum = 0.0F;
    for (uint32_t g = 0; by_groups && g < k; g += kGroup) {
        for (uint32_t piece = 0; piece < pieces; ++piece) {
            float sums[2] = {};
            for (uint32_t i = g; i < g + kGroup; ++i) {
                sums[i % 2] = std::fma(weight(i), part[piece][i], sums[i % 2]);
            }
            sum += sums[0] + sums[1];
        }
    }
    for (uint32_t i = 0; !by_groups && i < k; i += 2) {
        for (uint32_t piece = 0; piece < pieces; ++piece) {
            sum = std::fma(weight(i + 1), part[piece][i + 1], sum);
            sum = std::fma(weight(i), part[piece][i], sum);
        }
    }
    return sum;
}

// bf16 panels with rounded activations: some outputs against the chain written out, all against the scalar table, whole
// and in two blocks of k, also where products and sums are subnormal.
void testRounded(const KernelTable &kernels, uint32_t pieces, bool tiny) {
    const auto numbers = [&](size_t n) { return tiny ? tinyFloats(n) : randomFloats(n); };
    for (const uint32_t k : {1U, 2U, 7U, 64U, 257U}) {
        for (const uint32_t npanels : {1U, 3U, 4U, 9U}) {
            const size_t panel_bytes = panelBytes(kBf16, k);
            AlignedWeights weights(kBf16, panel_bytes / 2 * npanels);
            std::vector<float> values = numbers(panel_bytes / 2 * npanels);
            for (size_t i = 0; i < values.size(); ++i) {  // zeros beyond k
                values[i] = i % (panel_bytes / 2) / 32 * 2 + i % 2 < k ? values[i] : 0.0F;
            }
            kScalarKernels.store[kBf16](weights.data, values.data(), static_cast<uint32_t>(values.size()));
            const uint32_t streamed = pieces == 1 ? kernels.bf16_stream_rows : 0;
            for (uint32_t rows = 1; rows <= std::max(kernels.rounded_tile_rows, streamed); ++rows) {
                const std::vector<float> x = numbers(size_t{rows} * k);
                const Rounded input(kernels, x, k, rows, pieces);
                const size_t width = size_t{npanels} * kPanelRows;
                std::vector<float> expected(rows * width, 1.0F);
                std::vector<float> actual(rows * width, 2.0F);
                const auto check = [&](RoundedPanelKernel kernel) {
                    std::fill(actual.begin(), actual.end(), 2.0F);
                    kernel(weights.data, panel_bytes, npanels, k, input.rows, rows, actual.data(), width, false);
                    for (uint32_t r = 0; r < rows; ++r) {  // some of them, written out
                        const size_t j = rng() % width;
                        const char *panel = static_cast<const char *>(weights.data) + j / kPanelRows * panel_bytes;
                        const auto weight = [&](uint32_t i) { return weightAt<kBf16>(panel, j % kPanelRows, i); };
                        CHECK(actual[r * width + j] ==
                              roundedProduct(weight, x.data() + size_t{r} * k, k, pieces, kernels.rounded_by_groups));
                    }
                    if (kernels.rounded_by_groups) {
                        expected = actual;
                    } else {
                        const Rounded plain(kScalarKernels, x, k, rows, pieces);
                        kScalarKernels.multiplyRounded[pieces - 1][kBf16](
                            weights.data, panel_bytes, npanels, k, plain.rows, rows, expected.data(), width, false);
                    }
                    CHECK(same(expected, actual));
                    inTwoCuts(k, [&](uint32_t from, uint32_t count) {
                        kernel(static_cast<const char *>(weights.data) + panelOffset(kBf16, from), panel_bytes, npanels,
                               count, input.from(from, pieces, kernels), rows, actual.data(), width, from > 0);
                    });
                    CHECK(same(expected, actual));
                };
                if (rows <= kernels.rounded_tile_rows) {
                    check(kernels.multiplyRounded[pieces - 1][kBf16]);
                }
                if (rows <= streamed) {
                    check(kernels.streamBf16);
                }
            }
        }
    }
}

// Activations of `nrows` rows of k as codes in front of a layer of `layer`, in buffers of their own.
struct Codes {
    CodeOrder order;
    std::vector<char> codes;
    std::vector<float> scales;
    std::vector<int32_t> offsets;
    QuantRows rows;
    Codes(const KernelTable &kernels, WeightFormat layer, CodeWidth width, const std::vector<float> &x, uint32_t k,
          uint32_t nrows)
        : order(kernels.codes[width][layer].order), codes(nrows * groupsOf(k) * codeGroupBytes(order), 7),
          scales(nrows * groupsOf(k)), offsets(scales.size()) {
        rows = {codes.data(), scales.data(), offsets.data(), nrows, codeGroupBytes(order)};
        for (uint32_t r = 0; r < nrows; ++r) {
            kernels.codes[width][layer].quantize(x.data() + size_t{r} * k, k, rows, r);
        }
    }
    static size_t groupsOf(uint32_t k) { return (size_t{k} + kGroup - 1) / kGroup; }
    int at(uint32_t row, uint32_t i) const {
        const char *from = rows.from(row, i / kGroup).codes;
        i %= kGroup;
        switch (order) {
        case kByteCodes:
            return static_cast<signed char>(from[i]);
        case kSplitCodes:
            return 256 * static_cast<signed char>(from[i]) + static_cast<signed char>(from[kGroup + i]);
        case kWordCodes:  // of every four, the second and the third change places
            return reinterpret_cast<const int16_t *>(from)[i % 4 == 1 ? i + 1 : (i % 4 == 2 ? i - 1 : i)];
        case kPlainCodes:
            return reinterpret_cast<const int16_t *>(from)[i];
        }
        return 0;
    }
    size_t groupAt(uint32_t row, uint32_t group) const { return group * rows.rows + row; }
};

// Activations as codes: the same in every table, within half a step of the value; NaN and infinity poison their group
// and no other.
void testQuantize(const KernelTable &kernels, WeightFormat type, CodeWidth width) {
    const int limit = width == k16Bits ? 32512 : 127;
    const int zero = type == kQ8 ? 128 : 8;
    for (const uint32_t k : {1U, 31U, 32U, 200U}) {
        std::vector<float> x = randomFloats(size_t{3} * k, 5.0F);
        x[0] = 3e4F;
        std::fill(x.begin() + k, x.begin() + 2 * k, 1e-35F);  // too small to scale: taken as zero
        const Codes expected(kScalarKernels, type, width, x, k, 3);
        const Codes actual(kernels, type, width, x, k, 3);
        for (uint32_t r = 0; r < 3; ++r) {
            for (uint32_t g = 0; g * kGroup < k; ++g) {
                CHECK(expected.scales[expected.groupAt(r, g)] == actual.scales[actual.groupAt(r, g)]);
                CHECK(expected.offsets[expected.groupAt(r, g)] == actual.offsets[actual.groupAt(r, g)]);
                int32_t sum = 0;
                for (uint32_t i = g * kGroup; i < (g + 1) * kGroup; ++i) {
                    const int code = actual.at(r, i);
                    CHECK(code == expected.at(r, i));
                    sum += code;
                    CHECK(std::abs(code) <= limit && (i < k || code == 0));
                    if (i < k) {
                        const float scale = actual.scales[actual.groupAt(r, g)];
                        const float error = std::fabs(static_cast<float>(code) * scale - x[r * k + i]);
                        // Half a step, and four roundings of 24 bits on the way to and from 32512 steps.
                        CHECK(error <= 0.508F * scale + (r == 1 ? 1e-30F : 0.0F));
                    }
                }
                CHECK(actual.offsets[actual.groupAt(r, g)] == -zero * sum);
            }
        }
    }
    for (const float bad : {std::nanf(""), -std::nanf(""), -std::numeric_limits<float>::infinity()}) {
        std::vector<float> x = randomFloats(3 * kGroup);
        x[kGroup + 5] = bad;
        const Codes actual(kernels, type, width, x, 3 * kGroup, 1);
        CHECK(std::isfinite(actual.scales[0]) && std::isnan(actual.scales[1]) && std::isfinite(actual.scales[2]));
    }
}

// Most rows of the kernels of q8 and q4.
uint32_t mostQuantRows(const KernelTable &kernels) {
    return std::max(kernels.quant_tile_rows, kernels.quant_stream_rows);
}

// Calls check(kernel) with those that take so many rows: of panels in cache, and of panels from memory.
template <typename Check>
void forQuantKernels(const KernelTable &kernels, CodeWidth width, WeightFormat type, uint32_t rows,
                     const Check &check) {
    const CodeKernels &mine = kernels.codes[width][type];
    CHECK((mine.stream != nullptr) == (kernels.quant_stream_rows > 0));
    if (rows <= kernels.quant_tile_rows) {
        check(mine.multiply);
    }
    if (rows <= kernels.quant_stream_rows) {
        check(mine.stream);
    }
}

// The largest codes of both signs: no sum of products overflows or saturates on its way.
void testExtremes(const KernelTable &kernels, WeightFormat type, CodeWidth width) {
    constexpr uint32_t kDepth = 2 * kGroup;
    std::vector<char> panel(panelBytes(type, kDepth));
    for (const int sign : {1, -1}) {
        for (uint32_t g = 0; g < 2; ++g) {
            float tile[kGroup * kPanelRows];
            for (uint32_t i = 0; i < kGroup * kPanelRows; ++i) {
                tile[i] = g == 0 || i / kPanelRows % 2 == 0 ? 1.0F : -1.0F;
            }
            (type == kQ8 ? quantizeGroupQ8 : quantizeGroupQ4)(tile, panel.data(), g);
        }
        const std::vector<float> x(kDepth, static_cast<float>(sign));
        for (uint32_t rows = 1; rows <= mostQuantRows(kernels); ++rows) {
            std::vector<float> all(size_t{rows} * kDepth, static_cast<float>(sign));
            const Codes plain(kScalarKernels, type, width, all, kDepth, rows);
            const Codes input(kernels, type, width, all, kDepth, rows);
            std::vector<float> expected(rows * kPanelRows);
            std::vector<float> actual(expected.size());
            kScalarKernels.codes[width][type].multiply(panel.data(), panel.size(), 1, 2, plain.rows, rows,
                                                       expected.data(), kPanelRows, false);
            forQuantKernels(kernels, width, type, rows, [&](QuantPanelKernel kernel) {
                std::fill(actual.begin(), actual.end(), 2.0F);
                kernel(panel.data(), panel.size(), 1, 2, input.rows, rows, actual.data(), kPanelRows, false);
                CHECK(same(expected, actual));
            });
        }
    }
}

// Quantised panels: quantisation within half a step of the scale, the scalar product close to the exact one of the
// dequantised weights, and every table's bit-equal to the scalar one.
void testQuant(const KernelTable &kernels, WeightFormat type, CodeWidth width) {
    for (const uint32_t k : {1U, 31U, 32U, 64U, 200U}) {
        for (const uint32_t npanels : {1U, 2U, 5U, 11U}) {
            const auto groups = static_cast<uint32_t>(Codes::groupsOf(k));
            const size_t panel_bytes = panelBytes(type, k);
            std::vector<char> panels(panel_bytes * npanels);
            const size_t columns = size_t{npanels} * kPanelRows;
            std::vector<float> dense(k * columns);  // [k][columns]
            for (uint32_t p = 0; p < npanels; ++p) {
                char *panel = panels.data() + p * panel_bytes;
                std::vector<std::vector<float>> rows;
                for (uint32_t j = 0; j < kPanelRows; ++j) {
                    rows.push_back(randomFloats(k, j == 3 ? 1e-20F : 0.02F));
                    if (j == 5) {
                        std::fill(rows.back().begin(), rows.back().end(), 0.0F);
                    }
                }
                for (uint32_t k0 = 0; k0 < k; k0 += kGroup) {
                    float tile[kGroup * kPanelRows] = {};
                    for (uint32_t i = 0; i < std::min(kGroup, k - k0); ++i) {
                        for (uint32_t j = 0; j < kPanelRows; ++j) {
                            tile[i * kPanelRows + j] = rows[j][k0 + i];
                        }
                    }
                    (type == kQ8 ? quantizeGroupQ8 : quantizeGroupQ4)(tile, panel, k0 / kGroup);
                }
                for (uint32_t i = 0; i < k; ++i) {
                    for (uint32_t j = 0; j < kPanelRows; ++j) {
                        const uint32_t begin = i / kGroup * kGroup;
                        const uint32_t end = std::min(k, begin + kGroup);
                        float largest = 0.0F;
                        for (uint32_t e = begin; e < end; ++e) {
                            largest = std::max(largest, std::fabs(rows[j][e]));
                        }
                        const float value = type == kQ8 ? weightAt<kQ8>(panel, j, i) : weightAt<kQ4>(panel, j, i);
                        dense[i * columns + p * kPanelRows + j] = value;
                        // q8: half a step of largest / 127. q4: at worst a clipped extreme, under 1.5 of 7 steps.
                        const float bound = largest * (type == kQ8 ? 0.51F / 127.0F * 1.01F : 0.25F);
                        CHECK(std::fabs(rows[j][i] - value) <= bound);
                    }
                }
            }
            for (uint32_t rows = 1; rows <= mostQuantRows(kernels); ++rows) {
                const std::vector<float> x = randomFloats(size_t{rows} * k);
                const Codes plain(kScalarKernels, type, width, x, k, rows);
                const Codes input(kernels, type, width, x, k, rows);
                std::vector<float> expected(rows * columns, 1.0F);
                std::vector<float> actual(rows * columns, 2.0F);
                kScalarKernels.codes[width][type].multiply(panels.data(), panel_bytes, npanels, groups, plain.rows,
                                                           rows, expected.data(), columns, false);
                forQuantKernels(kernels, width, type, rows, [&](QuantPanelKernel kernel) {
                    std::fill(actual.begin(), actual.end(), 2.0F);
                    kernel(panels.data(), panel_bytes, npanels, groups, input.rows, rows, actual.data(), columns,
                           false);
                    CHECK(same(expected, actual));
                    inTwoCuts(roundUp(groups, 2) * kGroup, [&](uint32_t from, uint32_t count) {
                        kernel(panels.data() + panelOffset(type, from), panel_bytes, npanels,
                               std::min(count / kGroup, groups - from / kGroup), input.rows.from(0, from / kGroup),
                               rows, actual.data(), columns, from > 0);
                    });
                    CHECK(same(expected, actual));
                });
                for (uint32_t r = 0; r < rows; ++r) {
                    for (size_t j = 0; j < columns; ++j) {
                        double exact = 0.0;
                        double size = 0.0;
                        for (uint32_t i = 0; i < k; ++i) {
                            const double product =
                                static_cast<double>(dense[i * columns + j]) * static_cast<double>(x[size_t{r} * k + i]);
                            exact += product;
                            size += std::fabs(product);
                        }
                        // Steps of 1 / 32512 or 1 / 127 of a group's largest, at most some five times its mean here.
                        const double part = width == k16Bits ? 2e-4 : 0.05;
                        CHECK(std::fabs(static_cast<double>(expected[r * columns + j]) - exact) <= part * size + 1e-30);
                    }
                }
            }
        }
    }
}

// Affine formats: random codes and scales. Every table's products are bit-equal to the scalar ones, which are those of
// the weights with the activations' codes.
template <WeightFormat T> void testAffine(const KernelTable &kernels, CodeWidth width) {
    constexpr AffineInfo info = affineOf(T);
    for (const uint32_t k : {32U, 96U, 256U, 544U}) {
        for (const uint32_t npanels : {1U, 2U, 5U, 11U}) {
            const size_t panel_bytes = panelBytes(T, k);
            std::vector<float> storage(panel_bytes * npanels / sizeof(float) + 1);
            auto *panels = reinterpret_cast<char *>(storage.data());
            for (size_t i = 0; i < panel_bytes * npanels; ++i) {
                const bool head = i % infoOf(T).group_bytes < info.headBytes();
                panels[i] = static_cast<char>(head ? rng() & 0x3fU : rng());  // halves and floats below 2
            }
            for (size_t at = 0; at < panel_bytes * npanels && info.scales == AffineInfo::kFull;
                 at += info.groupBytes()) {
                for (size_t i = 0; i < size_t{info.pieces} * kPanelRows; ++i) {  // zeros are whole numbers
                    const uint16_t zero = floatToF16(static_cast<float>(rng() % 300));
                    std::memcpy(panels + at + info.headBytes() - 2 * (i + 1), &zero, sizeof zero);
                }
            }
            const size_t columns = size_t{npanels} * kPanelRows;
            const auto runs = k / kGroup;
            for (uint32_t rows = 1; rows <= kernels.tileRows(T); rows += rows < 4 ? 1 : 3) {
                const std::vector<float> x = randomFloats(size_t{rows} * k);
                const Codes plain(kScalarKernels, T, width, x, k, rows);
                const Codes input(kernels, T, width, x, k, rows);
                CHECK(plain.offsets == input.offsets && plain.scales == input.scales);
                std::vector<float> expected(rows * columns, 1.0F);
                std::vector<float> actual(rows * columns, 2.0F);
                kScalarKernels.quantPanels(T, width)(panels, panel_bytes, npanels, runs, plain.rows, rows,
                                                     expected.data(), columns, false);
                kernels.quantPanels(T, width)(panels, panel_bytes, npanels, runs, input.rows, rows, actual.data(),
                                              columns, false);
                CHECK(same(expected, actual));
                if (k > infoOf(T).group) {
                    const uint32_t cut = infoOf(T).group;
                    kernels.quantPanels(T, width)(panels, panel_bytes, npanels, cut / kGroup, input.rows, rows,
                                                  actual.data(), columns, false);
                    kernels.quantPanels(T, width)(panels + panelOffset(T, cut), panel_bytes, npanels,
                                                  runs - cut / kGroup, input.rows.from(0, cut / kGroup), rows,
                                                  actual.data(), columns, true);
                    CHECK(same(expected, actual));
                }
                for (size_t j = 0; j < columns; ++j) {
                    double exact = 0.0;
                    double size = 0.0;
                    for (uint32_t i = 0; i < k; ++i) {
                        const char *panel = panels + j / kPanelRows * panel_bytes;
                        const AffineElement e = affineAt<T>(panel, j % kPanelRows, i);
                        const double code = static_cast<double>(plain.at(0, i)) *
                                            static_cast<double>(plain.scales[plain.groupAt(0, i / kGroup)]);
                        exact += static_cast<double>(e.value()) * code;
                        size += std::fabs(static_cast<double>(e.scale) * (std::abs(e.code) + e.zero) * code) +
                                std::fabs(static_cast<double>(e.minimum) * code);
                    }
                    CHECK(std::fabs(static_cast<double>(expected[j]) - exact) <= 1e-5 * size + 1e-30);
                }
            }
        }
    }
}

// bf12: products and unpacked weights bit-equal to those of the bf16 panel, with pairs that need the raw form, zeros,
// subnormals and k beyond whole groups.
void testBf12(const KernelTable &kernels) {
    for (const uint32_t k : {1U, 31U, 32U, 96U, 201U}) {
        for (const uint32_t npanels : {1U, 2U, 5U, 11U}) {
            const size_t groups = (k + kGroup - 1) / kGroup;
            const size_t bf16_bytes = size_t{(k + 1) / 2 * 2} * kPanelRows * 2;
            const AlignedWeights dense(kBf16, bf16_bytes / 2 * npanels);
            auto *bf16 = static_cast<uint16_t *>(dense.data);
            std::vector<Bf12Header> storage((groups * kBf12GroupBytes * npanels + 15) / sizeof(Bf12Header));
            auto *panels = reinterpret_cast<char *>(storage.data());
            std::vector<AlignedWeights> raws;
            raws.reserve(npanels);
            size_t raw_pairs = 0;
            for (uint32_t p = 0; p < npanels; ++p) {
                const std::vector<float> values = randomFloats(size_t{k} * kPanelRows, 0.02F);
                std::vector<uint16_t> rows(values.size());
                for (size_t i = 0; i < rows.size(); ++i) {
                    rows[i] = floatToBf16(values[i]);
                }
                if (p % 2 == 1) {  // pairs out of reach, and a group of nothing but tiny numbers and zeros
                    rows[0] = 0;
                    rows[rows.size() - 1] = floatToBf16(1e-30F);
                } else if (k > kGroup) {
                    for (uint32_t row = 0; row < kPanelRows; ++row) {
                        for (uint32_t i = 0; i < kGroup; ++i) {
                            rows[size_t{row} * k + i] = static_cast<uint16_t>(i % 3 == 0 ? 0 : (i + row) | 0x8000U);
                        }
                    }
                }
                for (uint32_t row = 0; row < kPanelRows; ++row) {
                    for (uint32_t i = 0; i < k; ++i) {
                        bf16[p * bf16_bytes / 2 + (size_t{i} / 2 * kPanelRows + row) * 2 + i % 2] =
                            rows[size_t{row} * k + i];
                    }
                }
                raws.emplace_back(kBf16, k * size_t{2} * kPanelRows);  // enough for every pair
                auto *raw = static_cast<uint16_t *>(raws.back().data);
                for (uint32_t k0 = 0; k0 < k; k0 += kGroup) {
                    const uint32_t count = std::min(kGroup, k - k0);
                    uint32_t tile[kGroup / 2 * kPanelRows] = {};
                    std::memcpy(tile, bf16 + p * bf16_bytes / 2 + size_t{k0} * kPanelRows,
                                (count + 1) / 2 * kPanelRows * sizeof(uint32_t));
                    const uint32_t expected = countRawBf12(tile, count);
                    const uint32_t written =
                        packGroupBf12(tile, count, panels + (p * groups + k0 / kGroup) * kBf12GroupBytes, raw);
                    CHECK(written == expected);
                    raw += size_t{written} * 2 * kPanelRows;
                    raw_pairs += written;
                }
            }
            CHECK(npanels == 1 || raw_pairs > 0);
            for (uint32_t rows = 1; rows <= kernels.tile_rows; ++rows) {
                const std::vector<float> x = randomFloats(size_t{rows} * k);
                const size_t width = size_t{npanels} * kPanelRows;
                std::vector<float> expected(rows * width, 1.0F);
                std::vector<float> actual(rows * width, 2.0F);
                kScalarKernels.multiplyPanels[kBf16](bf16, bf16_bytes, npanels, k, x.data(), k, rows, expected.data(),
                                                     width, false);
                kernels.multiplyPanels[kBf12](panels, groups * kBf12GroupBytes, npanels, k, x.data(), k, rows,
                                              actual.data(), width, false);
                CHECK(same(expected, actual));
                inTwoCuts(k, [&](uint32_t from, uint32_t count) {
                    kernels.multiplyPanels[kBf12](panels + panelOffset(kBf12, from), groups * kBf12GroupBytes, npanels,
                                                  count, x.data() + from, k, rows, actual.data(), width, from > 0);
                });
                CHECK(same(expected, actual));
                for (uint32_t pieces = 1; pieces <= kMaxPieces; ++pieces) {
                    const Rounded input(kernels, x, k, rows, pieces);
                    kernels.multiplyRounded[pieces - 1][kBf16](bf16, bf16_bytes, npanels, k, input.rows, rows,
                                                               expected.data(), width, false);
                    inTwoCuts(k, [&](uint32_t from, uint32_t count) {
                        kernels.multiplyRounded[pieces - 1][kBf12](
                            panels + panelOffset(kBf12, from), groups * kBf12GroupBytes, npanels, count,
                            input.from(from, pieces, kernels), rows, actual.data(), width, from > 0);
                    });
                    CHECK(same(expected, actual));
                }
            }
            for (uint32_t p = 0; p < npanels; ++p) {
                std::vector<uint16_t> expanded(groups * kGroup * kPanelRows);
                kernels.expandBf12(panels + p * groups * kBf12GroupBytes, static_cast<uint32_t>(groups),
                                   expanded.data());
                for (uint32_t i = 0; i < k; ++i) {
                    for (uint32_t j = 0; j < kPanelRows; ++j) {
                        const size_t at = (size_t{i} / 2 * kPanelRows + j) * 2 + i % 2;
                        CHECK(expanded[at] == bf16[p * bf16_bytes / 2 + at]);
                        CHECK(bf12At(panels + p * groups * kBf12GroupBytes, j, i) == expanded[at]);
                    }
                }
            }
        }
    }
}

void testTile(const KernelTable &kernels) {
    const uint32_t tile = kernels.tile_rows;
    for (const uint32_t k : {1U, 5U, 16U, 131U}) {
        for (uint32_t rows = 1; rows <= tile; ++rows) {
            for (uint32_t npanels = 1; npanels <= 5; npanels += 2) {
                for (const bool accumulate : {false, true}) {
                    const size_t ldb = size_t{npanels} * kPanelRows + 3;
                    const std::vector<float> b = randomFloats(k * ldb);
                    const std::vector<float> a = randomFloats(size_t{k} * tile);
                    std::vector<float> expected = randomFloats(size_t{npanels} * tile * 20);
                    std::vector<float> actual = expected;
                    std::vector<const float *> panels;
                    std::vector<float *> to_expected;
                    std::vector<float *> to_actual;
                    for (uint32_t p = 0; p < npanels; ++p) {
                        panels.push_back(b.data() + p * kPanelRows);
                        to_expected.push_back(expected.data() + size_t{p} * tile * 20);
                        to_actual.push_back(actual.data() + size_t{p} * tile * 20);
                    }
                    kScalarKernels.tile(a.data(), 1, tile, panels.data(), ldb, k, to_expected.data(), 20, rows, npanels,
                                        accumulate);
                    kernels.tile(a.data(), 1, tile, panels.data(), ldb, k, to_actual.data(), 20, rows, npanels,
                                 accumulate);
                    CHECK(same(expected, actual));
                }
            }
        }
    }
}

// Multiplies tiles of the KV cache that lie apart, the last one with fewer keys than it has room for, with and without
// tiles to prefetch.
void testKvTiles(const KernelTable &kernels, WeightFormat type) {
    for (const uint32_t dh : {1U, 16U, 19U, 128U}) {
        const uint32_t npanels = (dh + kValueWidth - 1) / kValueWidth * 2;
        std::vector<std::unique_ptr<AlignedWeights>> tiles;
        std::vector<const char *> at;
        for (uint32_t t = 0; t < 2 * kTilesTogether; ++t) {
            tiles.push_back(std::make_unique<AlignedWeights>(type, size_t{npanels} * kPanelRows * kPanelRows));
            at.push_back(static_cast<const char *>(tiles.back()->data));
        }
        for (uint32_t count = 1; count <= kTilesTogether; ++count) {
            const KvTiles list{at.data(), count, count - 1};
            for (uint32_t rows = 1; rows <= kernels.tile_rows; ++rows) {
                const uint32_t nkeys = count * kPanelRows - rows;
                const std::vector<float> q = randomFloats(size_t{rows} * (dh + 1));
                std::vector<float> expected = randomFloats(size_t{rows} * 70);
                std::vector<float> actual = expected;
                kScalarKernels.score[type](q.data(), dh + 1, rows, list, dh, expected.data(), 70);
                kernels.score[type](q.data(), dh + 1, rows, list, dh, actual.data(), 70);
                CHECK(same(expected, actual));
                const std::vector<float> weights = expected;
                expected = actual = randomFloats(size_t{rows} * 130);
                for (const bool accumulate : {false, true}) {
                    kScalarKernels.weigh[type](weights.data(), 70, rows, list, nkeys, npanels, expected.data(), 130,
                                               accumulate);
                    kernels.weigh[type](weights.data(), 70, rows, list, nkeys, npanels, actual.data(), 130, accumulate);
                    CHECK(same(expected, actual));
                }
            }
        }
    }
}

// The same of tiles in pairs; the slot behind an odd number of keys holds no number.
void testKvPairs(const KernelTable &kernels) {
    for (const uint32_t dh : {2U, 16U, 24U, 128U}) {
        const uint32_t npanels = (dh + kValueWidth - 1) / kValueWidth * 2;
        const uint32_t width = npanels * kPanelRows;
        std::vector<std::unique_ptr<AlignedWeights>> tiles;
        std::vector<const char *> at;
        for (uint32_t t = 0; t < 2 * kTilesTogether; ++t) {
            tiles.push_back(std::make_unique<AlignedWeights>(kBf16, size_t{width} * kPanelRows));
            at.push_back(static_cast<const char *>(tiles.back()->data));
        }
        for (uint32_t count = 1; count <= kTilesTogether; ++count) {
            const KvTiles list{at.data(), count, count - 1};
            for (uint32_t rows = 1; rows <= kernels.tile_rows; ++rows) {
                const uint32_t nkeys = count * kPanelRows - rows;
                const std::vector<float> q = randomFloats(size_t{rows} * dh);
                std::vector<float> expected = randomFloats(size_t{rows} * 70);
                std::vector<float> actual = expected;
                kScalarKernels.scorePairs(Rounded(kScalarKernels, q, dh, rows, 1).rows, rows, list, dh, expected.data(),
                                          70);
                kernels.scorePairs(Rounded(kernels, q, dh, rows, 1).rows, rows, list, dh, actual.data(), 70);
                CHECK(same(expected, actual));
                const std::vector<float> weights = randomFloats(size_t{rows} * nkeys);
                expected = actual = randomFloats(size_t{rows} * 130);
                auto *last = static_cast<uint16_t *>(tiles[count - 1]->data);
                const uint32_t slot = nkeys % kPanelRows;
                for (uint32_t i = 0; i < width && slot % 2 != 0; ++i) {
                    last[(size_t{slot / 2} * width + i) * 2 + 1] = 0x7fc0;
                }
                for (const bool accumulate : {false, true}) {
                    kScalarKernels.weighPairs(Rounded(kScalarKernels, weights, nkeys, rows, 1).rows, rows, list, nkeys,
                                              npanels, expected.data(), 130, accumulate);
                    kernels.weighPairs(Rounded(kernels, weights, nkeys, rows, 1).rows, rows, list, nkeys, npanels,
                                       actual.data(), 130, accumulate);
                    CHECK(same(expected, actual));
                    CHECK(!std::isnan(expected[0]));
                }
                for (uint32_t i = 0; i < width && slot % 2 != 0; ++i) {
                    last[(size_t{slot / 2} * width + i) * 2 + 1] = 0;
                }
            }
        }
    }
}

// Exponentials as bf16: the bf16 nearest to the exact one or its neighbour, zeros beyond the count, and their sum.
void testExpRound(const KernelTable &kernels) {
    for (const uint32_t count : {0U, 1U, 15U, 16U, 77U}) {
        std::vector<float> s = randomFloats(100, 20.0F);
        const float top = count > 0 ? kScalarKernels.max(s.data(), count) : 0.0F;
        std::vector<char> out(roundedRowBytes(100, 1, kernels.pair_bytes), 7);
        const float sum = kernels.expRound(s.data(), count, top, 100, out.data());
        double exact = 0.0;
        for (uint32_t i = 0; i < 128; ++i) {
            const auto *bits = reinterpret_cast<const uint16_t *>(out.data());
            const float e = kernels.pair_bytes == 4 ? bf16ToFloat(bits[i]) : reinterpret_cast<const float *>(bits)[i];
            const double wanted = i < count ? std::exp(static_cast<double>(s[i]) - static_cast<double>(top)) : 0.0;
            CHECK(std::fabs(static_cast<double>(e) - wanted) <= wanted * (0x1p-8 + 0x1p-13) + 1.2e-38);
            exact += wanted;
        }
        CHECK(std::fabs(static_cast<double>(sum) - exact) <= 0x1p-14 * exact);
    }
}

bool near(const std::vector<float> &a, const std::vector<float> &b, float tolerance) {
    for (size_t i = 0; i < a.size(); ++i) {
        if (!(std::fabs(a[i] - b[i]) <= tolerance * std::max(1.0F, std::fabs(a[i])))) {
            std::fprintf(stderr, "element %zu: %g and %g\n", i, static_cast<double>(a[i]), static_cast<double>(b[i]));
            return false;
        }
    }
    return true;
}

void testRows(const KernelTable &kernels) {
    const float eps = std::numeric_limits<float>::epsilon();
    for (const uint32_t n : {1U, 2U, 8U, 13U, 64U, 515U}) {
        const std::vector<float> x = randomFloats(n, 3.0F);
        const std::vector<float> w = randomFloats(n);
        std::vector<float> expected(n);
        std::vector<float> actual(n);
        kScalarKernels.rmsnorm(expected.data(), x.data(), w.data(), n, 1e-6F);
        kernels.rmsnorm(actual.data(), x.data(), w.data(), n, 1e-6F);
        CHECK(near(expected, actual, 8 * eps));

        expected = x;
        actual = x;
        kScalarKernels.add(expected.data(), w.data(), n);
        kernels.add(actual.data(), w.data(), n);
        CHECK(same(expected, actual));

        CHECK(kernels.max(x.data(), n) == kScalarKernels.max(x.data(), n));

        const float top = kScalarKernels.max(x.data(), n);
        expected = x;
        actual = x;
        const float expected_sum = kScalarKernels.expSum(expected.data(), n, top);
        const float actual_sum = kernels.expSum(actual.data(), n, top);
        CHECK(near(expected, actual, 4 * eps));
        CHECK(std::fabs(expected_sum - actual_sum) <= 8 * eps * expected_sum);

        kScalarKernels.siluMul(expected.data(), x.data(), w.data(), n);
        kernels.siluMul(actual.data(), x.data(), w.data(), n);
        CHECK(near(expected, actual, 8 * eps));

        const std::vector<float> cosine = randomFloats(n);
        const std::vector<float> sine = randomFloats(n);
        expected = randomFloats(size_t{2} * n);
        actual = expected;
        kScalarKernels.rope(expected.data(), cosine.data(), sine.data(), n);
        kernels.rope(actual.data(), cosine.data(), sine.data(), n);
        CHECK(near(expected, actual, 4 * eps));
    }
    // Far ends of exp: no overflow, no NaN.
    std::vector<float> extreme = {0.0F, -1.0F, -50.0F, -104.0F, -1000.0F, -std::numeric_limits<float>::infinity()};
    const float sum = kernels.expSum(extreme.data(), static_cast<uint32_t>(extreme.size()), 0.0F);
    CHECK(std::isfinite(sum) && extreme[0] == 1.0F && extreme[3] < 1e-37F && extreme[5] < 1e-37F);
    std::vector<float> gates = {-1000.0F, 1000.0F, 0.0F};
    const std::vector<float> ones(3, 1.0F);
    kernels.siluMul(gates.data(), gates.data(), ones.data(), 3);
    CHECK(std::fabs(gates[0]) < 1e-30F && gates[1] == 1000.0F && gates[2] == 0.0F);
}

void testStore(const KernelTable &kernels) {
    std::vector<float> values = randomFloats(29, 100.0F);
    const float special[] = {0.0F, -0.0F, 65504.0F, 65519.9F, 65520.0F, -1e9F, 1e-8F, 6e-8F, 6.1e-5F, 1.0F + 0x1p-11F};
    values.insert(values.end(), special, special + 10);
    for (const WeightFormat type : {kF32, kF16, kBf16}) {
        std::vector<char> expected(values.size() * 4, 0);
        std::vector<char> actual(values.size() * 4, 0);
        kScalarKernels.store[type](expected.data(), values.data(), static_cast<uint32_t>(values.size()));
        kernels.store[type](actual.data(), values.data(), static_cast<uint32_t>(values.size()));
        CHECK(expected == actual);
        std::vector<float> expected_floats(values.size());
        std::vector<float> actual_floats(values.size());
        kScalarKernels.load[type](expected_floats.data(), expected.data(), static_cast<uint32_t>(values.size()));
        kernels.load[type](actual_floats.data(), expected.data(), static_cast<uint32_t>(values.size()));
        CHECK(same(expected_floats, actual_floats));
    }
}

// int8 KV tiles: the scalar table against the formula, the others bit-equal to it.
void testLoadCodes(const KernelTable &kernels) {
    std::vector<int8_t> codes(size_t{32} * kPanelRows);
    for (int8_t &code : codes) {
        code = static_cast<int8_t>(rng());
    }
    for (const bool per_column : {false, true}) {
        for (const uint32_t rows : {1U, 16U, 32U}) {
            std::vector<uint16_t> scales;
            for (const float value : randomFloats(32)) {
                scales.push_back(floatToBf16(value));
            }
            std::vector<float> expected(size_t{rows} * kPanelRows);
            std::vector<float> actual(expected.size());
            for (size_t i = 0; i < expected.size(); ++i) {
                const float scale = bf16ToFloat(scales[per_column ? i % kPanelRows : i / kPanelRows]);
                expected[i] = static_cast<float>(codes[i]) * scale;
            }
            kernels.loadCodes(actual.data(), codes.data(), scales.data(), rows, per_column);
            CHECK(same(expected, actual));
        }
    }
}

// The scalar conversions themselves: every 16-bit pattern survives the round trip, and rounding is to nearest even.
void testHalf() {
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
        const auto half = static_cast<uint16_t>(bits);
        const float f16 = f16ToFloat(half);
        const float bf16 = bf16ToFloat(half);
        CHECK(std::isnan(f16) || floatToF16(f16) == half);
        CHECK(std::isnan(bf16) || floatToBf16(bf16) == half);
#if defined(__FLT16_MAX__) && defined(__x86_64__)
        _Float16 compiler;
        std::memcpy(&compiler, &half, sizeof half);
        CHECK(std::isnan(f16) || static_cast<float>(compiler) == f16);
#endif
    }
    CHECK(floatToF16(1.0F + 0x1p-11F) == floatToF16(1.0F));
    CHECK(f16ToFloat(floatToF16(1.0F + 3 * 0x1p-11F)) == 1.0F + 0x1p-9F);
    CHECK(floatToF16(1e6F) == 0x7c00);
    CHECK(std::isnan(f16ToFloat(floatToF16(std::nanf("")))));
    CHECK(std::isnan(bf16ToFloat(floatToBf16(std::nanf("")))));
}

// f8: every code's bf16 value, in every place, and the step that adds a block.
void testF8(const KernelTable &kernels) {
    std::vector<char> codes(size_t{256} * kPanelRows);
    for (uint32_t k = 0; k < 256; ++k) {
        for (uint32_t j = 0; j < kPanelRows; ++j) {
            codes[f8Byte(j, k) - kF8HeadBytes] = static_cast<char>(k + 3 * j);
        }
    }
    std::vector<uint16_t> out(size_t{256} * kPanelRows);
    kernels.expandF8(codes.data(), 256, out.data());
    for (uint32_t k = 0; k < 256; ++k) {
        for (uint32_t j = 0; j < kPanelRows; ++j) {
            const auto code = static_cast<uint8_t>(k + 3 * j);
            const double mantissa = (code & 7) / 8.0;
            const int exponent = code >> 3 & 15;
            const double size = exponent == 0 ? std::ldexp(mantissa, -6) : std::ldexp(1.0 + mantissa, exponent - 7);
            const float value = bf16ToFloat(out[(size_t{k} / 2 * kPanelRows + j) * 2 + k % 2]);
            CHECK(static_cast<double>(value) == ((code & 0x80) != 0 ? -size : size));
        }
    }
    const std::vector<float> part = randomFloats(3 * 32);
    const std::vector<float> scale = randomFloats(kPanelRows);
    std::vector<float> expected = randomFloats(3 * 48);
    std::vector<float> actual = expected;
    kScalarKernels.addScaled(expected.data(), 48, part.data(), 32, scale.data(), 3);
    kernels.addScaled(actual.data(), 48, part.data(), 32, scale.data(), 3);
    CHECK(same(expected, actual));
}

// Products of f8 panels with floats (pieces 0) or rounded rows: some outputs against the chains written out, all
// against the scalar table, whole and in two blocks of k.
void testProductsF8(const KernelTable &kernels, uint32_t pieces) {
    const auto multiply = [&](const KernelTable &table, const char *panels, size_t panel_bytes, uint32_t npanels,
                              uint32_t k, const float *x, size_t ldx, const RoundedRows &rounded, uint32_t rows,
                              float *y, bool accumulate) {
        const size_t ldy = size_t{npanels} * kPanelRows;
        if (pieces == 0) {
            table.multiplyPanels[kF8](panels, panel_bytes, npanels, k, x, ldx, rows, y, ldy, accumulate);
        } else {
            table.multiplyRounded[pieces - 1][kF8](panels, panel_bytes, npanels, k, rounded, rows, y, ldy, accumulate);
        }
    };
    const uint32_t most = pieces == 0 ? kernels.tile_rows : kernels.rounded_tile_rows;
    for (const uint32_t k : {1U, 6U, 128U, 131U, 258U}) {
        for (const uint32_t npanels : {1U, 3U, 9U}) {
            const size_t panel_bytes = panelBytes(kF8, k);
            const AlignedWeights weights(kF32, panel_bytes * npanels / sizeof(float));
            auto *panels = static_cast<char *>(weights.data);
            for (size_t i = 0; i < panel_bytes * npanels; ++i) {
                if (i % infoOf(kF8).group_bytes >= kF8HeadBytes) {
                    panels[i] = static_cast<char>(rng());
                }
            }
            const size_t width = size_t{npanels} * kPanelRows;
            for (uint32_t rows = 1; rows <= most; ++rows) {
                const std::vector<float> x = randomFloats(size_t{rows} * k);
                const uint32_t form = std::max(1U, pieces);
                const Rounded input(kernels, x, k, rows, form);
                const Rounded plain(kScalarKernels, x, k, rows, form);
                std::vector<float> expected(rows * width, 1.0F);
                std::vector<float> actual(rows * width, 2.0F);
                multiply(kernels, panels, panel_bytes, npanels, k, x.data(), k, input.rows, rows, actual.data(), false);
                for (uint32_t r = 0; r < rows; ++r) {
                    const size_t j = rng() % width;
                    float sum = 0.0F;
                    for (uint32_t k0 = 0; k0 < k; k0 += kF8Group) {
                        const char *group = panels + j / kPanelRows * panel_bytes + panelOffset(kF8, k0);
                        const auto row = static_cast<uint32_t>(j % kPanelRows);
                        const auto weight = [&](uint32_t i) {
                            return e4m3Value(static_cast<uint8_t>(group[f8Byte(row, i)]));
                        };
                        const uint32_t count = std::min(kF8Group, k - k0);
                        const float *from = x.data() + size_t{r} * k + k0;
                        float block = 0.0F;
                        for (uint32_t i = 0; i < count && pieces == 0; ++i) {
                            block = std::fma(weight(i), from[i], block);
                        }
                        if (pieces > 0) {
                            block = roundedProduct(weight, from, count, pieces, kernels.rounded_by_groups);
                        }
                        sum = std::fma(reinterpret_cast<const float *>(group)[row], block, sum);
                    }
                    CHECK(actual[r * width + j] == sum);
                }
                if (pieces > 0 && kernels.rounded_by_groups) {
                    expected = actual;
                } else {
                    multiply(kScalarKernels, panels, panel_bytes, npanels, k, x.data(), k, plain.rows, rows,
                             expected.data(), false);
                }
                CHECK(same(expected, actual));
                for (uint32_t from = 0; from < k; from += kF8Group) {
                    multiply(kernels, panels + panelOffset(kF8, from), panel_bytes, npanels,
                             std::min(kF8Group, k - from), x.data() + from, k, input.from(from, form, kernels), rows,
                             actual.data(), from > 0);
                }
                CHECK(same(expected, actual));
            }
        }
    }
}

void testTable(const KernelTable &kernels) {
    std::printf("table %s\n", kernels.name);
    for (const WeightFormat type : {kF32, kF16, kBf16}) {
        testPanels(kernels, type);
        testKvTiles(kernels, type);
    }
    for (uint32_t pieces = 1; pieces <= kMaxPieces; ++pieces) {
        testRounded(kernels, pieces, false);
        testRounded(kernels, pieces, true);
    }
    testKvPairs(kernels);
    testExpRound(kernels);
    testTile(kernels);
    for (const WeightFormat type : {kQ8, kQ4}) {
        for (const CodeWidth width : {k8Bits, k16Bits}) {
            testQuantize(kernels, type, width);
            testQuant(kernels, type, width);
            testExtremes(kernels, type, width);
        }
    }
    forEachFormat([&](auto format) {
        if constexpr (isAffine(decltype(format)::value)) {
            testAffine<decltype(format)::value>(kernels, k8Bits);
        }
        if constexpr (affineOf(decltype(format)::value).takesWideCodes()) {
            testAffine<decltype(format)::value>(kernels, k16Bits);
        }
    });
    testBf12(kernels);
    testF8(kernels);
    for (uint32_t pieces = 0; pieces <= kMaxPieces; ++pieces) {
        testProductsF8(kernels, pieces);
    }
    testRows(kernels);
    testStore(kernels);
    testLoadCodes(kernels);
}

// The best table by default, the named one when the CPU has it, an error when not.
void testSelect() {
    unsetenv("QWEN3_CPU_ISA");
    const KernelTable *best = nullptr;
    for (const KernelEntry &entry : kernelEntries()) {
        best = best == nullptr && entry.supported ? entry.kernels : best;
    }
    CHECK(&selectKernels() == best);
    for (const KernelEntry &entry : kernelEntries()) {
        setenv("QWEN3_CPU_ISA", entry.kernels->name, 1);
        const KernelTable *selected = nullptr;
        try {
            selected = &selectKernels();
        } catch (const Error &error) {
            CHECK(error.status() == QWEN3_STATUS_DEVICE_ARCHITECTURE_NOT_SUPPORTED);
        }
        CHECK(selected == (entry.supported ? entry.kernels : nullptr));
    }
    unsetenv("QWEN3_CPU_ISA");
}

}  // namespace

int main() {
    testHalf();
    setDefaultFloats();  // as every thread that computes does: without subnormal numbers
    testSelect();
    // For emulated CPUs, which are slow: names of tables between spaces, and no others are tested. Where the intrinsics
    // are emulated (test/cpp/emulated), a table can be tested that the CPU itself could not run.
    const char *wanted = std::getenv("QWEN3_TEST_TABLES");
    const bool emulated = std::getenv("QWEN3_TEST_EMULATED") != nullptr;
    for (const KernelEntry &entry : kernelEntries()) {
        const char *name = entry.kernels->name;
        if (!entry.supported && !emulated) {
            std::printf("skipped: table %s, this CPU cannot run it\n", name);
        } else if (wanted == nullptr || std::strstr(wanted, (" " + std::string(name) + " ").c_str()) != nullptr) {
            testTable(*entry.kernels);
        }
    }
    return q3test::finish("test_kernels");
}
