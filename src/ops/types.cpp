#include "ops/types.h"

namespace q3 {

const char *dtypeName(int32_t dtype) {
    switch (dtype) {
    case QWEN3_DTYPE_F16:
        return "f16";
    case QWEN3_DTYPE_BF16:
        return "bf16";
    case QWEN3_DTYPE_F32:
        return "f32";
    case QWEN3_DTYPE_INT8:
        return "int8";
    case QWEN3_DTYPE_INT4:
        return "int4";
    case QWEN3_DTYPE_INT4_MIXED:
        return "int4-mixed";
    case QWEN3_DTYPE_BF12:
        return "bf12";
    default:
        return "invalid";
    }
}

}  // namespace q3
