// The CPU backend: splits every node over the thread pool and calls one kernel table. Activations are float32.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ops/backend.h"
#include "ops/cpu/attention.h"
#include "ops/cpu/attention_plan.h"
#include "ops/cpu/host_buffer.h"
#include "ops/cpu/kernels/kernels.h"
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

    uint32_t kvBlockTokens() const override { return kBlockTokens; }
    size_t kvBlockBytes() const override { return config_.nlayer * kvLayerBytes(); }
    BlockMemory &kvMemory() override { return kv_memory_; }
    // Names all that decides where an element lies in a block of known size: files of blocks outlive the library.
    std::string kvLayout() const override {
        return std::string("cpu-") + dtypeName(dt_kv_) + " in panels of " + std::to_string(valuePanel());
    }

    void beginStep(const StepPlan &plan) override {
        plan_ = &plan;
        attention_plan_.build(plan.sequences);
    }
    void embed(Activation x, const PackedLinear &table) override;
    void addRmsnorm(Activation h, Activation x, Activation delta, const PackedNorm &weight, float epsilon) override;
    void linear(Activation out, Activation in, const PackedLinear &weight) override;
    void qkNormRopeStore(Activation qkv, const PackedNorm &q_norm, const PackedNorm &k_norm, float epsilon,
                         uint32_t layer) override;
    void attention(Activation out, Activation qkv, uint32_t layer) override;
    void linearSwiglu(Activation act, Activation h, const PackedLinear &gate_up) override;
    void gatherRmsnorm(Activation out, Activation x, Activation delta, const uint32_t *rows, uint32_t nrows,
                       const PackedNorm &weight, float epsilon) override;
    void readLogits(float *logits, size_t ld, Activation in, uint32_t nrows, const PackedLinear &head) override;
    void allReduceSum(Activation x) override;

    size_t scratchBytes() const override;
    uint32_t threads() const override { return pool_.size(); }
    std::string description() const override;

