// The seam between the library and a backend in a shared object of its own, a module: one C table of functions.
//
// Both sides are compiled from one source tree, each with its own copy of the code it needs, so nothing static or
// thread-local is shared and no exception or type identity crosses. A call that fails returns its status; the text is
// in a buffer of the calling thread on the side that failed. The sides compare kLayout, so that their
// structures are the same. What one side allocates, that side frees.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>

#include "ops/backend.h"
#include "ops/stored.h"

namespace q3::module {

// Statuses are those of Qwen3Status, and this one, which says that another rank failed and has the reason
// (RankStopped).
inline constexpr int32_t kRankStopped = -1;

// An instance of the module's backend; only the module looks inside.
struct Instance;
struct Linear;
struct Norm;

// Elements [begin, end) of every buffers[rank] become their sum.
using SumFunction = void (*)(void *context, void *const *buffers, size_t begin, size_t end);

// What the library does for ranks that need each other. Valid as long as the instances that were made with it.
struct HostRanks {
    void *context;
    uint32_t size;                   // number of ranks
    int32_t (*meet)(void *context);  // returns when all ranks have come
    // RankBarrier and HostAllReduce in runtime/ranks.h say what these two do.
    int32_t (*sum)(void *context, uint32_t rank, void *data, size_t count, SumFunction sum, void *sum_context);
    const char *(*error)();  // the text of the calling thread's last failure of the two
};

// What does not change while an instance lives.
struct Facts {
    uint64_t kv_block_bytes;
    uint32_t kv_block_tokens;
    uint32_t threads;
    uint32_t shares_embedding;
    const char *description;  // Backend::description()
};

// Functions that return int32_t return a status; the others cannot fail. What they do stands in ops/backend.h and
// ops/ops.h at the methods of the same name.
struct Table {
    // --- These members are the same in every version, so that a module of another version can be recognised.
    uint32_t struct_size;
    uint32_t reserved;
    const char *version;  // QWEN3_VERSION_STRING of the source
    uint64_t layout;      // kLayout
    // --- What a module is: qwen3-doctor reads up to here.
    const char *infinicore;             // the InfiniCore whose headers it was compiled with: "0.1.0"
    const char *(*error)();             // the text of the calling thread's last failure
    int32_t (*load)(int32_t device);    // finds and loads InfiniCore; the device is for the text of errors
    const char *(*infinicoreFolder)();  // where load found it; "" before

    // --- set-up
    int32_t (*create)(const ModelConfig *config, const BackendOptions *options, const HostRanks *ranks,
                      Instance **instance);
    int32_t (*connect)(Instance *const *ranks, uint32_t nranks);  // once all are made
    void (*destroy)(Instance *instance);
    Facts (*facts)(const Instance *instance);
    uint64_t (*scratchBytes)(const Instance *instance);
    int32_t (*allocate)(Instance *instance, uint32_t rows, uint32_t width, Activation *activation);
    int32_t (*makeLinear)(Instance *instance, const LinearSource *source, Linear **linear, uint64_t *bytes);
    int32_t (*makeNorm)(Instance *instance, const NormSource *source, Norm **norm, uint64_t *bytes);
    int32_t (*makeEmbedding)(Instance *instance, const LinearSource *table, const Linear *const *heads, uint32_t nheads,
                             uint32_t borrow, Linear **embedding, uint64_t *bytes);
    void (*freeLinear)(Linear *linear);
    void (*freeNorm)(Norm *norm);

    // --- KV blocks
    int32_t (*allocateBlock)(Instance *instance, size_t bytes, void **block);
    void (*releaseBlock)(Instance *instance, void *block);
    int32_t (*copyBlock)(Instance *instance, void *dst, const void *src, size_t bytes);

