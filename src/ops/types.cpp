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
