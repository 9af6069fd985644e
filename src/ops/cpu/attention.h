// Causal GQA attention over KV blocks: norm and rope of the heads, the cache, and the softmax-weighted sums.
#pragma once

#include <vector>

#include "ops/cpu/attention_plan.h"
#include "ops/cpu/attention_scratch.h"
#include "ops/cpu/host_buffer.h"
#include "ops/cpu/kernels/kernels.h"
#include "ops/cpu/kv.h"
#include "ops/types.h"
#include "runtime/thread_pool.h"

namespace q3::cpu {

// One caller at a time. Nothing but a step's plan allocates after construction.
class Attention {
public:
    // activations: of queries, probabilities, keys and values, kF32 or kBf16 (Arithmetic::attention).
    // The table, the layout and the pool must outlive the object. Throws BAD_PARAM if more query heads share a KV head
    // than it has scratch for.
    Attention(const ModelConfig &config, const KernelTable &kernels, const KvLayout &kv, ThreadPool &pool,
              Activations activations);

    // plan stays valid until the next beginStep.
    void beginStep(const StepPlan &plan);

    // The first half of a layer: norm (weights q_norm and k_norm [dh]) and rope of the q and k heads of
    // qkv[ntok, (nh + 2 nkvh) dh], in place, and K and V into the blocks. May leave any of this to attend(), which must
    // follow with the same qkv and layer while the weights are still there.
    void prepareHeads(Activation qkv, const float *q_norm, const float *k_norm, float epsilon, uint32_t layer);
    // out[ntok, nh dh] = attention of q over the blocks, scale 1 / sqrt(dh)
    void attend(Activation out, Activation qkv, uint32_t layer);

    size_t scratchBytes() const;

private:
    // The KV tiles of one layer and head, by key counted from the first block.
    struct Tiles {
        const KvLayout &kv;
        void *const *blocks;
        uint32_t ntiles;
        uint32_t layer;
        uint32_t head;
        KvLayout::Tile at(uint32_t key) const { return kv.tile(blocks[key / KvLayout::kBlockTokens], layer, head); }
    };

    size_t pairBytes() const;
    AttentionScratch scratchOf(uint32_t thread) const;
    AttentionPart partAt(size_t row, uint32_t rows) const;
    uint32_t rowsOf(const AttentionItem &item) const { return item.ntok * config_.group(); }
    float *rowOf(const AttentionItem &item, uint32_t r, Activation x) const;
    uint32_t keysFrom(const AttentionItem &item, uint32_t r, uint32_t first_key) const;

    void prepareItem(const AttentionItem &item, Activation qkv, uint32_t layer) const;
    void loadQueries(const AttentionItem &item, Activation qkv, const AttentionScratch &s) const;
    void attendItem(const AttentionItem &item, Activation out, Activation qkv, uint32_t layer,
                    const AttentionScratch &s) const;
    void attendSplit(const AttentionItem &item, uint32_t layer, uint32_t first_key, uint32_t end,
                     const AttentionScratch &s, const AttentionPart &part) const;
    void scoreKeys(const Tiles &tiles, uint32_t nkeys, uint32_t rows, const AttentionScratch &s) const;
    void weighValues(const Tiles &tiles, uint32_t nkeys, uint32_t rows, const AttentionScratch &s, float *out) const;
    void scoreKeysWide(const Tiles &tiles, uint32_t nkeys, uint32_t rows, const AttentionScratch &s) const;
    void weighValuesWide(const Tiles &tiles, uint32_t nkeys, uint32_t rows, const AttentionScratch &s,
                         float *out) const;
    void scoreKeyPairs(const Tiles &tiles, uint32_t nkeys, uint32_t rows, const AttentionScratch &s) const;
    void weighValuePairs(const Tiles &tiles, uint32_t nkeys, uint32_t rows, const AttentionScratch &s,
                         float *out) const;
    KvTiles inPairs(const Tiles &tiles, const KvTiles &kept, uint32_t key,
                    void (KvLayout::*pair)(const KvLayout::Tile &, uint32_t *, float *) const, const char **made,
                    const AttentionScratch &s) const;
    void mergeSplit(const AttentionItem &item, uint32_t first_key, uint32_t r, const AttentionPart &part,
                    const AttentionScratch &s) const;
    void finishRow(const AttentionItem &item, uint32_t r, Activation out, const AttentionScratch &s) const;

    ModelConfig config_;
    const KernelTable &kernels_;
    const KvLayout &kv_;
    ThreadPool &pool_;
    Activations activations_;
    uint32_t query_rows_;  // of a work item, at most
    AttentionPlan plan_;
    std::vector<HostBuffer> scratch_;  // per thread
    HostBuffer parts_;                 // of cut items

    const StepPlan *step_ = nullptr;
    // What attend() still has to do to the heads; weights are null where prepareHeads has done all of it.
    struct {
        const float *q = nullptr;
        const float *k = nullptr;
        float epsilon = 0.0F;
    } norms_;
};

}  // namespace q3::cpu
