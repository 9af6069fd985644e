// One loaded model at work: it owns the ranks (backend and weights of each), the KV pool and all caches, and runs calls
// whose arguments have been checked. Everything public is thread-safe: one lock serialises steps and changes of caches.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/batch.h"
#include "engine/chooser.h"
#include "engine/chunk.h"
#include "engine/kv_cache.h"
#include "model/qwen3.h"
#include "model/rope.h"
#include "ops/factory.h"

namespace q3 {

class Engine {
public:
    // dev_ids has one entry for each rank: its device. tensors and options have been checked. Throws what making
    // backends and packing weights throw.
    Engine(const ModelConfig &config, float theta, const ModelTensors &tensors, const BackendOptions &backend_options,
           const std::vector<int32_t> &dev_ids, const Qwen3ModelOptions &options);

    KVCache *createCache();
    KVCache *duplicateCache(const KVCache *cache, uint32_t length);
    void dropCache(const KVCache *cache) noexcept;
    uint32_t cacheLength(const KVCache *cache);

    // Caches in files (engine_files.cpp). Steps go on while files are written or read.
    void saveCache(const KVCache *cache, const uint32_t *tokens, uint32_t length, const char *path);
    KVCache *loadCache(const char *path, uint32_t *tokens, uint32_t capacity, uint32_t *length);
    // What saved caches depend on; computed at the first call, which reads all weights. Throws NOT_IMPLEMENTED.
    const std::string &kvIdentity();

    // Runs a call and chooses a token for each request. params [nreq] have been checked; results [nreq] are written
    // only on success.
    void infer(const BatchArgs &args, const Qwen3SamplingParams *params, Qwen3SampleResult *results);
    // Runs a call and writes the logits [ntok, dvoc] of all its tokens.
    void forward(const BatchArgs &args, float *logits);
    // Runs a call and writes the hidden states [rows, d] of some of its tokens, whose indices rise.
    void embed(const BatchArgs &args, const std::vector<uint32_t> &rows, float *states);
    void cancel() noexcept;  // of the call that is running, if one is; never waits

    // The seed of the next request that brings none of its own.
    uint64_t nextSeed();

    const ModelConfig &config() const { return config_; }
    std::string description() const;
    Qwen3Stats stats();
    void saveWeights(const char *path, const char *key) const;  // takes no lock: weights never change

private:
    using ChunkSink = std::function<void(const Chunk &)>;  // called after each chunk has run

    std::vector<const ModelWeights *> weightsOfRanks() const;
    KVCache *adopt(std::unique_ptr<KVCache> cache);
    std::shared_ptr<KVCache> guarded(std::unique_ptr<KVCache> cache);
    KVCache &owned(const KVCache *cache, const char *what, uint32_t index);
    void checkCaches(const BatchArgs &args);
    void requireBlocks(uint64_t count, const char *what) const;
    void reserve(const BatchArgs &args);
    void execute(const BatchArgs &args, const ChunkSink &sink);
    void runChunks(const BatchArgs &args, const ChunkSink &sink);
    std::vector<StepPlan> plansOf(const Chunk &chunk, const BatchArgs &args);
    void stopIfCancelled(const char *where) const;
    void readLogits(const uint32_t *rows, uint32_t nrows, float *logits);

    ModelConfig config_;
    Rope rope_;
    std::vector<RankSlice> slices_;  // like backends_ and forward_: [ranks]
    RankGroup group_;
    HostAllReduce reduce_;
    std::vector<std::unique_ptr<Backend>> backends_;
    std::vector<std::unique_ptr<Qwen3Forward>> forward_;
    std::unique_ptr<BlockPool> pool_;
    Chooser chooser_;
    std::atomic<uint64_t> seed_;

    std::mutex kv_identity_mutex_;
    std::string kv_identity_;

    std::mutex mutex_;
    std::unordered_map<const KVCache *, std::unique_ptr<KVCache>> caches_;

    std::atomic<bool> running_{false};
    std::atomic<bool> cancel_{false};

    std::vector<float> rope_cos_, rope_sin_;  // of a step
};

}  // namespace q3
