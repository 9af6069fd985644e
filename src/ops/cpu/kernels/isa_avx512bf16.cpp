// AVX-512 with VNNI, BF16 and VBMI: Zen 4, Sapphire Rapids and later. (Cooper Lake has no VBMI.)
#include "ops/cpu/kernels/simd_avx512bf16.h"

namespace q3::cpu {

const KernelTable kAvx512Bf16Kernels = simdTable<Avx512Bf16>("avx512bf16", kAvx512VnniAffine);

}  // namespace q3::cpu
