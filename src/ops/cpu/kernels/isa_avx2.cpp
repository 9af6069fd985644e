// AVX2 with FMA and F16C: Haswell, Zen and later.
#include "ops/cpu/kernels/simd_avx2.h"

namespace q3::cpu {

const KernelTable kAvx2Kernels = simdTable<Avx2>("avx2", kAvx2Affine);

}  // namespace q3::cpu
