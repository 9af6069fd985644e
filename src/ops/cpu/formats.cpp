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
    case DType::kU4:
    case DType::kGgufQ4_0:
        return kA4;
    case DType::kI8:
    case DType::kU8:
    case DType::kGgufQ5_0:
    case DType::kGgufQ8_0:
    case DType::kGgufIq4Nl:
        return kA8;
    case DType::kF8E4m3:
        return kF8;
    case DType::kGgufQ4_1:
    case DType::kGgufQ5_1:
        return kAg;
    case DType::kGgufQ4K:
        return kK4;
    case DType::kGgufQ5K:
        return kK5;
    case DType::kGgufQ6K:
        return kK6;
    case DType::kGgufQ2K:
    case DType::kGgufQ3K:
    case DType::kGgufIq4Xs:
        return kK8;
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
