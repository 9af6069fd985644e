// KV caches in files: the token ids, then the blocks of every rank, in a packed file whose identity says what they
// depend on.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/kv_cache.h"
#include "model/rope.h"
#include "model/weights.h"
#include "ops/backend.h"
#include "runtime/packed_file.h"

namespace q3 {

// A line "name=value" for everything that the keys and values of given tokens depend on. Reads all weights, and takes
// a second for some 10 GB. Throws NOT_IMPLEMENTED when the backend cannot save blocks.
std::string kvIdentity(const ModelConfig &config, const Rope &rope, const std::vector<const ModelWeights *> &weights,
                       const std::vector<std::unique_ptr<Backend>> &backends);

// Writes all of a cache whose blocks nobody changes meanwhile; tokens [cache.length()]. Throws IO_ERROR.
void writeKvFile(const char *path, const std::string &identity, const uint32_t *tokens, const KVCache &cache,
                 const BlockPool &pool);

// Every method throws IO_ERROR when the file is damaged.
class KvFileReader {
public:
    // Throws IO_ERROR, or CACHE_MISMATCH and what is different.
    KvFileReader(const char *path, const std::string &identity);

    const std::vector<uint32_t> &tokens() const { return tokens_; }
    // Fills blocks that nobody else uses: those of tokens().size() tokens.
    void readBlocks(const KVCache &cache, const BlockPool &pool);

private:
    std::string path_;
    PackedReader reader_;
    ThreadPool inline_{1};
    std::vector<uint32_t> tokens_;
};

}  // namespace q3
