// KV caches as tables of reference-counted blocks drawn from one bounded pool per model.
//
// A block holds `block_tokens` tokens of all layers; where is what inside is the backend's business. Growing appends
// blocks, duplicating shares them, and a block that is shared is copied before it is written. Nothing here knows the
// device: memory comes through ops' BlockMemory.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "ops/ops.h"

namespace q3 {

class BlockPool {
public:
    BlockPool(BlockMemory &memory, size_t block_bytes, uint32_t block_tokens, uint64_t limit_bytes)
        : memory_(memory), block_bytes_(block_bytes), block_tokens_(block_tokens), limit_bytes_(limit_bytes) {}
    ~BlockPool();
    BlockPool(const BlockPool &) = delete;
    BlockPool &operator=(const BlockPool &) = delete;

    struct Block {
        void *data;
        uint32_t refs;
    };

    Block *take();                       // refs 1; throws OUT_OF_MEMORY. The limit is the caller's to check.
    Block *copyOf(const Block *source);  // likewise
    void release(Block *block) noexcept;

    size_t blockBytes() const { return block_bytes_; }
    uint32_t blockTokens() const { return block_tokens_; }
    uint64_t limitBytes() const { return limit_bytes_; }
    uint64_t usedBytes() const { return used_blocks_ * block_bytes_; }
    // Blocks that may still be taken within the limit.
    uint64_t blocksLeft() const { return limit_bytes_ / block_bytes_ - used_blocks_; }
    uint64_t blocksFor(uint64_t tokens) const { return (tokens + block_tokens_ - 1) / block_tokens_; }

private:
    BlockMemory &memory_;
    size_t block_bytes_;
    uint32_t block_tokens_;
    uint64_t limit_bytes_;
    uint64_t used_blocks_ = 0;
    std::vector<Block *> free_;  // kept for reuse: the next request is rarely far
};

}  // namespace q3

// The C API's opaque handle. Not copyable: duplicate() is the only way to share blocks.
struct KVCache {
public:
    explicit KVCache(q3::BlockPool &pool) : pool_(pool) {}
    ~KVCache() { truncate(0); }
    KVCache(const KVCache &) = delete;
    KVCache &operator=(const KVCache &) = delete;

    uint32_t length() const { return length_; }

    std::unique_ptr<KVCache> duplicate(uint32_t length) const;

    // Blocks that writing tokens [pos, pos + ntok) would append. Blocks it would write that are shared with other
    // caches are added to `shared`: all but the last of a block's holders to write it must copy it.
    uint64_t blocksNeeded(uint32_t pos, uint32_t ntok, std::vector<const q3::BlockPool::Block *> &shared) const;

    // Makes [pos, pos + ntok) writable: own blocks, exclusively held. Strong guarantee: on a throw nothing changed.
    void prepare(uint32_t pos, uint32_t ntok);

    // Keeps the first `length` tokens and gives the other blocks back.
    void truncate(uint32_t length) noexcept;
    void setLength(uint32_t length) { length_ = length; }

    void *const *blocks() const { return data_.data(); }

private:
    q3::BlockPool &pool_;
    uint32_t length_ = 0;
    std::vector<q3::BlockPool::Block *> blocks_;
    std::vector<void *> data_;  // blocks_[i]->data, the form backends read
};
