// KV caches in files. A file holds the token ids, then the blocks of every rank; it is a packed file, whose identity
// says what the blocks depend on.
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

// What the keys and values of given tokens depend on, in lines of "name=value". It reads all weights, some 10 GB a
// second. Throws NOT_IMPLEMENTED when the backend cannot save blocks.
std::string kvIdentity(const ModelConfig &config, const Rope &rope, const std::vector<const ModelWeights *> &weights,
                       const std::vector<std::unique_ptr<Backend>> &backends);

// Writes a whole cache; tokens [cache.length()]. Nobody may write to its blocks meanwhile. Throws IO_ERROR.
void writeKvFile(const char *path, const std::string &identity, const uint32_t *tokens, const KVCache &cache,
                 const BlockPool &pool);

// Every method throws IO_ERROR when the file is damaged, UNREADABLE when the system does not read it.
class KvFileReader {
public:
    // Throws IO_ERROR, UNREADABLE, or CACHE_MISMATCH and what is different.
    KvFileReader(const char *path, const std::string &identity);

    const std::vector<uint32_t> &tokens() const { return tokens_; }
    // Throws unless the file has the blocks of all tokens: ask before memory is taken for them.
    void requireBlocks(const BlockPool &pool) const;
    // Fills the blocks of `cache`, which has room for tokens().size() tokens and which nobody else uses.
    void readBlocks(const KVCache &cache, const BlockPool &pool);

private:
    std::string path_;
    PackedReader reader_;
    ThreadPool inline_{1};
    std::vector<uint32_t> tokens_;
};

}  // namespace q3
