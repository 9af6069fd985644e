// Kernels of the affine formats, in an object of their own: they take longer to compile than all others.
#include "ops/cpu/kernels/simd_affine.h"
#include "ops/cpu/kernels/simd_avx512vnni.h"

namespace q3::cpu {

const AffineKernels kAvx512VnniAffine = affineKernels<Avx512Vnni>();

}  // namespace q3::cpu
