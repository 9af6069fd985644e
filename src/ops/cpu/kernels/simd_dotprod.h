// Traits of NEON with dot products of bytes (SDOT), both signed.
#pragma once

#include "ops/cpu/kernels/simd_neon.h"

namespace q3::cpu {
namespace {

struct NeonDotprod : Neon {
    static constexpr bool kByteDots = true, kSignedBytes = true;
    // This is assembly because compilers load all rows' values ahead of the products, and then run out of registers.
    static B broadcastQuad(const char *p) {
        const auto *quad = reinterpret_cast<const int8_t (*)[4]>(p);
        int8x16_t out;
        asm volatile("ld1r {%0.4s}, %1" : "=w"(out) : "Q"(*quad));
        return out;
    }
    static B makeSigned(B v) { return veorq_s8(v, vdupq_n_s8(-128)); }
    static I dotBytes(I sum, B w, B x) { return vdotq_s32(sum, w, x); }
};

}  // namespace
}  // namespace q3::cpu
