// Traits of AVX-512 with VNNI and BF16: pairs of bf16 are multiplied and added by one instruction.
#pragma once

#include "ops/cpu/kernels/simd_avx512vnni.h"

namespace q3::cpu {
namespace {

struct Avx512Bf16 : Avx512Vnni {
    static constexpr bool kDotsBf16 = true;
    static I broadcastBits(const char *p) { return broadcastPair(p); }
    static F dotBf16(F sum, I w, I x) {
        return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
    }
};

}  // namespace
}  // namespace q3::cpu
