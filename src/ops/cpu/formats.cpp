#include "ops/cpu/formats.h"

#include "ops/half.h"

namespace q3::cpu {

WeightFormat formatOf(int32_t dtype) {
    switch (dtype) {
    case QWEN3_DTYPE_F32:
        return kF32;
    case QWEN3_DTYPE_F16:
        return kF16;
    case QWEN3_DTYPE_INT8:
        return kQ8;
    case QWEN3_DTYPE_INT4:
    case QWEN3_DTYPE_INT4_MIXED:
        return kQ4;
    case QWEN3_DTYPE_BF12:
        return kBf12;
    default:
        return kBf16;
    }
}

uint16_t bf16Up(float value) {
    uint16_t half = floatToBf16(value);
    if (bf16ToFloat(half) < value) {
        ++half;
    }
    return half;
}

}  // namespace q3::cpu