    // --- a step
    int32_t (*beginStep)(Instance *instance, const StepPlan *plan);
    int32_t (*embed)(Instance *instance, Activation x, const Linear *table);
    int32_t (*addRmsnorm)(Instance *instance, Activation h, Activation x, Activation delta, const Norm *weight,
                          float epsilon);
    int32_t (*linear)(Instance *instance, Activation out, Activation in, const Linear *weight);
    int32_t (*qkNormRopeStore)(Instance *instance, Activation qkv, const Norm *q_norm, const Norm *k_norm,
                               float epsilon, uint32_t layer);
    int32_t (*attention)(Instance *instance, Activation out, Activation qkv, uint32_t layer);
    int32_t (*linearSwiglu)(Instance *instance, Activation act, Activation h, const Linear *gate_up);
    int32_t (*experts)(Instance *instance, Activation out, Activation h, const Linear *router, const Linear *gate_up,
                       const Linear *down);
    int32_t (*gatherRmsnorm)(Instance *instance, Activation out, Activation x, Activation delta, const uint32_t *rows,
                             uint32_t nrows, const Norm *weight, float epsilon);
    int32_t (*readLogits)(Instance *instance, float *logits, size_t ld, Activation in, uint32_t nrows,
                          const Linear *head);
    int32_t (*readRows)(Instance *instance, float *out, Activation in, uint32_t nrows);
    int32_t (*allReduceSum)(Instance *instance, Activation x);
};

// The one symbol of a module, a TableFunction.
inline constexpr char kEntry[] = "infinicore_infer_module";
using TableFunction = const Table *(*)();

// A number that differs when a structure that both sides read does.
constexpr uint64_t layoutOf(std::initializer_list<size_t> numbers) {
    uint64_t hash = 0xcbf29ce484222325ULL;
    for (const size_t number : numbers) {
        hash = (hash ^ number) * 0x100000001b3ULL;
    }
    return hash;
}

inline constexpr uint64_t kLayout = layoutOf({
    sizeof(Table),
    sizeof(void *),
    sizeof(std::vector<HostMatrix>),
    sizeof(ModelConfig),
    offsetof(ModelConfig, epsilon),
    offsetof(ModelConfig, max_step_tokens),
    offsetof(ModelConfig, nexperts),
    offsetof(ModelConfig, norm_topk),
    sizeof(BackendOptions),
    offsetof(BackendOptions, device),
    offsetof(BackendOptions, device_id),
    offsetof(BackendOptions, nthreads),
    offsetof(BackendOptions, dt_weight),
    offsetof(BackendOptions, dt_kv),
    offsetof(BackendOptions, activations),
    offsetof(BackendOptions, kv_limit_bytes),
    offsetof(BackendOptions, rank),
    sizeof(HostMatrix),
    offsetof(HostMatrix, dtype),
    offsetof(HostMatrix, rows),
    offsetof(HostMatrix, row_stride),
    offsetof(HostMatrix, col_stride),
    offsetof(HostMatrix, bias),
    offsetof(HostMatrix, bias_dtype),
    sizeof(StoredMatrix),
    offsetof(StoredMatrix, groups),
    sizeof(LinearSource),
    offsetof(LinearSource, layer),
    offsetof(LinearSource, parts),
    offsetof(LinearSource, rope_rows),
    offsetof(LinearSource, precision),
    offsetof(LinearSource, experts),
    sizeof(NormSource),
    offsetof(NormSource, dtype),
    offsetof(NormSource, data),
    offsetof(NormSource, size),
    offsetof(NormSource, rope),
    sizeof(Activation),
    offsetof(Activation, width),
    sizeof(Sequence),
    offsetof(Sequence, pos),
    offsetof(Sequence, kv_blocks),
    sizeof(StepPlan),
    offsetof(StepPlan, tokens),
    offsetof(StepPlan, rope_cos),
    offsetof(StepPlan, sequences),
    sizeof(HostRanks),
    sizeof(Facts),
});

// ---------------------------------------------------------------- errors, on either side

// Turns the exception that is being handled into a status, and keeps its text for lastError.
int32_t caught() noexcept;
const char *lastError() noexcept;  // of this thread and this side

template <class Body> int32_t guarded(const Body &body) noexcept {
    try {
        body();
        return QWEN3_STATUS_SUCCESS;
    } catch (...) {
        return caught();
    }
}

// Throws what the other side caught: RankStopped, or an Error with that status and text. Nothing for SUCCESS.
void rethrow(int32_t status, const char *(*error)());

}  // namespace q3::module
