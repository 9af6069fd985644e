// A module whose backend is the CPU's, seen through the seam, with failures on request. For tests of src/ops/module.
//
//   FAKE_MODULE_THROW=WHERE[@RANK]:KIND   calls of WHERE (the name of a method, on one rank or all) throw KIND: error
//                                         (BAD_PARAM), cancelled, bad_alloc, runtime_error or int; read at every call
//   FAKE_MODULE_VERSION=TEXT              the version it says it has
//   FAKE_MODULE_LAYOUT=other              another layout of structures
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "ops/cpu/cpu_backend.h"
#include "ops/module/export.h"
#include "runtime/error.h"

using namespace q3;

namespace {

const char *variable(const char *name) {
    const char *value = std::getenv(name);
    return value == nullptr ? "" : value;
}

void mayThrow(const std::string &where, uint32_t rank = 0) {
    const std::string wish = variable("FAKE_MODULE_THROW");
    const size_t colon = wish.find(':');
    const std::string place = wish.substr(0, colon);
    if (wish.empty() || (place != where && place != where + "@" + std::to_string(rank))) {
        return;
    }
    const std::string kind = wish.substr(colon + 1);
    if (kind == "error") {
        fail(QWEN3_STATUS_BAD_PARAM, "%s of the fake module failed", where.c_str());
    }
    if (kind == "cancelled") {
        fail(QWEN3_STATUS_CANCELLED, "%s of the fake module was cancelled", where.c_str());
    }
    if (kind == "bad_alloc") {
        throw std::bad_alloc();
    }
    if (kind == "runtime_error") {
        throw std::runtime_error(where + " threw a standard exception");
    }
    throw 42;
}

class Blocks final : public BlockMemory {
public:
    Blocks(BlockMemory &memory, uint32_t rank) : memory_(memory), rank_(rank) {}
    void *allocate(size_t bytes) override {
        mayThrow("allocateBlock", rank_);
        return memory_.allocate(bytes);
    }
    void release(void *block) noexcept override { memory_.release(block); }
    void copy(void *dst, const void *src, size_t bytes) override {
        mayThrow("copyBlock", rank_);
        memory_.copy(dst, src, bytes);
    }

private:
    BlockMemory &memory_;
    const uint32_t rank_;
};

class FakeBackend final : public Backend, public Ops {
public:
    FakeBackend(const ModelConfig &config, const BackendOptions &options, const module::HostRanks &host)
        : cpu_(cpu::makeCpuBackend(config, options)), blocks_(cpu_->kvMemory(), options.rank), host_(host),
          rank_(options.rank) {}

    Ops &ops() override { return *this; }
    Activation allocate(uint32_t rows, uint32_t width) override { return cpu_->allocate(rows, width); }
    std::unique_ptr<PackedLinear> makeLinear(const LinearSource &source, PackedReader *saved) override {
        mayThrow("makeLinear", rank_);
        return cpu_->makeLinear(source, saved);
    }
    std::unique_ptr<PackedNorm> makeNorm(const NormSource &source, PackedReader *saved) override {
        return cpu_->makeNorm(source, saved);
    }
    std::shared_ptr<PackedLinear> makeEmbedding(const EmbeddingSource &source, PackedReader *saved) override {
        mayThrow("makeEmbedding", rank_);
        return cpu_->makeEmbedding(source, saved);
    }
    bool sharesEmbedding() const override { return cpu_->sharesEmbedding(); }
    uint32_t kvBlockTokens() const override { return cpu_->kvBlockTokens(); }
    size_t kvBlockBytes() const override { return cpu_->kvBlockBytes(); }
    BlockMemory &kvMemory() override { return blocks_; }
    size_t scratchBytes() const override { return cpu_->scratchBytes(); }
    uint32_t threads() const override { return cpu_->threads(); }
    std::string description() const override { return "backend=fake_module threads=" + std::to_string(threads()); }

