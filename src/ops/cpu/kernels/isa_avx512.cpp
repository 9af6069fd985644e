// AVX-512 without VNNI: Skylake-X and its like.
#include "ops/cpu/kernels/simd_avx512.h"

namespace q3::cpu {

const KernelTable kAvx512Kernels = simdTable<Avx512>("avx512", kAvx512Affine);

}  // namespace q3::cpu
