// Plain types shared by the model and the backends. No ownership, no behaviour beyond size arithmetic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "infinicore_infer/models/qwen3.h"

namespace q3 {

inline constexpr size_t dtypeSize(int32_t dtype) {
    return dtype == QWEN3_DTYPE_F32 ? 4 : 2;
}
// Formats that exist only packed.
inline constexpr bool isPackedDType(int32_t dtype) {
    return dtype == QWEN3_DTYPE_INT8 || dtype == QWEN3_DTYPE_INT4 || dtype == QWEN3_DTYPE_INT4_MIXED ||
           dtype == QWEN3_DTYPE_BF12;
}
inline constexpr bool isFloatDType(int32_t dtype) {
    return dtype == QWEN3_DTYPE_F16 || dtype == QWEN3_DTYPE_BF16 || dtype == QWEN3_DTYPE_F32;
}
const char *
dtypeName(int32_t dtype);  // "f16", "bf16", "f32", "int8", "int4", "int4-mixed", "bf12"; "invalid" otherwise

// Checked copy of what the forward pass needs of Qwen3Meta and the rope options.
struct ModelConfig {
    uint32_t nlayer, d, nh, nkvh, dh, di, dctx, dvoc;
    float epsilon;
    int32_t dt_logits;
    uint32_t max_step_tokens;
    uint32_t qkvWidth() const { return (nh + 2 * nkvh) * dh; }
    uint32_t group() const { return nh / nkvh; }  // query heads per KV head
};

// Activations of one step in the backend's memory: row-major [max rows, width]. The element type is the backend's
// (float on CPU, dt_logits on InfiniCore).
struct Activation {
    void *data = nullptr;
    uint32_t width = 0;
};

// One request's share of a step. Its rows of the activations are [row, row + ntok).
struct Sequence {
    uint32_t row;
    uint32_t ntok;
    uint32_t pos;            // position of its first row; keys 0 .. pos + i are visible to row + i
    void *const *kv_blocks;  // [ceil((pos + ntok) / kvBlockTokens())] writable from block pos / kvBlockTokens() on
};

// Everything a backend needs to know about one step; built once, read by every op of the step. Host pointers, valid
// until the step ends.
struct StepPlan {
    uint32_t ntok = 0;
    const uint32_t *tokens = nullptr;  // [ntok]
    const float *rope_cos = nullptr;   // [ntok, dh / 2], attention scaling included
    const float *rope_sin = nullptr;   // [ntok, dh / 2]
    std::vector<Sequence> sequences;
};

}  // namespace q3
