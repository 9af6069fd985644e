// AVX-512 with VNNI: Ice Lake, Zen 4 and later.
#include "ops/cpu/kernels/simd_avx512vnni.h"

namespace q3::cpu {

const KernelTable kAvx512VnniKernels = simdTable<Avx512Vnni>("avx512vnni", kAvx512VnniAffine);

}  // namespace q3::cpu
