// Row kernels (norms, softmax, activations, conversions) for one instruction set S, see simd_table.h. The last, partial
// vector of a row is loaded with zeros and stored in part.
#pragma once

#include "ops/cpu/kernels/kernels.h"
#include "ops/cpu/kernels/simd_bf16.h"
#include "ops/cpu/kernels/simd_float.h"

namespace q3::cpu {
namespace {

// Calls use(offset, count) for every vector of a row, count < kLanes for the last only.
template <typename S, typename Use> inline void forVectors(uint32_t n, const Use &use) {
    uint32_t i = 0;
    for (; i + S::kLanes <= n; i += S::kLanes) {
        use(i, S::kLanes);
    }
    if (i < n) {
        use(i, n - i);
    }
}

template <typename S> inline typename S::F loadPart(const float *p, uint32_t count) {
    return count == S::kLanes ? S::load(p) : S::loadFirst(p, count);
}

template <typename S> inline void storePart(float *p, typename S::F v, uint32_t count) {
    if (count == S::kLanes) {
        S::store(p, v);
    } else {
        S::storeFirst(p, v, count);
    }
}

// exp for x <= 88.3, about 2 ulp (Cephes' polynomial); anything below -87.3 gives the smallest normal number.
template <typename S> inline typename S::F expOf(typename S::F x) {
    using F = typename S::F;
    x = S::max(S::min(x, S::set(88.3762626647949F)), S::set(-87.3365478515625F));
    const F n = S::round(S::mul(x, S::set(1.44269504088896341F)));
    F r = S::fma(n, S::set(-0.693359375F), x);
    r = S::fma(n, S::set(2.12194440e-4F), r);
    F p = S::set(1.9875691500e-4F);
    p = S::fma(p, r, S::set(1.3981999507e-3F));
    p = S::fma(p, r, S::set(8.3334519073e-3F));
    p = S::fma(p, r, S::set(4.1665795894e-2F));
    p = S::fma(p, r, S::set(1.6666665459e-1F));
    p = S::fma(p, r, S::set(5.0000001201e-1F));
    p = S::fma(p, S::mul(r, r), S::add(r, S::set(1.0F)));
    const typename S::I power = S::template shiftLeft<23>(S::addInt(S::toInt(n), S::setInt(127)));
    return S::mul(p, S::fromBits(power));
}

template <typename S> void rmsnorm(float *out, const float *x, const float *weight, uint32_t n, float epsilon) {
    typename S::F sum = S::zero();
    forVectors<S>(n, [&](uint32_t i, uint32_t count) {
        const typename S::F v = loadPart<S>(x + i, count);
        sum = S::fma(v, v, sum);
    });
    const float mean = S::sumLanes(sum) / static_cast<float>(n);
    const typename S::F scale = S::set(1.0F / __builtin_sqrtf(mean + epsilon));
    forVectors<S>(n, [&](uint32_t i, uint32_t count) {
        const typename S::F v = S::mul(loadPart<S>(x + i, count), scale);
        storePart<S>(out + i, S::mul(v, loadPart<S>(weight + i, count)), count);
    });
}

template <typename S> void add(float *x, const float *delta, uint32_t n) {
    forVectors<S>(n, [&](uint32_t i, uint32_t count) {
        storePart<S>(x + i, S::add(loadPart<S>(x + i, count), loadPart<S>(delta + i, count)), count);
    });
}

template <typename S> void rope(float *x, const float *cos, const float *sin, uint32_t half) {
    forVectors<S>(half, [&](uint32_t i, uint32_t count) {
        const typename S::F low = loadPart<S>(x + i, count);
        const typename S::F high = loadPart<S>(x + half + i, count);
        const typename S::F c = loadPart<S>(cos + i, count);
        const typename S::F s = loadPart<S>(sin + i, count);
        storePart<S>(x + i, S::sub(S::mul(low, c), S::mul(high, s)), count);
        storePart<S>(x + half + i, S::fma(high, c, S::mul(low, s)), count);
    });
}

template <typename S> float max(const float *s, uint32_t n) {
    typename S::F best = S::set(s[0]);
    uint32_t i = 0;
    for (; i + S::kLanes <= n; i += S::kLanes) {
        best = S::max(best, S::load(s + i));
    }
    float result = S::maxLanes(best);
    for (; i < n; ++i) {
        result = s[i] > result ? s[i] : result;
    }
    return result;
}

template <typename S> float expSum(float *s, uint32_t n, float shift) {
    const typename S::F subtract = S::set(shift);
    typename S::F sum = S::zero();
    forVectors<S>(n, [&](uint32_t i, uint32_t count) {
        const typename S::F e = expOf<S>(S::sub(loadPart<S>(s + i, count), subtract));
        storePart<S>(s + i, e, count);
        sum = S::add(sum, count == S::kLanes ? e : S::loadFirst(s + i, count));  // without the lanes beyond n
    });
    return S::sumLanes(sum);
}

// exp for what is rounded to bf16 afterwards, x <= 0, within 2^-14.
template <typename S> inline typename S::F expRoughly(typename S::F x) {
    if constexpr (S::kScales) {
        const typename S::F power = S::mul(x, S::set(1.44269504088896341F));
        const typename S::F n = S::round(power);
        const typename S::F r = S::sub(power, n);  // 2^r by Taylor's series, |r| <= 1/2
        typename S::F p = S::set(1.3333558146e-3F);
        p = S::fma(p, r, S::set(9.6181291076e-3F));
        p = S::fma(p, r, S::set(5.5504108665e-2F));
        p = S::fma(p, r, S::set(2.4022650696e-1F));
        p = S::fma(p, r, S::set(6.9314718056e-1F));
        p = S::fma(p, r, S::set(1.0F));
        return S::scale(p, n);
    } else {
        return expOf<S>(x);
    }
}

template <typename S> float expRound(const float *s, uint32_t count, float shift, uint32_t n, char *out) {
    const typename S::F subtract = S::set(shift);
    typename S::F sum = S::zero();
    const auto store = [&](uint32_t i, typename S::F e) Q3_INLINE {
        storePiece<S, 1>(out + size_t{i} / 2 * kPairBytes<S>, 0, nearestBf16<S>(e));
        sum = S::add(sum, e);
    };
    uint32_t i = 0;
    for (; i + S::kLanes <= count; i += S::kLanes) {
        store(i, expRoughly<S>(S::sub(S::load(s + i), subtract)));
    }
    if (i < count) {  // the lanes beyond count become zeros
        float part[S::kLanes];
        S::store(part, expRoughly<S>(S::sub(S::loadFirst(s + i, count - i), subtract)));
        store(i, S::loadFirst(part, count - i));
        i += S::kLanes;
    }
    for (; i < roundUp(n, kGroup); i += S::kLanes) {
        store(i, S::zero());
    }
    return S::sumLanes(sum);
}

template <typename S> void siluMul(float *out, const float *gate, const float *up, uint32_t n) {
    forVectors<S>(n, [&](uint32_t i, uint32_t count) {
        const typename S::F g = loadPart<S>(gate + i, count);
        const typename S::F e = expOf<S>(S::sub(S::zero(), g));
        const typename S::F silu = S::div(g, S::add(S::set(1.0F), e));
        storePart<S>(out + i, S::mul(silu, loadPart<S>(up + i, count)), count);
    });
}

inline void storeF32(void *out, const float *in, uint32_t n) {
    __builtin_memcpy(out, in, n * sizeof(float));
}

// Converts kLanes floats at a time into a scratch and copies what is wanted.
template <typename S, typename Convert>
inline void storeHalves(void *out, const float *in, uint32_t n, const Convert &convert) {
    forVectors<S>(n, [&](uint32_t i, uint32_t count) {
        uint16_t lanes[S::kLanes];
        convert(lanes, loadPart<S>(in + i, count));
        uint16_t *to = static_cast<uint16_t *>(out) + i;
        if (count == S::kLanes) {
            __builtin_memcpy(to, lanes, sizeof lanes);
        } else {
            for (uint32_t j = 0; j < count; ++j) {
                to[j] = lanes[j];
            }
        }
    });
}

template <typename S, WeightFormat T> void loadFloats(float *out, const void *in, uint32_t n) {
    uint32_t i = 0;
    for (; i + S::kLanes <= n; i += S::kLanes) {
        S::store(out + i, loadPlain<S, T>(in, i));
    }
    if (i < n) {
        constexpr size_t size = elementBytes(T);
        char padded[S::kLanes * size] = {};
        __builtin_memcpy(padded, static_cast<const char *>(in) + i * size, (n - i) * size);
        S::storeFirst(out + i, loadPlain<S, T>(padded, 0), n - i);
    }
}

template <typename S>
void loadCodes(float *out, const void *in, const uint16_t *scales, uint32_t rows, bool per_column) {
    typename S::F column[S::kParts];
    for (int h = 0; h < S::kParts && per_column; ++h) {
        column[h] = S::loadBf16(scales + h * S::kLanes);
    }
    const char *codes = static_cast<const char *>(in);
    for (uint32_t i = 0; i < rows; ++i) {
        if (!per_column) {
            const uint32_t bits = uint32_t{scales[i]} << 16;
            float scale;
            __builtin_memcpy(&scale, &bits, sizeof scale);
            for (int h = 0; h < S::kParts; ++h) {
                column[h] = S::set(scale);
            }
        }
        for (int h = 0; h < S::kParts; ++h) {
            const size_t at = size_t{i} * kPanelRows + h * S::kLanes;
            S::store(out + at, S::mul(S::loadInt8(codes + at), column[h]));
        }
    }
}

template <typename S> void storeF16(void *out, const float *in, uint32_t n) {
    storeHalves<S>(out, in, n, [](uint16_t *lanes, typename S::F v) {
        // The operand order keeps a NaN a NaN.
        S::toF16(lanes, S::max(S::set(-65504.0F), S::min(S::set(65504.0F), v)));
    });
}

template <typename S> void storeBf16(void *out, const float *in, uint32_t n) {
    storeHalves<S>(out, in, n, [](uint16_t *lanes, typename S::F v) {
        S::narrow(reinterpret_cast<int16_t *>(lanes), S::template shiftRight<16>(nearestBf16<S>(v)));
    });
}

}  // namespace
}  // namespace q3::cpu
