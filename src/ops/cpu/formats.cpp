#include "ops/cpu/formats.h"

#include "ops/half.h"
#include "ops/types.h"

namespace q3::cpu {

WeightFormat formatOf(DType dtype) {
    switch (dtype) {
    case DType::kF32:
        return kF32;
    case DType::kF16:
        return kF16;
    case DType::kInt8:
        return kQ8;
    case DType::kInt4:
    case DType::kInt4Mixed:
        return kQ4;
    case DType::kBf12:
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
