// Layers of codes with scales as checkpoints have them (AffineInfo) for one instruction set S, see simd_table.h: exact
// integer products per piece of a run of 32 k, then multiply-adds with the scales (kernels.h).
#pragma once

#include "ops/cpu/kernels/kernels.h"
#include "ops/cpu/kernels/simd_float.h"

namespace q3::cpu {
namespace {

constexpr uint32_t kRunSteps = kGroup / 4;  // of four k, which a 32-bit lane adds at once

// Codes of four k of kLanes rows: those of step Step, vector h of a panel's.
template <typename S, WeightFormat T, int Step> inline Q3_INLINE typename S::B affineCodes(const char *run, int h) {
    constexpr uint32_t kBits = affineOf(T).bits;
    constexpr size_t kBlock = size_t{4} * kPanelRows;  // bytes of one step of 8-bit codes
    const size_t lanes = size_t{4} * S::kLanes * h;
    if constexpr (kBits == 8) {
        return S::loadQuads(run + Step * kBlock + lanes);
    } else if constexpr (kBits == 6) {
        const char *lines = run + Step / 4 * 3 * kBlock + lanes;
        if constexpr (Step % 4 < 3) {
            return S::andBytes(S::loadQuads(lines + Step % 4 * kBlock), 0x3f);
        } else {
            const typename S::B low = S::andBytes(S::template shiftBytes<-6>(S::loadQuads(lines)), 0x03);
            const typename S::B middle = S::template shiftBytes<-4>(S::loadQuads(lines + kBlock));
            const typename S::B high = S::template shiftBytes<-2>(S::loadQuads(lines + 2 * kBlock));
            return S::orMasked(S::orMasked(low, middle, 0x0c), high, 0x30);
        }
    } else {
        const typename S::B both = S::loadQuads(run + Step / 2 * kBlock + lanes);
        const typename S::B low = Step % 2 == 0 ? S::lowNibbles(both) : S::highNibbles(both);
        const char *plane = run + kGroup / 2 * kPanelRows + lanes;
        if constexpr (kBits == 5) {
            const typename S::B bits = S::loadQuads(plane);
            return S::orMasked(low, S::template shiftBytes<4 - Step>(bits), 0x10);
        } else {
            return low;
        }
    }
}

// sum + the products of unsigned codes and signed activation codes, four to a lane.
template <typename S, WeightFormat T>
inline Q3_INLINE typename S::I dotAffine(typename S::I sum, typename S::B w, typename S::B x) {
    if constexpr (affineOf(T).bits < 8 || S::kDotsWide) {
        return S::dotBytes(sum, w, x);
    } else {  // in halves, whose products do not overflow
        const typename S::I high = S::dotBytes(S::setInt(0), S::highNibbles(w), x);
        return S::addInt(S::dotBytes(sum, S::lowNibbles(w), x), S::template shiftLeft<4>(high));
    }
}

// What a piece's kLanes rows share: see AffineInfo.
template <typename S> struct AffineScales {
    typename S::F scale, minimum, zero;
};

// `piece` counts from the group's beginning.
template <typename S, WeightFormat T>
inline Q3_INLINE AffineScales<S> affineScales(const char *group, uint32_t piece, int h) {
    constexpr AffineInfo kInfo = affineOf(T);
    const size_t row = size_t{S::kLanes} * h;
    const auto *halves = reinterpret_cast<const uint16_t *>(group) + row;
    AffineScales<S> out{};
    if constexpr (kInfo.scales == AffineInfo::kHalf) {
        out.scale = S::loadF16(halves);
    } else if constexpr (kInfo.scales == AffineInfo::kHalfZero) {
        out.scale = S::loadF16(halves);
        out.zero = S::loadInt8(group + kScaleBytes + row);
    } else if constexpr (kInfo.scales == AffineInfo::kWide || kInfo.scales == AffineInfo::kWideZero) {
        out.scale = S::load(reinterpret_cast<const float *>(group) + row);
        if constexpr (kInfo.scales == AffineInfo::kWideZero) {
            out.zero = S::loadInt8(group + kPanelRows * sizeof(float) + row);
        }
    } else if constexpr (kInfo.scales == AffineInfo::kSuper) {
        const char *factors = group + kScaleBytes * (kInfo.minimum ? 2 : 1) + row;
        out.scale = S::mul(S::loadF16(halves), S::loadInt8(factors + piece * kPanelRows));
        if constexpr (kInfo.minimum) {
            const uint32_t least = kInfo.runs() * kInfo.pieces + piece;
            out.minimum = S::mul(S::loadF16(halves + kPanelRows), S::loadInt8(factors + least * kPanelRows));
        }
    } else {
        const auto *floats = reinterpret_cast<const float *>(group) + row;
        out.scale = S::load(floats + piece * kPanelRows);
        out.minimum = S::load(floats + (kInfo.pieces + piece) * kPanelRows);
        out.zero = S::loadF16(halves + (4 * kInfo.pieces + piece) * kPanelRows);
    }
    return out;
}

// Bytes of a row's activation codes of a run; those of 16 bits are the high bytes, then the low ones.
template <CodeWidth X> constexpr size_t kAffineCodeBytes = codeGroupBytes(X == k8Bits ? kByteCodes : kSplitCodes);

template <typename S, WeightFormat T, CodeWidth X, int R, int Step, int Last>
inline Q3_INLINE void addAffineSteps(const char *run, const char *codes, typename S::I (&dots)[R][S::kParts]) {
    if constexpr (Step < Last) {
        typename S::B w[S::kParts];
        Q3_UNROLL
        for (int h = 0; h < S::kParts; ++h) {
            w[h] = affineCodes<S, T, Step>(run, h);
        }
        Q3_UNROLL
        for (int r = 0; r < R; ++r) {
            const typename S::B x = S::broadcastQuad(codes + r * kAffineCodeBytes<X> + Step * size_t{4});
            Q3_UNROLL
            for (int h = 0; h < S::kParts; ++h) {
                dots[r][h] = dotAffine<S, T>(dots[r][h], w[h], x);
            }
        }
        addAffineSteps<S, T, X, R, Step + 1, Last>(run, codes, dots);
    }
}

// Adds piece Piece of a run to the sums of R rows with panel p. x: the rows' activations in that run.
template <typename S, WeightFormat T, CodeWidth X, int Piece, int R, int P>
inline Q3_INLINE void addAffinePiece(const char *group, uint32_t index, const QuantRows &x, int p,
                                     Products<S, R, P> &products) {
    constexpr AffineInfo kInfo = affineOf(T);
    constexpr int kSteps = static_cast<int>(kRunSteps / kInfo.pieces);
    constexpr bool kOwnZero = kInfo.ownZero();
    const char *run = group + kInfo.headBytes() + index * kInfo.runBytes();
    constexpr bool kWide = X == k16Bits;
    typename S::I dots[R][S::kParts];
    Q3_UNROLL
    for (int r = 0; r < R; ++r) {
        const int32_t zeros = -kInfo.zero * affineSum<X, kInfo.pieces, Piece>(x.offsets[r]);
        Q3_UNROLL
        for (int h = 0; h < S::kParts; ++h) {
            dots[r][h] = S::setInt(kWide ? 0 : zeros);
        }
    }
    // Codes of 16 bits take two passes, the high bytes first. The assembly hides from the compiler how many, since
    // unrolled they would be no faster, and take twice as long to compile.
    int pass = kWide ? 0 : 1;
    do {
        if constexpr (kWide) {
            asm("" : "+r"(pass));
            Q3_UNROLL
            for (int r = 0; r < R; ++r) {
                const int32_t zeros = -kInfo.zero * affineSum<X, kInfo.pieces, Piece>(x.offsets[r]);
                Q3_UNROLL
                for (int h = 0; h < S::kParts; ++h) {
                    dots[r][h] = S::addInt(S::template shiftLeft<8>(dots[r][h]), S::setInt(pass == 0 ? 0 : zeros));
                }
            }
        }
        const char *codes = x.codes + (kWide ? pass * kGroup : 0);
        addAffineSteps<S, T, X, R, Piece * kSteps, (Piece + 1) * kSteps>(run, codes, dots);
    } while (++pass < 2);
    Q3_UNROLL
    for (int h = 0; h < S::kParts; ++h) {
        const AffineScales<S> scales = affineScales<S, T>(group, index * kInfo.pieces + Piece, h);
        Q3_UNROLL
        for (int r = 0; r < R; ++r) {
            typename S::F &total = products.sum[r][p][h];
            const typename S::F x_scale = S::broadcast(x.scales + r);
            const auto sum = static_cast<float>(affineSum<X, kInfo.pieces, Piece>(x.offsets[r]));
            typename S::F dot = S::toFloat(dots[r][h]);
            if constexpr (kOwnZero) {  // both terms are exact, and their difference is rounded once
                dot = S::fma(scales.zero, S::set(-sum), dot);
            }
            total = S::fma(dot, S::mul(scales.scale, x_scale), total);
            if constexpr (kInfo.minimum) {
                total = S::fma(S::set(-sum), S::mul(scales.minimum, x_scale), total);
            }
        }
    }
}

// Where a panel's row is one vector, numbers of rows between 6 and the most are two tiles of a panel, which the second
// finds in cache: that is faster than one tile of 7 to 11 rows, and half as much to compile.
template <typename S> constexpr bool kHalves = S::kParts == 1;

template <typename S, WeightFormat T, CodeWidth X> struct AffinePanelCall {
    const char *panels;
    size_t panel_bytes;
    uint32_t npanels, runs;  // runs of 32 k
    const QuantRows &x;
    float *y;
    size_t ldy;
    bool accumulate;

    static constexpr int kHalfTile = 6;
    static constexpr bool inHalves(int rows) { return kHalves<S> && rows > kHalfTile && rows < S::kTileRows; }

    // Full tiles meet one panel anyway, mostly from cache: requests that are that far ahead cost them a tenth.
    static constexpr bool kStreams = S::kParts == 1;
    template <int R> void call() const {
        forPanelGroups<R, kStreams ? 1 : panelsAtOnce<S, R>(R * S::kParts)>(npanels, *this);
    }
    template <int R, int P> void tiles(uint32_t first, uint32_t apart) const {
        if constexpr (inHalves(R)) {
            tile<kHalfTile, P>(first, apart);
            const QuantRows rest = x.from(kHalfTile, 0);
            AffinePanelCall{panels, panel_bytes, npanels, runs, rest, y + kHalfTile * ldy, ldy, accumulate}
                .template tile<R - kHalfTile, P>(first, apart);
        } else {
            tile<R, P>(first, apart);
        }
    }

private:
    template <int R> static void ask(const char *weights, size_t bytes) {
        if constexpr (kStreams && R < S::kTileRows) {
            fetch<kOneStreamAhead>(weights, bytes);
        } else {
            fetchAhead<R, 0>(weights, bytes);
        }
    }

    template <int R, int P> void tile(uint32_t first, uint32_t apart) const {
        constexpr AffineInfo kInfo = affineOf(T);
        Products<S, R, P> products;
        float *out = y + first * kPanelRows;
        if (accumulate) {
            products.load(out, ldy, apart);
        }
        const char *group = panels + first * panel_bytes;
        const size_t stride = apart * panel_bytes;
        for (uint32_t run = 0; run < runs; run += kInfo.runs(), group += kInfo.groupBytes()) {
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                ask<R>(group + p * stride, kInfo.headBytes());
            }
            for (uint32_t i = 0; i < kInfo.runs() && run + i < runs; ++i) {
                const QuantRows at = x.from(0, run + i);
                Q3_UNROLL
                for (int p = 0; p < P; ++p) {
                    const char *panel = group + p * stride;
                    ask<R>(panel + kInfo.headBytes() + i * kInfo.runBytes(), kInfo.runBytes());
                    addAffinePiece<S, T, X, 0>(panel, i, at, p, products);
                    if constexpr (kInfo.pieces == 2) {
                        addAffinePiece<S, T, X, 1>(panel, i, at, p, products);
                    }
                }
            }
        }
        products.store(out, ldy, apart);
    }
};

template <typename S, WeightFormat T, CodeWidth X>
void multiplyAffinePanels(const void *panels, size_t panel_bytes, uint32_t npanels, uint32_t runs, const QuantRows &x,
                          uint32_t rows, float *y, size_t ldy, bool accumulate) {
    withRows<S::kTileRows>(rows, AffinePanelCall<S, T, X>{static_cast<const char *>(panels), panel_bytes, npanels, runs,
                                                          x, y, ldy, accumulate});
}

template <typename S> constexpr AffineKernels affineKernels() {
    AffineKernels kernels{};
    kernels.full_tiles = kHalves<S>;
    forEachFormat([&](auto format) {
        constexpr WeightFormat T = decltype(format)::value;
        if constexpr (isAffine(T)) {
            kernels.of[k8Bits][T] = multiplyAffinePanels<S, T, k8Bits>;
        }
        if constexpr (affineOf(T).takesWideCodes()) {
            kernels.of[k16Bits][T] = multiplyAffinePanels<S, T, k16Bits>;
        }
    });
    return kernels;
}

}  // namespace
}  // namespace q3::cpu