private:
    // A KV block's tokens: the width of a kernel tile, so that one K tile is one [dh][16] matrix.
    static constexpr uint32_t kBlockTokens = kPanelRows;
    // Query rows per attention work item: enough to reuse a K/V tile from L1, small enough to share out the work.
    static constexpr uint32_t kQueryRows = 96;
    static constexpr uint32_t kMaxQueryRows = 256;  // and so the widest GQA group

    // KV layout of a block: per layer, per KV head: K [dh][16 tokens], then V [value_width_ / w][16 tokens][w], where w
    // is valuePanel().
    struct KvTile {
        char *keys;
        char *values;
        uint16_t *key_scales;    // of int8, see kv.cpp
        uint16_t *value_scales;  // of int8
    };
    size_t kvHeadBytes() const;
    size_t kvLayerBytes() const { return config_.nkvh * kvHeadBytes(); }
    KvTile kvTile(void *block, uint32_t layer, uint32_t head) const;
    size_t elementSize() const { return kv_codes_ ? 1 : dtypeSize(dt_kv_); }
    void storeToken(const KvTile &tile, uint32_t slot, const float *k, const float *v) const;
    void loadKeys(const KvTile &tile, float *out) const;
    void loadValues(const KvTile &tile, uint32_t panel, float *out) const;
    uint32_t valuePanel() const { return kv_codes_ ? kPanelRows : kValueWidth; }

    int32_t dtypeOf(const LinearSource &source) const;

    // attention.cpp
    void prepareHeads(const AttentionItem &item, Activation qkv, uint32_t layer) const;
    // The tiles of one layer and KV head, by key counted from the first block.
    struct Tiles {
        const CpuBackend &ops;
        void *const *blocks;
        uint32_t ntiles;
        uint32_t layer;
        uint32_t head;
        KvTile at(uint32_t key) const { return ops.kvTile(blocks[key / kBlockTokens], layer, head); }
    };
    static constexpr uint32_t kPair = 2 * kBlockTokens;
    template <typename Tile, typename Use>
    static void forTiles(uint32_t nkeys, uint32_t later, const Tile &tile, const Use &use);
    void scoreKeys(const Tiles &tiles, uint32_t nkeys, uint32_t rows, const AttentionScratch &s) const;
    void weighValues(const Tiles &tiles, uint32_t nkeys, uint32_t rows, const AttentionScratch &s, float *out) const;
    void scoreKeysWide(const Tiles &tiles, uint32_t nkeys, uint32_t rows, const AttentionScratch &s) const;
    void weighValuesWide(const Tiles &tiles, uint32_t nkeys, uint32_t rows, const AttentionScratch &s,
                         float *out) const;
    void attendItem(const AttentionItem &item, Activation out, Activation qkv, uint32_t layer,
                    const AttentionScratch &s) const;
    void attendSplit(const AttentionItem &item, uint32_t layer, uint32_t first_key, uint32_t end,
                     const AttentionScratch &s, const AttentionPart &part) const;
    float *rowOf(const AttentionItem &item, uint32_t r, Activation x) const;
    void loadQueries(const AttentionItem &item, Activation qkv, const AttentionScratch &s) const;
    uint32_t keysFrom(const AttentionItem &item, uint32_t r, uint32_t first_key) const;
    void clearTotal(const AttentionScratch &s, uint32_t r) const;
    void mergeSplit(const AttentionItem &item, uint32_t first_key, uint32_t r, const AttentionPart &part,
                    const AttentionScratch &s) const;
    void finishRow(const AttentionItem &item, uint32_t r, Activation out, const AttentionScratch &s) const;

    // linear.cpp
    size_t linearScratchFloats() const;
    template <typename Epilogue>
    void multiplyRows(const float *in, uint32_t rows, size_t ld, const CpuLinear &w, uint32_t step,
                      const Epilogue &epilogue);
    template <typename Epilogue>
    void streamPanels(const float *in, uint32_t rows, size_t ld, const CpuLinear &w, uint32_t step,
                      const Epilogue &epilogue);
    template <typename Epilogue>
    void reusePanels(const float *in, uint32_t rows, size_t ld, const CpuLinear &w, uint32_t step,
                     const Epilogue &epilogue);
    // out[rows][npanels * 16] = products of k [k0, k0 + k) of rows from `row` on; added to what is there if k0 > 0
    void multiply(const char *panels, size_t panel_bytes, uint32_t npanels, WeightFormat type, const float *in,
                  size_t ld, uint32_t row, uint32_t rows, uint32_t k0, uint32_t k, float *out, size_t ldo) const;
    void quantizeRows(const float *in, uint32_t rows, size_t ld, uint32_t k, WeightFormat type);
    void plainLinear(float *out, size_t ldo, const float *in, uint32_t rows, const CpuLinear &w);

    class KvMemory final : public BlockMemory {
    public:
        void *allocate(size_t bytes) override;
        void release(void *block) noexcept override;
        void copy(void *dst, const void *src, size_t bytes) override;

    private:
        // Blocks are cut from slabs in huge pages: attention walks from block to block, and with 4 KiB pages nearly
        // every tile would miss the TLB. Slabs live as long as the backend; released blocks are kept for the next
        // allocate.
        std::vector<HostBuffer> slabs_;
        std::vector<void *> free_;
    };

    ModelConfig config_;
    int32_t dt_weight_;
    int32_t dt_kv_;
    WeightFormat kv_type_;  // unless kv_codes_
    bool kv_codes_;         // int8
    uint32_t query_rows_;   // query rows per work item: kQueryRows, or a wider group
    uint32_t value_width_;  // dh rounded up to whole panels
    const KernelTable &kernels_;
    uint32_t max_rows_;  // max_step_tokens rounded up to whole tiles
    uint32_t rank_;
    HostAllReduce *reduce_;  // null: the only rank
    ThreadPool pool_;
    KvMemory kv_memory_;
    Arena arena_;  // of weights
    const StepPlan *plan_ = nullptr;

    std::vector<HostBuffer> activations_;
    HostBuffer quant_codes_, quant_scales_, quant_offsets_;
    QuantRows quant_rows_{};                   // over those three
    std::vector<HostBuffer> product_scratch_;  // per thread, see linearScratchFloats
    AttentionPlan attention_plan_;
    std::vector<HostBuffer> attention_scratch_;  // per thread
    HostBuffer attention_parts_;                 // of cut items
    struct {
        const float *q = nullptr;  // null: qkNormRopeStore has done all of it itself
        const float *k = nullptr;
        float epsilon = 0.0F;
    } head_norms_;  // what attention's units begin with
};

}  // namespace q3::cpu
