#include "ops/module/module_backend.h"

#include <string>
#include <utility>

#include "ops/module/loader.h"
#include "ops/module/seam.h"

namespace q3::module {
namespace {

// ---------------------------------------------------------------- what the module may call

struct Ranks {
    RankBarrier &barrier;
    HostAllReduce &reduce;
};

int32_t meet(void *context) {
    return guarded([&] { static_cast<Ranks *>(context)->barrier.wait(); });
}

int32_t sum(void *context, uint32_t rank, void *data, size_t count, SumFunction function, void *sum_context) {
    return guarded([&] {
        static_cast<Ranks *>(context)->reduce.run(
            rank, data, count,
            [&](void *const *buffers, size_t begin, size_t end) { function(sum_context, buffers, begin, end); });
    });
}

// ---------------------------------------------------------------- weights

class ModuleLinear final : public PackedLinear {
public:
    ModuleLinear(const Table &table, Linear *handle, uint64_t bytes) : table_(table), handle_(handle), bytes_(bytes) {}
    ~ModuleLinear() override { table_.freeLinear(handle_); }
    size_t bytes() const override { return bytes_; }
    const Linear *handle() const { return handle_; }

private:
    const Table &table_;
    Linear *const handle_;
    const uint64_t bytes_;
};

class ModuleNorm final : public PackedNorm {
public:
    ModuleNorm(const Table &table, Norm *handle, uint64_t bytes) : table_(table), handle_(handle), bytes_(bytes) {}
    ~ModuleNorm() override { table_.freeNorm(handle_); }
    size_t bytes() const override { return bytes_; }
    const Norm *handle() const { return handle_; }

private:
    const Table &table_;
    Norm *const handle_;
    const uint64_t bytes_;
};

const Linear *of(const PackedLinear &linear) {
    return static_cast<const ModuleLinear &>(linear).handle();
}

const Norm *of(const PackedNorm &norm) {
    return static_cast<const ModuleNorm &>(norm).handle();
}

// ---------------------------------------------------------------- backend

// An instance of the module. Calls return here with a status, which becomes the exception again.
class Handle {
public:
    Handle(const Table &table, const ModelConfig &config, const BackendOptions &options, const HostRanks &ranks)
        : table_(table) {
        rethrow(table_.create(&config, &options, &ranks, &instance_), table_.error);
    }
    ~Handle() { table_.destroy(instance_); }
    Handle(const Handle &) = delete;
    Handle &operator=(const Handle &) = delete;

    const Table &table() const { return table_; }
    Instance *instance() const { return instance_; }

    template <class Function, class... Args> void call(Function Table::*function, Args... args) const {
        rethrow((table_.*function)(instance_, args...), table_.error);
    }

private:
    const Table &table_;
    Instance *instance_ = nullptr;
};

class ModuleBlocks final : public BlockMemory {
public:
    explicit ModuleBlocks(const Handle &handle) : handle_(handle) {}
    void *allocate(size_t bytes) override {
        void *block = nullptr;
        handle_.call(&Table::allocateBlock, bytes, &block);
        return block;
    }
    void release(void *block) noexcept override { handle_.table().releaseBlock(handle_.instance(), block); }
    void copy(void *dst, const void *src, size_t bytes) override { handle_.call(&Table::copyBlock, dst, src, bytes); }

private:
    const Handle &handle_;
};

class ModuleOps final : public Ops {
public:
    explicit ModuleOps(const Handle &handle) : handle_(handle) {}

