#include "ops/types.h"

namespace q3 {

const char *dtypeName(DType dtype) {
    switch (dtype) {
    case DType::kF16:
        return "f16";
    case DType::kBf16:
        return "bf16";
    case DType::kF32:
        return "f32";
    case DType::kInt8:
        return "int8";
    case DType::kInt4:
        return "int4";
    case DType::kInt4Mixed:
        return "int4-mixed";
    case DType::kBf12:
        return "bf12";
    case DType::kI8:
        return "i8";
    case DType::kU8:
        return "u8";
    case DType::kU4:
        return "u4";
    case DType::kF8E4m3:
        return "f8-e4m3";
    case DType::kF8E8m0:
        return "f8-e8m0";
    case DType::kGgufQ4_0:
        return "q4_0";
    case DType::kGgufQ4_1:
        return "q4_1";
    case DType::kGgufQ5_0:
        return "q5_0";
    case DType::kGgufQ5_1:
        return "q5_1";
    case DType::kGgufQ8_0:
        return "q8_0";
    case DType::kGgufQ2K:
        return "q2_k";
    case DType::kGgufQ3K:
        return "q3_k";
    case DType::kGgufQ4K:
        return "q4_k";
    case DType::kGgufQ5K:
        return "q5_k";
    case DType::kGgufQ6K:
        return "q6_k";
    case DType::kGgufIq4Nl:
        return "iq4_nl";
    case DType::kGgufIq4Xs:
        return "iq4_xs";
    default:
        return "invalid";
    }
}

const char *activationsName(Activations activations) {
    switch (activations) {
    case Activations::kAuto:
        return "auto";
    case Activations::kF32:
        return "f32";
    case Activations::kBf16x2:
        return "bf16x2";
    case Activations::kBf16:
        return "bf16";
    case Activations::kInt16:
        return "int16";
    case Activations::kInt8:
        return "int8";
    }
    return "invalid";
}

}  // namespace q3
