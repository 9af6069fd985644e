// AVX-512 with VNNI and BF16: Zen 4, Cooper Lake and later.
#include "ops/cpu/kernels/simd_avx512bf16.h"

namespace q3::cpu {

const KernelTable kAvx512Bf16Kernels = simdTable<Avx512Bf16>("avx512bf16", kAvx512VnniAffine);

}  // namespace q3::cpu