    void beginStep(const StepPlan &plan) override { handle_.call(&Table::beginStep, &plan); }
    void embed(Activation x, const PackedLinear &table) override { handle_.call(&Table::embed, x, of(table)); }
    void addRmsnorm(Activation h, Activation x, Activation delta, const PackedNorm &weight, float epsilon) override {
        handle_.call(&Table::addRmsnorm, h, x, delta, of(weight), epsilon);
    }
    void linear(Activation out, Activation in, const PackedLinear &weight) override {
        handle_.call(&Table::linear, out, in, of(weight));
    }
    void qkNormRopeStore(Activation qkv, const PackedNorm &q_norm, const PackedNorm &k_norm, float epsilon,
                         uint32_t layer) override {
        handle_.call(&Table::qkNormRopeStore, qkv, of(q_norm), of(k_norm), epsilon, layer);
    }
    void attention(Activation out, Activation qkv, uint32_t layer) override {
        handle_.call(&Table::attention, out, qkv, layer);
    }
    void linearSwiglu(Activation act, Activation h, const PackedLinear &gate_up) override {
        handle_.call(&Table::linearSwiglu, act, h, of(gate_up));
    }
    void experts(Activation out, Activation h, const PackedLinear &router, const PackedLinear &gate_up,
                 const PackedLinear &down) override {
        handle_.call(&Table::experts, out, h, of(router), of(gate_up), of(down));
    }
    void gatherRmsnorm(Activation out, Activation x, Activation delta, const uint32_t *rows, uint32_t nrows,
                       const PackedNorm &weight, float epsilon) override {
        handle_.call(&Table::gatherRmsnorm, out, x, delta, rows, nrows, of(weight), epsilon);
    }
    void readLogits(float *logits, size_t ld, Activation in, uint32_t nrows, const PackedLinear &head) override {
        handle_.call(&Table::readLogits, logits, ld, in, nrows, of(head));
    }
    void readRows(float *out, Activation in, uint32_t nrows) override {
        handle_.call(&Table::readRows, out, in, nrows);
    }
    void allReduceSum(Activation x) override { handle_.call(&Table::allReduceSum, x); }

private:
    const Handle &handle_;
};

class ModuleBackend final : public Backend {
public:
    ModuleBackend(const Table &table, const ModelConfig &config, const BackendOptions &options,
                  std::shared_ptr<Ranks> ranks, uint32_t nranks)
        : ranks_(std::move(ranks)), handle_(table, config, options, {ranks_.get(), nranks, meet, sum, lastError}),
          facts_(table.facts(handle_.instance())), ops_(handle_), blocks_(handle_) {}

    Instance *instance() const { return handle_.instance(); }

    Ops &ops() override { return ops_; }
    Activation allocate(uint32_t rows, uint32_t width) override {
        Activation activation;
        handle_.call(&Table::allocate, rows, width, &activation);
        return activation;
    }
    // No module saves packed weights, so `saved` is always null.
    std::unique_ptr<PackedLinear> makeLinear(const LinearSource &source, PackedReader *) override {
        Linear *linear = nullptr;
        uint64_t bytes = 0;
        handle_.call(&Table::makeLinear, &source, &linear, &bytes);
        return std::make_unique<ModuleLinear>(handle_.table(), linear, bytes);
    }
    std::unique_ptr<PackedNorm> makeNorm(const NormSource &source, PackedReader *) override {
        Norm *norm = nullptr;
        uint64_t bytes = 0;
        handle_.call(&Table::makeNorm, &source, &norm, &bytes);
        return std::make_unique<ModuleNorm>(handle_.table(), norm, bytes);
    }
    std::shared_ptr<PackedLinear> makeEmbedding(const EmbeddingSource &source, PackedReader *) override {
        std::vector<const Linear *> heads;
        heads.reserve(source.heads.size());
        for (const PackedLinear *head : source.heads) {
            heads.push_back(of(*head));
        }
        Linear *linear = nullptr;
        uint64_t bytes = 0;
        handle_.call(&Table::makeEmbedding, &source.table, heads.data(), static_cast<uint32_t>(heads.size()),
                     source.borrow ? 1U : 0U, &linear, &bytes);
        return std::make_unique<ModuleLinear>(handle_.table(), linear, bytes);
    }
    bool sharesEmbedding() const override { return facts_.shares_embedding != 0; }

    uint32_t kvBlockTokens() const override { return facts_.kv_block_tokens; }
    size_t kvBlockBytes() const override { return facts_.kv_block_bytes; }
    BlockMemory &kvMemory() override { return blocks_; }

    size_t scratchBytes() const override { return handle_.table().scratchBytes(handle_.instance()); }
    uint32_t threads() const override { return facts_.threads; }
    std::string description() const override { return facts_.description; }

private:
    const std::shared_ptr<Ranks> ranks_;
    const Handle handle_;
    const Facts facts_;
    ModuleOps ops_;
    ModuleBlocks blocks_;
};

}  // namespace

std::vector<std::unique_ptr<Backend>> makeModuleBackends(const std::vector<ModelConfig> &configs,
                                                         const std::vector<BackendOptions> &options, RankGroup &group,
                                                         HostAllReduce &reduce) {
    const auto device = static_cast<int32_t>(options[0].device);
    const Table &table = loadModule(device);
    rethrow(table.load(device), table.error);
    const std::shared_ptr<Ranks> ranks(new Ranks{group.barrier(), reduce});
    std::vector<std::unique_ptr<ModuleBackend>> backends(configs.size());
    group.run([&](uint32_t rank) {
        backends[rank] = std::make_unique<ModuleBackend>(table, configs[rank], options[rank], ranks, group.size());
    });
    std::vector<Instance *> instances;
    instances.reserve(backends.size());
    for (const auto &backend : backends) {
        instances.push_back(backend->instance());
    }
    rethrow(table.connect(instances.data(), static_cast<uint32_t>(instances.size())), table.error);
    return {std::make_move_iterator(backends.begin()), std::make_move_iterator(backends.end())};
}

}  // namespace q3::module
