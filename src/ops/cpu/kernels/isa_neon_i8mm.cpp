// NEON with SMMLA (i8mm): Neoverse V1, N2 and later. One instruction multiplies 8 k of two rows of activations by those
// of two rows of weights, twice the work of SDOT. A single row is multiplied with SDOT.
#include "ops/cpu/kernels/simd_dotprod.h"

namespace q3::cpu {
namespace {

using S = NeonDotprod;
constexpr size_t kRows = S::kTileRows;
static_assert(kRows == 6, "three pairs");

// A group is 4 steps of eight k. A vector holds two rows of weights, and 8 bytes of codes are one row of activations.
// 16-bit codes are split into two planes: the group's high bytes, then its low bytes.
template <WeightFormat T> struct Octets {
    using Quads = Steps<S, T>;
    static constexpr uint32_t kSteps = kGroup / 8;
    static constexpr int kAtOnce = 2 * Quads::kAtOnce;
    static constexpr size_t kCodeBytes = 8;
    static constexpr int kPlanes = infoOf(T).code_bytes;
    using Weights = S::B;
    // Writes the rows' codes of a group as [planes][steps][kRows][kCodeBytes]. An odd last row is written twice, to
    // make a pair.
    static void arrange(const QuantRows &x, uint32_t rows, char *out) {
        for (uint32_t r = 0; r < rows + rows % 2; ++r) {
            const char *from = x.codes + (r < rows ? r : rows - 1) * x.row_step * QuantRows::rowBytes(T);
            char *to = out + r * kCodeBytes;
            constexpr size_t kNext = kRows * kCodeBytes;  // from step to step
            if constexpr (T == kQ8) {
                const CodeBytes bytes(from);
                for (int i = 0; i < 2; ++i) {
                    storeSteps(to + 2 * i * kNext, bytes.high[i], kNext);
                    storeSteps(to + (kSteps + 2 * i) * kNext, bytes.low[i], kNext);
                }
            } else {
                storeSteps(to, S::loadQuads(from), kNext);
                storeSteps(to + 2 * kNext, S::loadQuads(from + 16), kNext);
            }
        }
    }
    template <typename Use> static void forSteps(const char *group, int first, const Use &use) {
        StepWeights<Quads> even = {};
        Quads::forSteps(group, first / 2, [&](uint32_t quad, const StepWeights<Quads> &odd) {
            if (quad % 2 == 0) {
                even = odd;
                return;
            }
            StepWeights<Octets> w;
            for (int h = 0; h < Quads::kAtOnce; ++h) {
                const int32x4_t a = vreinterpretq_s32_s8(even.part[h]);
                const int32x4_t b = vreinterpretq_s32_s8(odd.part[h]);
                w.part[h * 2] = vreinterpretq_s8_s32(vzip1q_s32(a, b));
                w.part[h * 2 + 1] = vreinterpretq_s8_s32(vzip2q_s32(a, b));
            }
            use(quad / 2, w);
        });
    }

private:
    static void storeSteps(char *to, int8x16_t two, size_t next) {
        vst1_s8(reinterpret_cast<int8_t *>(to), vget_low_s8(two));
        vst1_s8(reinterpret_cast<int8_t *>(to + next), vget_high_s8(two));
    }
};

// Loads the codes of two rows. It is assembly for the same reason as broadcastQuad (simd_dotprod.h).
inline int8x16_t loadTwoRows(const char *p) {
    const auto *rows = reinterpret_cast<const int8_t (*)[16]>(p);
    int8x16_t out;
    asm volatile("ldr %q0, %1" : "=w"(out) : "m"(*rows));
    return out;
}

// Products of two rows with two rows of weights: lanes (0, 0), (0, 1), (1, 0), (1, 1).
template <WeightFormat T> struct PairDots {
    int32x4_t plane[Octets<T>::kPlanes];
    int64x2_t total() const {
        return vreinterpretq_s64_s32(T == kQ8 ? vaddq_s32(vshlq_n_s32(plane[0], 8), plane[Octets<T>::kPlanes - 1])
                                              : plane[0]);
    }
};

// Row r of y += dots of four columns * scales.
template <WeightFormat T>
inline void addScaled(const QuantRows &x, uint32_t r, int64x2_t dots, float32x4_t w_scale, float *y) {
    int32x4_t dot = vreinterpretq_s32_s64(dots);
    if constexpr (T == kQ4) {
        dot = vsubq_s32(dot, vdupq_n_s32(x.offsets[r * x.row_step]));
    }
    S::store(y, S::fma(S::toFloat(dot), S::mul(w_scale, S::broadcast(x.scales + r * x.row_step)), S::load(y)));
}

// y[rows][16] += one group, rows = 2 * Pairs or one less. codes: x's, as arrange() writes them.
template <WeightFormat T, int Pairs>
void addGroup(const char *group, const QuantRows &x, const char *codes, uint32_t rows, float *y, size_t ldy) {
    using Step = Octets<T>;
    constexpr int N = Step::kAtOnce;
    for (int first = 0; first < 8; first += N) {
        PairDots<T> dots[Pairs][N];
        Q3_UNROLL
        for (int p = 0; p < Pairs; ++p) {
            Q3_UNROLL
            for (int v = 0; v < N; ++v) {
                Q3_UNROLL
                for (int i = 0; i < Step::kPlanes; ++i) {
                    dots[p][v].plane[i] = vdupq_n_s32(0);
                }
            }
        }
        Step::forSteps(group, first, [&](uint32_t step, const StepWeights<Step> &w) {
            Q3_UNROLL
            for (int p = 0; p < Pairs; ++p) {
                Q3_UNROLL
                for (int i = 0; i < Step::kPlanes; ++i) {
                    const size_t at = (i * Step::kSteps + step) * kRows + size_t{2} * p;
                    const int8x16_t two = loadTwoRows(codes + at * Step::kCodeBytes);
                    Q3_UNROLL
                    for (int v = 0; v < N; ++v) {
                        dots[p][v].plane[i] = vmmlaq_s32(dots[p][v].plane[i], two, w.part[v]);
                    }
                }
            }
        });
        Q3_UNROLL
        for (int v = 0; v < N; v += 2) {
            const int column = (first + v) * 2;
            const float32x4_t w_scale = S::loadBf16(reinterpret_cast<const uint16_t *>(group) + column);
            Q3_UNROLL
            for (int p = 0; p < Pairs; ++p) {
                const int64x2_t left = dots[p][v].total();
                const int64x2_t right = dots[p][v + 1].total();
                const uint32_t r = 2 * p;
                addScaled<T>(x, r, vzip1q_s64(left, right), w_scale, y + r * ldy + column);
                if (r + 1 < rows) {
                    addScaled<T>(x, r + 1, vzip2q_s64(left, right), w_scale, y + (r + 1) * ldy + column);
                }
            }
        }
    }
}

template <WeightFormat T>
void multiplyPairs(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t groups, const QuantRows &x,
                   uint32_t rows, float *y, size_t ldy, bool accumulate) {
    if (rows == 1) {
        multiplyQuantPanels<S, T>(panels, panel_bytes, npanels, groups, x, rows, y, ldy, accumulate);
        return;
    }
    for (uint32_t r = 0; r < rows && !accumulate; ++r) {
        for (uint32_t j = 0; j < npanels * kPanelRows; j += S::kLanes) {
            S::store(y + r * ldy + j, S::zero());
        }
    }
    const auto add = rows > 4 ? addGroup<T, 3> : (rows > 2 ? addGroup<T, 2> : addGroup<T, 1>);
    for (size_t g = 0; g < groups; ++g) {
        const QuantRows at = x.from(0, g, T);
        char codes[kGroup * kRows * infoOf(T).code_bytes];
        Octets<T>::arrange(at, rows, codes);
        for (uint32_t p = 0; p < npanels; ++p) {
            const char *group = static_cast<const char *>(panels) + p * panel_bytes + panelOffset(T, g * kGroup);
            add(group, at, codes, rows, y + size_t{p} * kPanelRows, ldy);
        }
    }
}

constexpr KernelTable i8mmTable() {
    KernelTable table = simdTable<S>("neon-i8mm", kNeonDotprodAffine);
    table.multiplyQuantPanels[kQ8] = multiplyPairs<kQ8>;
    table.multiplyQuantPanels[kQ4] = multiplyPairs<kQ4>;
    return table;
}

}  // namespace

const KernelTable kNeonI8mmKernels = i8mmTable();

}  // namespace q3::cpu
