// What an engine writes to files and reads from them. Steps go on meanwhile: the lock is held only while caches and
// blocks are looked up, shared or given back.
#include <algorithm>

#include "engine/engine.h"
#include "engine/kv_file.h"
#include "runtime/error.h"

namespace q3 {

std::vector<const ModelWeights *> Engine::weightsOfRanks() const {
    std::vector<const ModelWeights *> weights;
    weights.reserve(forward_.size());
    for (const auto &forward : forward_) {
        weights.push_back(&forward->weights());
    }
    return weights;
}

void Engine::saveWeights(const char *path, const char *key) const {
    q3::saveWeights(weightsOfRanks(), path, key, *backends_[0]);
}

const std::string &Engine::kvIdentity() {
    // Not std::call_once, which ends the process when it is left by an exception and there is no memory.
    const std::lock_guard<std::mutex> lock(kv_identity_mutex_);
    if (kv_identity_.empty()) {
        kv_identity_ = q3::kvIdentity(config_, rope_, weightsOfRanks(), backends_);
    }
    return kv_identity_;
}

// A cache that takes the lock when it is dropped, because its blocks go back to the pool then.
std::shared_ptr<KVCache> Engine::guarded(std::unique_ptr<KVCache> cache) {
    const auto drop = [this](KVCache *dropped) {
        const std::lock_guard<std::mutex> lock(mutex_);
        delete dropped;
    };
    return {cache.release(), drop};
}

void Engine::saveCache(const KVCache *cache, const uint32_t *tokens, uint32_t length, const char *path) {
    const std::string &identity = kvIdentity();
    std::unique_ptr<KVCache> copy;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        const KVCache &source = owned(cache, "cache", 0);
        if (length == 0 || length > source.length()) {
            fail(QWEN3_STATUS_BAD_PARAM, "seq_len is %u, the cache holds %u tokens and at least one is to be saved",
                 length, source.length());
        }
        copy = source.duplicate(length);
    }
    // Whoever writes to the blocks from now on copies them first, because they are shared.
    const std::shared_ptr<KVCache> snapshot = guarded(std::move(copy));
    for (uint32_t i = 0; i < length; ++i) {
        if (tokens[i] >= config_.dvoc) {
            fail(QWEN3_STATUS_BAD_PARAM, "tokens[%u] is %u, the vocabulary has %u", i, tokens[i], config_.dvoc);
        }
    }
    writeKvFile(path, identity, tokens, *snapshot, *pool_);
}

KVCache *Engine::loadCache(const char *path, uint32_t *tokens, uint32_t capacity, uint32_t *length) {
    KvFileReader file(path, kvIdentity());
    const std::vector<uint32_t> &stored = file.tokens();
    const auto count = static_cast<uint32_t>(stored.size());
    if (count > config_.dctx) {
        fail(QWEN3_STATUS_CONTEXT_OVERFLOW, "the KV cache in %s holds %u tokens, the context %u", path, count,
             config_.dctx);
    }
    if (count > capacity) {
        fail(QWEN3_STATUS_BAD_PARAM, "the KV cache in %s holds %u tokens, capacity is %u", path, count, capacity);
    }
    for (uint32_t i = 0; i < count; ++i) {
        if (stored[i] >= config_.dvoc) {
            fail(QWEN3_STATUS_IO_ERROR, "the file %s is damaged: its token %u is %u, the vocabulary has %u", path, i,
                 stored[i], config_.dvoc);
        }
    }
    file.requireBlocks(*pool_);
    const std::shared_ptr<KVCache> cache = guarded(std::make_unique<KVCache>(*pool_));
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        requireBlocks(pool_->blocksFor(count), path);
        cache->prepare(0, count);
    }
    file.readBlocks(*cache, *pool_);
    cache->setLength(count);
    const std::lock_guard<std::mutex> lock(mutex_);
    KVCache *handle = adopt(cache->duplicate(count));
    std::copy(stored.begin(), stored.end(), tokens);
    *length = count;
    return handle;
}

}  // namespace q3
