// NEON with SDOT (ARMv8.2-A's dotprod): Cortex-A76, Neoverse N1 and later.
#include "ops/cpu/kernels/simd_dotprod.h"

namespace q3::cpu {

const KernelTable kNeonDotprodKernels = simdTable<NeonDotprod>("neon-dotprod", kNeonDotprodAffine);

}  // namespace q3::cpu
