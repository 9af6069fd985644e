// NEON that every ARMv8-A has.
#include "ops/cpu/kernels/simd_neon.h"

namespace q3::cpu {

const KernelTable kNeonKernels = simdTable<Neon>("neon", kNeonAffine);

}  // namespace q3::cpu
