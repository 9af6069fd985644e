// One loaded model: its ranks (backend and weights of each), KV pool and caches, and the execution of checked batches.
// Everything public is thread-safe; steps are serialised.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/batch.h"
#include "engine/kv_cache.h"
#include "engine/sampler.h"
#include "model/qwen3.h"
#include "model/rope.h"
#include "ops/factory.h"

namespace q3 {

class Engine {
public:
    // dev_ids: one device, and so one rank, per entry.
    Engine(const ModelConfig &config, float theta, const Qwen3Weights &weights, const BackendOptions &backend_options,
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

    // params [nreq] are complete and checked; results [nreq] are written only on success.
    void infer(const BatchArgs &args, const Qwen3SamplingParams *params, Qwen3SampleResult *results);
    void forward(const BatchArgs &args, float *logits);
    void cancel() noexcept;

    // The seed of request `index` in the next plain inferBatch.
    uint64_t nextSeed();

    const ModelConfig &config() const { return config_; }
    std::string description() const;
    Qwen3Stats stats();
    void saveWeights(const char *path, const char *key) const;  // takes no lock: weights never change

private:
    std::vector<const ModelWeights *> weightsOfRanks() const;
    // The part of a call that runs as one step.
    struct Part {
        uint32_t request;
        uint32_t first;  // its first token here, counted from the request's
    };
    struct Chunk {
        std::vector<StepPlan> plans;  // [ranks]: they differ in the KV blocks only
        uint32_t ntok = 0;
        uint32_t first_token = 0;
        std::vector<Part> parts;  // of the plans' sequences
    };
    // A row of a chunk after which a token may have to be chosen.
    struct SampledRow {
        uint32_t row;
        uint32_t request;
        uint32_t index;  // token of the request
    };
    using ChunkSink = std::function<void(const Chunk &)>;

    KVCache *adopt(std::unique_ptr<KVCache> cache);
    std::shared_ptr<KVCache> guarded(std::unique_ptr<KVCache> cache);
    KVCache &owned(const KVCache *cache, const char *what, uint32_t index);
    void checkCaches(const BatchArgs &args);
    void requireBlocks(uint64_t count, const char *what) const;
    void reserve(const BatchArgs &args);
    void execute(const BatchArgs &args, const ChunkSink &sink);
    void runChunks(const BatchArgs &args, const ChunkSink &sink);
    void addSequence(Chunk &chunk, uint32_t ntok, uint32_t pos, const KVCache &cache);
    void fillRope(Chunk &chunk);
    void computeLogits(const uint32_t *rows, uint32_t nrows, float *logits);
    void sampleChunk(const Chunk &chunk, const BatchArgs &args, const Qwen3SamplingParams *params);
    void sampleRow(const SampledRow &row, float *logits, const Chunk &chunk, const BatchArgs &args,
                   const Qwen3SamplingParams *params);

    ModelConfig config_;
    Rope rope_;
    std::vector<RankSlice> slices_;  // like backends_ and forward_: [ranks]
    RankGroup group_;
    HostAllReduce reduce_;
    std::vector<std::unique_ptr<Backend>> backends_;
    std::vector<std::unique_ptr<Qwen3Forward>> forward_;
    std::unique_ptr<BlockPool> pool_;
    Sampler sampler_;
    std::atomic<uint64_t> seed_;

    std::once_flag kv_identified_;
    std::string kv_identity_;

    std::mutex mutex_;
    std::unordered_map<const KVCache *, std::unique_ptr<KVCache>> caches_;

    std::atomic<bool> running_{false};
    std::atomic<bool> cancel_{false};

    // Scratch of a step.
    std::vector<float> rope_cos_, rope_sin_;
    std::vector<float> logits_;
    struct Sampled {
        Qwen3SampleResult result;
        std::vector<uint32_t> top_tokens;
        std::vector<float> top_logprobs;
        std::vector<uint32_t> history;  // the caller's and the accepted drafts
        bool settled;                   // no further token is to be chosen
    };
    std::vector<Sampled> sampled_;
};

}  // namespace q3
