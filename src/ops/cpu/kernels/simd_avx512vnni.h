// Traits of AVX-512 with VNNI: the integer products of quantised layers are one instruction each.
#pragma once

#include "ops/cpu/kernels/simd_avx512.h"

namespace q3::cpu {
namespace {

struct Avx512Vnni : Avx512 {
    static I dotPairs(I sum, H a, H b) { return _mm512_dpwssd_epi32(sum, a, b); }
    static Q dotQuads(Q sum, B w, B x) { return _mm512_dpbusd_epi32(sum, w, x); }
    static constexpr bool kDotsWide = true;
    static I dotBytes(I sum, B w, B x) { return _mm512_dpbusd_epi32(sum, w, x); }
    static I totalQuads(Q sum) { return sum; }
};

}  // namespace
}  // namespace q3::cpu
