// The CPU backend: composes linear layers, attention and KV blocks over one thread pool and one kernel table.
// Activations are float32.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ops/backend.h"
#include "ops/cpu/arithmetic.h"
#include "ops/cpu/attention.h"
#include "ops/cpu/experts.h"
#include "ops/cpu/host_buffer.h"
#include "ops/cpu/kernels/kernels.h"
#include "ops/cpu/kv.h"
#include "ops/cpu/linear.h"
#include "ops/cpu/numerics.h"
#include "ops/cpu/pack/pack.h"
#include "ops/ops.h"
#include "runtime/ranks.h"
#include "runtime/thread_pool.h"

namespace q3::cpu {

std::unique_ptr<Backend> makeCpuBackend(const ModelConfig &config, const BackendOptions &options);

// Name of the kernel table that makeCpuBackend would use, or "unsupported".
const char *isaName() noexcept;

class CpuBackend final : public Backend, public Ops {
public:
    CpuBackend(const ModelConfig &config, const BackendOptions &options);

    Ops &ops() override { return *this; }

    Activation allocate(uint32_t rows, uint32_t width) override;
    std::unique_ptr<PackedLinear> makeLinear(const LinearSource &source, PackedReader *saved) override;
    std::unique_ptr<PackedNorm> makeNorm(const NormSource &source, PackedReader *saved) override;
    std::shared_ptr<PackedLinear> makeEmbedding(const EmbeddingSource &source, PackedReader *saved) override;
    bool sharesEmbedding() const override { return true; }

    std::string packedLayout() override;
    void save(const PackedLinear &linear, PackedWriter &out) const override;
    void save(const PackedNorm &norm, PackedWriter &out) const override;

    uint32_t kvBlockTokens() const override { return KvLayout::kBlockTokens; }
    size_t kvBlockBytes() const override { return kv_.blockBytes(); }
    BlockMemory &kvMemory() override { return kv_memory_; }
    std::string kvLayout() const override { return kv_.name(); }
    std::string numerics() const override { return numericsOf(kernels_) + " " + arithmeticName(arithmetic_, formats_); }

    void beginStep(const StepPlan &plan) override {
        plan_ = &plan;
        attention_.beginStep(plan);
    }
    void embed(Activation x, const PackedLinear &table) override;
    void addRmsnorm(Activation h, Activation x, Activation delta, const PackedNorm &weight, float epsilon) override;
    void linear(Activation out, Activation in, const PackedLinear &weight) override;
    void qkNormRopeStore(Activation qkv, const PackedNorm &q_norm, const PackedNorm &k_norm, float epsilon,
                         uint32_t layer) override;
    void attention(Activation out, Activation qkv, uint32_t layer) override;
    void linearSwiglu(Activation act, Activation h, const PackedLinear &gate_up) override;
    void experts(Activation out, Activation h, const PackedLinear &router, const PackedLinear &gate_up,
                 const PackedLinear &down) override;
    void gatherRmsnorm(Activation out, Activation x, Activation delta, const uint32_t *rows, uint32_t nrows,
                       const PackedNorm &weight, float epsilon) override;
    void readLogits(float *logits, size_t ld, Activation in, uint32_t nrows, const PackedLinear &head) override;
    void readRows(float *out, Activation in, uint32_t nrows) override;
    void allReduceSum(Activation x) override;

    void forEach(uint32_t count, const std::function<void(uint32_t i, uint32_t thread)> &body) override;

    size_t scratchBytes() const override;
    uint32_t threads() const override { return pool_.size(); }
    std::string description() const override;

private:
    WeightFormat formatFor(const LinearSource &source) const;
    WeightFormat floatFormat() const;  // with as_given_, of most layers that are floats

    bool coded_;       // some layers are kept as codes
    bool as_given_;    // each layer keeps the dtype of its source; else all take dt_weight_
    DType dt_weight_;  // with as_given_, that of most layers
    const KernelTable &kernels_;
    Arithmetic arithmetic_;
    PerFormat<bool> formats_{};  // of the layers made so far
    DType dt_kv_;
    uint32_t rank_;
    HostAllReduce *reduce_;  // null: the only rank
    ThreadPool pool_;
    bool experts_in_file_;
    Linears linears_;
    std::unique_ptr<Experts> experts_;  // null in a dense model
    KvLayout kv_;
    KvMemory kv_memory_;
    Attention attention_;
    Arena arena_;  // of weights
    std::vector<HostBuffer> activations_;
    const StepPlan *plan_ = nullptr;
};

}  // namespace q3::cpu
