// Plain types shared by the model and the backends. No ownership, no behaviour beyond size arithmetic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "infinicore_infer/models/qwen3.h"

namespace q3 {

// The public enums as the library knows them inside. Their values are the public ones; src/api alone turns a caller's
// int32_t into them, after it has checked it.
enum class DType : int32_t {
    kDefault = QWEN3_DTYPE_DEFAULT,  // where an option allows it: the backend chooses
    kF16 = QWEN3_DTYPE_F16,
    kF32 = QWEN3_DTYPE_F32,
    kBf16 = QWEN3_DTYPE_BF16,
    // Formats that exist only packed.
    kInt8 = QWEN3_DTYPE_INT8,
    kInt4 = QWEN3_DTYPE_INT4,
    kBf12 = QWEN3_DTYPE_BF12,
    kInt4Mixed = QWEN3_DTYPE_INT4_MIXED,
    // What quantised checkpoints store (ops/stored.h).
    kI8 = QWEN3_DTYPE_I8,
    kU8 = QWEN3_DTYPE_U8,
    kU4 = QWEN3_DTYPE_U4,
    kF8E4m3 = QWEN3_DTYPE_F8_E4M3,
    kF8E8m0 = QWEN3_DTYPE_F8_E8M0,
    kGgufQ4_0 = QWEN3_DTYPE_GGUF_Q4_0,
    kGgufQ4_1 = QWEN3_DTYPE_GGUF_Q4_1,
    kGgufQ5_0 = QWEN3_DTYPE_GGUF_Q5_0,
    kGgufQ5_1 = QWEN3_DTYPE_GGUF_Q5_1,
    kGgufQ8_0 = QWEN3_DTYPE_GGUF_Q8_0,
    kGgufQ2K = QWEN3_DTYPE_GGUF_Q2_K,
    kGgufQ3K = QWEN3_DTYPE_GGUF_Q3_K,
    kGgufQ4K = QWEN3_DTYPE_GGUF_Q4_K,
    kGgufQ5K = QWEN3_DTYPE_GGUF_Q5_K,
    kGgufQ6K = QWEN3_DTYPE_GGUF_Q6_K,
    kGgufIq4Nl = QWEN3_DTYPE_GGUF_IQ4_NL,
    kGgufIq4Xs = QWEN3_DTYPE_GGUF_IQ4_XS,
};

enum class DeviceType : int32_t {
    kCpu = QWEN3_DEVICE_CPU,
    kNvidia = QWEN3_DEVICE_NVIDIA,
    kCambricon = QWEN3_DEVICE_CAMBRICON,
    kAscend = QWEN3_DEVICE_ASCEND,
    kMetax = QWEN3_DEVICE_METAX,
    kMoore = QWEN3_DEVICE_MOORE,
    kIluvatar = QWEN3_DEVICE_ILUVATAR,
    kKunlun = QWEN3_DEVICE_KUNLUN,
    kHygon = QWEN3_DEVICE_HYGON,
    kQy = QWEN3_DEVICE_QY,
    kAli = QWEN3_DEVICE_ALI,
};

enum class BackendKind : int32_t {
    kAuto = QWEN3_BACKEND_AUTO,  // the CPU's own kernels on the CPU, InfiniCore on every other device
    kCpu = QWEN3_BACKEND_CPU,
    kInfinicore = QWEN3_BACKEND_INFINICORE,
};

// How exactly activations are kept where weights are multiplied with them.
enum class Activations : int32_t {
    kAuto = QWEN3_ACTIVATIONS_AUTO,
    kF32 = QWEN3_ACTIVATIONS_F32,
    kBf16x2 = QWEN3_ACTIVATIONS_BF16X2,
    kBf16 = QWEN3_ACTIVATIONS_BF16,
    kInt16 = QWEN3_ACTIVATIONS_INT16,
    kInt8 = QWEN3_ACTIVATIONS_INT8,
};

// Bytes of an element in the caller's memory; of float dtypes only.
inline constexpr size_t dtypeSize(DType dtype) {
    return dtype == DType::kF32 ? 4 : 2;
}
inline constexpr bool isPackedDType(DType dtype) {
    return dtype == DType::kInt8 || dtype == DType::kInt4 || dtype == DType::kInt4Mixed || dtype == DType::kBf12;
}
inline constexpr bool isFloatDType(DType dtype) {
    return dtype == DType::kF16 || dtype == DType::kBf16 || dtype == DType::kF32;
}
// "f16", "bf16", "f32", "int8", "int4", "int4-mixed", "bf12", "f8-e4m3", "q4_k", ...; "invalid" for kDefault
const char *dtypeName(DType dtype);
// "auto", "f32", "bf16x2", "bf16", "int16", "int8"
const char *activationsName(Activations activations);

// Checked copy of what the forward pass needs of Qwen3Meta and the rope options.
struct ModelConfig {
    uint32_t nlayer, d, nh, nkvh, dh, di, dctx, dvoc;
    float epsilon;
    DType dt_logits;
    uint32_t max_step_tokens;
    // Of layers with experts; all 0 in a dense model.
    uint32_t nexperts, nused;  // experts of a layer, and how many of them a token goes through
    uint32_t dm;               // MLP size of an expert
    bool norm_topk;            // the weights of a token's experts are divided by their sum
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
