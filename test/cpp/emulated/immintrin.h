// Stands in for the compiler's header when AVX-512 kernels are tested on a CPU without it: SIMDe (Debian's
// libsimde-dev) computes the intrinsics in portable C. The few that version 0.7.4 lacks or has wrong are spelled out
// below, lane by lane as the instruction set reference has them.
#pragma once

#define SIMDE_NO_NATIVE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <math.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

#include "amx.h"

#define _MM_FROUND_NO_EXC 0x08
using __mmask16 = simde__mmask16;
using __mmask32 = simde__mmask32;
using __mmask64 = simde__mmask64;

template <typename To, typename From> inline To bitsAs(const From &from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

template <typename T, int N> struct Lanes {
    T lane[N];
};
using Floats = Lanes<float, 16>;
using Ints = Lanes<int32_t, 16>;
using Shorts = Lanes<int16_t, 32>;

inline __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const float *p) {
    Floats out = {};
    for (int i = 0; i < 16; ++i) {
        if ((mask >> i & 1) != 0) {
            out.lane[i] = p[i];
        }
    }
    return bitsAs<__m512>(out);
}

inline void _mm512_mask_storeu_ps(float *p, __mmask16 mask, __m512 v) {
    const auto in = bitsAs<Floats>(v);
    for (int i = 0; i < 16; ++i) {
        if ((mask >> i & 1) != 0) {
            p[i] = in.lane[i];
        }
    }
}

inline __mmask32 _mm512_cmplt_epu16_mask(__m512i a, __m512i b) {
    const auto x = bitsAs<Lanes<uint16_t, 32>>(a);
    const auto y = bitsAs<Lanes<uint16_t, 32>>(b);
    __mmask32 mask = 0;
    for (int i = 0; i < 32; ++i) {
        mask |= static_cast<__mmask32>(x.lane[i] < y.lane[i]) << i;
    }
    return mask;
}

inline float _mm512_reduce_add_ps(__m512 v) {
    auto s = bitsAs<Floats>(v);
    for (int width = 8; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) {
            s.lane[i] += s.lane[i + width];
        }
    }
    return s.lane[0];
}

inline float _mm512_reduce_max_ps(__m512 v) {
    const auto s = bitsAs<Floats>(v);
    float largest = s.lane[0];
    for (const float value : s.lane) {
        largest = value > largest ? value : largest;
    }
    return largest;
}

inline int32_t _mm512_reduce_add_epi32(__m512i v) {
    int32_t sum = 0;
    for (const int32_t value : bitsAs<Ints>(v).lane) {
        sum += value;
    }
    return sum;
}

inline int32_t _mm512_reduce_max_epi32(__m512i v) {
    const auto s = bitsAs<Ints>(v);
    int32_t largest = s.lane[0];
    for (const int32_t value : s.lane) {
        largest = value > largest ? value : largest;
    }
    return largest;
}

inline __m512i _mm512_srai_epi32(__m512i v, unsigned count) {
    auto s = bitsAs<Ints>(v);
    for (int32_t &value : s.lane) {
        value >>= count;
    }
    return bitsAs<__m512i>(s);
}

enum _MM_PERM_ENUM { _MM_PERM_NONE };
inline __m512i _mm512_shuffle_epi32(__m512i v, _MM_PERM_ENUM places) {
    const auto in = bitsAs<Ints>(v);
    Ints out;
    for (int i = 0; i < 16; ++i) {
        out.lane[i] = in.lane[i / 4 * 4 + (places >> (i % 4 * 2) & 3)];
    }
    return bitsAs<__m512i>(out);
}

inline __m512 _mm512_cvtepi32_ps(__m512i v) {
    const auto in = bitsAs<Ints>(v);
    Floats out;
    for (int i = 0; i < 16; ++i) {
        out.lane[i] = static_cast<float>(in.lane[i]);
    }
    return bitsAs<__m512>(out);
}

