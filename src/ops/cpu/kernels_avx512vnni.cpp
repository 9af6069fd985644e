// AVX-512 with VNNI: the integer products of quantised layers are one instruction each.
#include "ops/cpu/simd_avx512.h"

namespace q3::cpu {
namespace {

struct Avx512Vnni : Avx512 {
    static I dotPairs(I sum, H a, H b) { return _mm512_dpwssd_epi32(sum, a, b); }
};

}  // namespace

const Kernels kAvx512VnniKernels = simdTable<Avx512Vnni>("avx512vnni");

}  // namespace q3::cpu
