// Kernels of the affine formats, in an object of their own: they take longer to compile than all others.
#include "ops/cpu/kernels/simd_affine.h"
#include "ops/cpu/kernels/simd_neon.h"

namespace q3::cpu {

const AffineKernels kNeonAffine = affineKernels<Neon>();

}  // namespace q3::cpu