inline __m512i _mm512_cvtps_epi32(__m512 v) {
    const auto in = bitsAs<Floats>(v);
    Ints out;
    for (int i = 0; i < 16; ++i) {
        out.lane[i] = fabsf(in.lane[i]) < 2147483648.0F ? static_cast<int32_t>(nearbyintf(in.lane[i])) : INT32_MIN;
    }
    return bitsAs<__m512i>(out);
}

inline __m256i _mm512_cvtepi32_epi16(__m512i v) {
    const auto in = bitsAs<Ints>(v);
    Lanes<int16_t, 16> out;
    for (int i = 0; i < 16; ++i) {
        out.lane[i] = static_cast<int16_t>(in.lane[i]);
    }
    return bitsAs<__m256i>(out);
}

inline __m512i _mm512_cvtepu16_epi32(__m256i v) {
    const auto in = bitsAs<Lanes<uint16_t, 16>>(v);
    Ints out;
    for (int i = 0; i < 16; ++i) {
        out.lane[i] = in.lane[i];
    }
    return bitsAs<__m512i>(out);
}

inline __m512i _mm512_cvtepi8_epi32(__m128i v) {
    const auto in = bitsAs<Lanes<int8_t, 16>>(v);
    Ints out;
    for (int i = 0; i < 16; ++i) {
        out.lane[i] = in.lane[i];
    }
    return bitsAs<__m512i>(out);
}

inline __m512 _mm512_cvtph_ps(__m256i v) {
    const auto halves = bitsAs<Lanes<__m128i, 2>>(v);
    const Lanes<__m256, 2> out = {{simde_mm256_cvtph_ps(halves.lane[0]), simde_mm256_cvtph_ps(halves.lane[1])}};
    return bitsAs<__m512>(out);
}

inline __m256i _mm512_cvtps_ph(__m512 v, int rounding) {
    const auto halves = bitsAs<Lanes<__m256, 2>>(v);
    const Lanes<__m128i, 2> out = {
        {simde_mm256_cvtps_ph(halves.lane[0], rounding), simde_mm256_cvtps_ph(halves.lane[1], rounding)}};
    return bitsAs<__m256i>(out);
}

#undef _mm512_fmadd_ps  // rounds twice
inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
    const auto x = bitsAs<Floats>(a);
    const auto y = bitsAs<Floats>(b);
    auto out = bitsAs<Floats>(c);
    for (int i = 0; i < 16; ++i) {
        out.lane[i] = fmaf(x.lane[i], y.lane[i], out.lane[i]);
    }
    return bitsAs<__m512>(out);
}

#undef _mm512_madd_epi16  // an alias with the arguments of another function
inline __m512i _mm512_madd_epi16(__m512i a, __m512i b) {
    const auto x = bitsAs<Shorts>(a);
    const auto y = bitsAs<Shorts>(b);
    Ints out;
    for (int i = 0; i < 16; ++i) {
        out.lane[i] = x.lane[2 * i] * y.lane[2 * i] + x.lane[2 * i + 1] * y.lane[2 * i + 1];
    }
    return bitsAs<__m512i>(out);
}

// Subnormal numbers as zeros of their sign, whatever MXCSR says.
inline float withoutSubnormal(float v) {
    return fabsf(v) < 0x1p-126F ? copysignf(0.0F, v) : v;
}

#undef _mm512_dpbf16_ps  // adds in another order
inline __m512 _mm512_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
    const auto x = bitsAs<Lanes<uint32_t, 16>>(a);
    const auto y = bitsAs<Lanes<uint32_t, 16>>(b);
    auto out = bitsAs<Floats>(sum);
    for (int i = 0; i < 16; ++i) {
        float lane = withoutSubnormal(out.lane[i]);
        for (const int shift : {0, 16}) {  // the odd element first
            const float left = withoutSubnormal(bitsAs<float>(x.lane[i] << shift & 0xffff0000U));
            const float right = withoutSubnormal(bitsAs<float>(y.lane[i] << shift & 0xffff0000U));
            lane = withoutSubnormal(fmaf(left, right, lane));
        }
        out.lane[i] = lane;
    }
    return bitsAs<__m512>(out);
}
