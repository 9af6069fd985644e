// Traits of AVX-512 with VNNI: the integer products of quantised layers are one instruction each.
#pragma once

#include "ops/cpu/kernels/simd_avx512.h"

namespace q3::cpu {
namespace {

struct Avx512Vnni : Avx512 {
    static constexpr bool kByteDots = true, kDotsWide = true;
    static I dotBytes(I sum, B w, B x) { return _mm512_dpbusd_epi32(sum, w, x); }
};

}  // namespace
}  // namespace q3::cpu
