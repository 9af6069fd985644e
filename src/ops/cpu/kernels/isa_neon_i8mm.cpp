// NEON with SMMLA (i8mm): Neoverse V1, N2 and later. One instruction multiplies 8 k of two rows of activations by those
// of two rows of weights, twice the work of SDOT. A single row is multiplied with SDOT.
#include "ops/cpu/kernels/simd_dotprod.h"

namespace q3::cpu {
namespace {

using S = NeonDotprod;
constexpr size_t kRows = S::kTileRows;
static_assert(kRows == 6, "three pairs");

// A group is 4 steps of eight k. A vector holds two rows of weights, and 8 bytes of codes are one row of activations.
// 16-bit codes are two planes: the group's high bytes, then its low bytes.
template <WeightFormat T, CodeWidth X> struct Octets {
    using Quads = ByteSteps<S, T, X>;
    static constexpr int kSteps = kGroup / 8;
    static constexpr int kPlanes = Quads::kPasses;
    static constexpr int kAtOnce = 8 / kPlanes;  // vectors of weights, whose sums are 24 registers
    static constexpr size_t kCodeBytes = 8;
    struct Weights {
        S::B part[kAtOnce];
    };
    // Writes the rows' codes of a group as [planes][steps][kRows][kCodeBytes]. An odd last row is written twice, to
    // make a pair.
    static void arrange(const QuantRows &x, uint32_t rows, char *out) {
        constexpr size_t kNext = kRows * kCodeBytes;  // from step to step
        for (uint32_t r = 0; r < rows + rows % 2; ++r) {
            const char *from = x.codes + (r < rows ? r : rows - 1) * codeGroupBytes(Quads::kOrder);
            char *to = out + r * kCodeBytes;
            for (int i = 0; i < kPlanes * kSteps; i += 2) {
                const int8x16_t two = S::loadQuads(from + i * kCodeBytes);
                vst1_s8(reinterpret_cast<int8_t *>(to + i * kNext), vget_low_s8(two));
                vst1_s8(reinterpret_cast<int8_t *>(to + (i + 1) * kNext), vget_high_s8(two));
            }
        }
    }
    // The vectors [first, first + kAtOnce) of a step. codes: the group's weights.
    static Weights weights(const char *codes, int step, int first) {
        Weights w;
        Q3_UNROLL
        for (int h = 0; h < kAtOnce / 2; ++h) {
            const int part = first / 2 + h;
            const int32x4_t a = vreinterpretq_s32_s8(Quads::weights(codes, 2 * step, part));
            const int32x4_t b = vreinterpretq_s32_s8(Quads::weights(codes, 2 * step + 1, part));
            w.part[h * 2] = vreinterpretq_s8_s32(vzip1q_s32(a, b));
            w.part[h * 2 + 1] = vreinterpretq_s8_s32(vzip2q_s32(a, b));
        }
        return w;
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
template <int Planes> struct PairDots {
    int32x4_t plane[Planes];
    int64x2_t total() const {
        return vreinterpretq_s64_s32(Planes > 1 ? vaddq_s32(vshlq_n_s32(plane[0], 8), plane[Planes - 1]) : plane[0]);
    }
};

// Row r of y += dots of four columns * scales.
template <bool Corrected>
inline void addScaled(const QuantRows &x, uint32_t r, int64x2_t dots, float32x4_t w_scale, float *y) {
    int32x4_t dot = vreinterpretq_s32_s64(dots);
    if constexpr (Corrected) {
        dot = vaddq_s32(dot, S::broadcastInt(x.offsets + r));
    }
    S::store(y, S::fma(S::toFloat(dot), S::mul(w_scale, S::broadcast(x.scales + r)), S::load(y)));
}

// y[rows][16] += group g of a panel, rows = 2 * Pairs or one less. codes: x's, as arrange() writes them.
template <WeightFormat T, CodeWidth X, int Pairs>
void addGroup(const char *panel, size_t g, const QuantRows &x, const char *codes, uint32_t rows, float *y, size_t ldy) {
    using Step = Octets<T, X>;
    constexpr int N = Step::kAtOnce;
    constexpr bool kCorrected = !Step::Quads::kMadeSigned;
    for (int first = 0; first < 8; first += N) {
        PairDots<Step::kPlanes> dots[Pairs][N];
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
        Q3_UNROLL
        for (int step = 0; step < Step::kSteps; ++step) {
            const auto w = Step::weights(panel + codesOffset(T, g), step, first);
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
        }
        Q3_UNROLL
        for (int v = 0; v < N; v += 2) {
            const int column = (first + v) * 2;
            const float32x4_t w_scale = weightScales<S, T>(panel, g, column / S::kLanes);
            Q3_UNROLL
            for (int p = 0; p < Pairs; ++p) {
                const int64x2_t left = dots[p][v].total();
                const int64x2_t right = dots[p][v + 1].total();
                const uint32_t r = 2 * p;
                addScaled<kCorrected>(x, r, vzip1q_s64(left, right), w_scale, y + r * ldy + column);
                if (r + 1 < rows) {
                    addScaled<kCorrected>(x, r + 1, vzip2q_s64(left, right), w_scale, y + (r + 1) * ldy + column);
                }
            }
        }
    }
}

template <WeightFormat T, CodeWidth X>
void multiplyPairs(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t groups, const QuantRows &x,
                   uint32_t rows, float *y, size_t ldy, bool accumulate) {
    if (rows == 1) {
        multiplyQuantPanels<S, T, X>(panels, panel_bytes, npanels, groups, x, rows, y, ldy, accumulate);
        return;
    }
    for (uint32_t r = 0; r < rows && !accumulate; ++r) {
        for (uint32_t j = 0; j < npanels * kPanelRows; j += S::kLanes) {
            S::store(y + r * ldy + j, S::zero());
        }
    }
    const auto add = rows > 4 ? addGroup<T, X, 3> : (rows > 2 ? addGroup<T, X, 2> : addGroup<T, X, 1>);
    for (size_t g = 0; g < groups; ++g) {
        const QuantRows at = x.from(0, g);
        char codes[kRows * codeGroupBytes(ByteSteps<S, T, X>::kOrder)];
        Octets<T, X>::arrange(at, rows, codes);
        for (uint32_t p = 0; p < npanels; ++p) {
            add(static_cast<const char *>(panels) + p * panel_bytes, g, at, codes, rows, y + size_t{p} * kPanelRows,
                ldy);
        }
    }
}

constexpr KernelTable i8mmTable() {
    KernelTable table = simdTable<S>("neon-i8mm", kNeonDotprodAffine);
    table.codes[k8Bits][kQ8].multiply = multiplyPairs<kQ8, k8Bits>;
    table.codes[k8Bits][kQ4].multiply = multiplyPairs<kQ4, k8Bits>;
    table.codes[k16Bits][kQ8].multiply = multiplyPairs<kQ8, k16Bits>;
    table.codes[k16Bits][kQ4].multiply = multiplyPairs<kQ4, k16Bits>;
    return table;
}

}  // namespace

const KernelTable kNeonI8mmKernels = i8mmTable();

}  // namespace q3::cpu
