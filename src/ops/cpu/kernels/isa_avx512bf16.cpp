// AVX-512 with VNNI, BF16 and VBMI: Zen 4, Sapphire Rapids and later. (Cooper Lake has no VBMI.)
#include "ops/cpu/kernels/simd_f8_lookup.h"

namespace q3::cpu {

namespace {

constexpr KernelTable bf16Table() {
    KernelTable table = simdTable<Avx512Bf16>("avx512bf16", kAvx512VnniAffine);
    table.expandF8 = expandF8Lookup;
    return table;
}

}  // namespace

const KernelTable kAvx512Bf16Kernels = bf16Table();

}  // namespace q3::cpu
