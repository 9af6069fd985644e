#include "ops/module/export.h"

#include <string>

#include "infinicore_infer/models/qwen3.h"

namespace q3::module {

struct Instance {
    std::unique_ptr<Backend> backend;
    std::string description;
};

struct Linear {
    std::shared_ptr<PackedLinear> packed;
};

struct Norm {
    std::unique_ptr<PackedNorm> packed;
};

namespace {

Exports the_exports;

int32_t load(int32_t device) {
    return guarded([&] { the_exports.load(device); });
}

// ---------------------------------------------------------------- set-up

int32_t create(const ModelConfig *config, const BackendOptions *options, const HostRanks *ranks, Instance **instance) {
    return guarded([&] {
        auto made = std::make_unique<Instance>();
        made->backend = the_exports.create(*config, *options, *ranks);
        made->description = made->backend->description();
        *instance = made.release();
    });
}

int32_t connect(Instance *const *ranks, uint32_t nranks) {
    return guarded([&] {
        std::vector<Backend *> backends(nranks);
        for (uint32_t rank = 0; rank < nranks; ++rank) {
            backends[rank] = ranks[rank]->backend.get();
        }
        the_exports.connect(backends);
    });
}

void destroy(Instance *instance) {
    delete instance;
}

Facts facts(const Instance *instance) {
    const Backend &backend = *instance->backend;
    return {backend.kvBlockBytes(), backend.kvBlockTokens(), backend.threads(), backend.sharesEmbedding() ? 1U : 0U,
            instance->description.c_str()};
}

uint64_t scratchBytes(const Instance *instance) {
    return instance->backend->scratchBytes();
}

int32_t allocate(Instance *instance, uint32_t rows, uint32_t width, Activation *activation) {
    return guarded([&] { *activation = instance->backend->allocate(rows, width); });
}

int32_t makeLinear(Instance *instance, const LinearSource *source, Linear **linear, uint64_t *bytes) {
    return guarded([&] {
        auto made = std::make_unique<Linear>();
        made->packed = instance->backend->makeLinear(*source, nullptr);
        *bytes = made->packed->bytes();
        *linear = made.release();
    });
}

int32_t makeNorm(Instance *instance, const NormSource *source, Norm **norm, uint64_t *bytes) {
    return guarded([&] {
        auto made = std::make_unique<Norm>();
        made->packed = instance->backend->makeNorm(*source, nullptr);
        *bytes = made->packed->bytes();
        *norm = made.release();
    });
}

int32_t makeEmbedding(Instance *instance, const LinearSource *table, const Linear *const *heads, uint32_t nheads,
                      uint32_t borrow, Linear **embedding, uint64_t *bytes) {
    return guarded([&] {
        EmbeddingSource source{*table, {}, borrow != 0};
        for (uint32_t i = 0; i < nheads; ++i) {
            source.heads.push_back(heads[i]->packed.get());
        }
        auto made = std::make_unique<Linear>();
        made->packed = instance->backend->makeEmbedding(source, nullptr);
        *bytes = made->packed->bytes();
        *embedding = made.release();
    });
}

void freeLinear(Linear *linear) {
    delete linear;
}

void freeNorm(Norm *norm) {
    delete norm;
}

// ---------------------------------------------------------------- KV blocks

int32_t allocateBlock(Instance *instance, size_t bytes, void **block) {
    return guarded([&] { *block = instance->backend->kvMemory().allocate(bytes); });
}

void releaseBlock(Instance *instance, void *block) {
    instance->backend->kvMemory().release(block);
}

int32_t copyBlock(Instance *instance, void *dst, const void *src, size_t bytes) {
    return guarded([&] { instance->backend->kvMemory().copy(dst, src, bytes); });
}

// ---------------------------------------------------------------- a step

int32_t beginStep(Instance *instance, const StepPlan *plan) {
    return guarded([&] { instance->backend->ops().beginStep(*plan); });
}

int32_t embed(Instance *instance, Activation x, const Linear *table) {
    return guarded([&] { instance->backend->ops().embed(x, *table->packed); });
}

int32_t addRmsnorm(Instance *instance, Activation h, Activation x, Activation delta, const Norm *weight,
                   float epsilon) {
    return guarded([&] { instance->backend->ops().addRmsnorm(h, x, delta, *weight->packed, epsilon); });
}

int32_t linear(Instance *instance, Activation out, Activation in, const Linear *weight) {
    return guarded([&] { instance->backend->ops().linear(out, in, *weight->packed); });
}

int32_t qkNormRopeStore(Instance *instance, Activation qkv, const Norm *q_norm, const Norm *k_norm, float epsilon,
                        uint32_t layer) {
    return guarded(
        [&] { instance->backend->ops().qkNormRopeStore(qkv, *q_norm->packed, *k_norm->packed, epsilon, layer); });
}

int32_t attention(Instance *instance, Activation out, Activation qkv, uint32_t layer) {
    return guarded([&] { instance->backend->ops().attention(out, qkv, layer); });
}

int32_t linearSwiglu(Instance *instance, Activation act, Activation h, const Linear *gate_up) {
    return guarded([&] { instance->backend->ops().linearSwiglu(act, h, *gate_up->packed); });
}

int32_t experts(Instance *instance, Activation out, Activation h, const Linear *router, const Linear *gate_up,
                const Linear *down) {
    return guarded([&] { instance->backend->ops().experts(out, h, *router->packed, *gate_up->packed, *down->packed); });
}

int32_t gatherRmsnorm(Instance *instance, Activation out, Activation x, Activation delta, const uint32_t *rows,
                      uint32_t nrows, const Norm *weight, float epsilon) {
    return guarded(
        [&] { instance->backend->ops().gatherRmsnorm(out, x, delta, rows, nrows, *weight->packed, epsilon); });
}

int32_t readLogits(Instance *instance, float *logits, size_t ld, Activation in, uint32_t nrows, const Linear *head) {
    return guarded([&] { instance->backend->ops().readLogits(logits, ld, in, nrows, *head->packed); });
}

int32_t readRows(Instance *instance, float *out, Activation in, uint32_t nrows) {
    return guarded([&] { instance->backend->ops().readRows(out, in, nrows); });
}

int32_t allReduceSum(Instance *instance, Activation x) {
    return guarded([&] { instance->backend->ops().allReduceSum(x); });
}

}  // namespace

Table tableOf(const Exports &exports) {
    the_exports = exports;
    Table table{};
    table.struct_size = sizeof table;
    table.version = QWEN3_VERSION_STRING;
    table.layout = kLayout;
    table.infinicore = exports.infinicore;
    table.error = lastError;
    table.load = load;
    table.infinicoreFolder = exports.infinicoreFolder;
    table.create = create;
    table.connect = connect;
    table.destroy = destroy;
    table.facts = facts;
    table.scratchBytes = scratchBytes;
    table.allocate = allocate;
    table.makeLinear = makeLinear;
    table.makeNorm = makeNorm;
    table.makeEmbedding = makeEmbedding;
    table.freeLinear = freeLinear;
    table.freeNorm = freeNorm;
    table.allocateBlock = allocateBlock;
    table.releaseBlock = releaseBlock;
    table.copyBlock = copyBlock;
    table.beginStep = beginStep;
    table.embed = embed;
    table.addRmsnorm = addRmsnorm;
    table.linear = linear;
    table.qkNormRopeStore = qkNormRopeStore;
    table.attention = attention;
    table.linearSwiglu = linearSwiglu;
    table.experts = experts;
    table.gatherRmsnorm = gatherRmsnorm;
    table.readLogits = readLogits;
    table.readRows = readRows;
    table.allReduceSum = allReduceSum;
    return table;
}

}  // namespace q3::module