    void beginStep(const StepPlan &plan) override {
        mayThrow("beginStep", rank_);
        plan_ = &plan;
        cpu_->ops().beginStep(plan);
    }
    void embed(Activation x, const PackedLinear &table) override { cpu_->ops().embed(x, table); }
    void addRmsnorm(Activation h, Activation x, Activation delta, const PackedNorm &weight, float epsilon) override {
        cpu_->ops().addRmsnorm(h, x, delta, weight, epsilon);
    }
    void linear(Activation out, Activation in, const PackedLinear &weight) override {
        cpu_->ops().linear(out, in, weight);
    }
    void qkNormRopeStore(Activation qkv, const PackedNorm &q_norm, const PackedNorm &k_norm, float epsilon,
                         uint32_t layer) override {
        cpu_->ops().qkNormRopeStore(qkv, q_norm, k_norm, epsilon, layer);
    }
    void attention(Activation out, Activation qkv, uint32_t layer) override {
        mayThrow("attention", rank_);
        cpu_->ops().attention(out, qkv, layer);
    }
    void linearSwiglu(Activation act, Activation h, const PackedLinear &gate_up) override {
        cpu_->ops().linearSwiglu(act, h, gate_up);
    }
    void experts(Activation out, Activation h, const PackedLinear &router, const PackedLinear &gate_up,
                 const PackedLinear &down) override {
        cpu_->ops().experts(out, h, router, gate_up, down);
    }
    void gatherRmsnorm(Activation out, Activation x, Activation delta, const uint32_t *rows, uint32_t nrows,
                       const PackedNorm &weight, float epsilon) override {
        cpu_->ops().gatherRmsnorm(out, x, delta, rows, nrows, weight, epsilon);
    }
    void readLogits(float *logits, size_t ld, Activation in, uint32_t nrows, const PackedLinear &head) override {
        mayThrow("readLogits", rank_);
        cpu_->ops().readLogits(logits, ld, in, nrows, head);
    }
    void readRows(float *out, Activation in, uint32_t nrows) override {
        mayThrow("readRows", rank_);
        cpu_->ops().readRows(out, in, nrows);
    }
    void allReduceSum(Activation x) override {
        mayThrow("allReduceSum", rank_);
        if (host_.size == 1) {
            return;
        }
        module::rethrow(host_.meet(host_.context), host_.error);
        const module::SumFunction sum = [](void *size, void *const *buffers, size_t begin, size_t end) {
            const uint32_t nranks = *static_cast<const uint32_t *>(size);
            for (size_t i = begin; i < end; ++i) {
                float total = 0;
                for (uint32_t rank = 0; rank < nranks; ++rank) {
                    total += static_cast<const float *>(buffers[rank])[i];
                }
                for (uint32_t rank = 0; rank < nranks; ++rank) {
                    static_cast<float *>(buffers[rank])[i] = total;
                }
            }
        };
        module::rethrow(host_.sum(host_.context, rank_, x.data, size_t{plan_->ntok} * x.width, sum, &host_.size),
                        host_.error);
    }

private:
    const std::unique_ptr<Backend> cpu_;
    Blocks blocks_;
    module::HostRanks host_;
    const uint32_t rank_;
    const StepPlan *plan_ = nullptr;
};

}  // namespace

extern "C" __attribute__((visibility("default"))) const module::Table *infinicore_infer_module() {
    module::Exports exports{};
    exports.infinicore = "fake";
    exports.load = [](int32_t) { mayThrow("load"); };
    exports.infinicoreFolder = [] { return ""; };
    exports.create = [](const ModelConfig &config, const BackendOptions &options,
                        const module::HostRanks &host) -> std::unique_ptr<Backend> {
        mayThrow("create", options.rank);
        return std::make_unique<FakeBackend>(config, options, host);
    };
    exports.connect = [](const std::vector<Backend *> &) { mayThrow("connect"); };
    static module::Table table;
    static std::string version;
    table = module::tableOf(exports);
    if (version = variable("FAKE_MODULE_VERSION"); !version.empty()) {
        table.version = version.c_str();
    }
    if (*variable("FAKE_MODULE_LAYOUT") != '\0') {
        ++table.layout;
    }
    return &table;
}
