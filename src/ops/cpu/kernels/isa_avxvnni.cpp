// AVX2 with VNNI in its encoding for 256 bits: client CPUs without AVX-512 (Alder Lake and later), Sierra Forest,
// Zen 5.
#include "ops/cpu/kernels/simd_avx2.h"

namespace q3::cpu {
namespace {

struct AvxVnni : Avx2 {
    static constexpr bool kByteDots = true;
    static I dotBytes(I sum, B w, B x) { return _mm256_dpbusd_avx_epi32(sum, w, x); }
};

}  // namespace

const KernelTable kAvxVnniKernels = simdTable<AvxVnni>("avxvnni", kAvx2Affine);

}  // namespace q3::cpu
