// KV caches as tables of reference-counted blocks drawn from one bounded pool per model.
//
// A block holds `block_tokens` tokens of all layers, in one piece of memory on each rank of the model; what lies where
// inside is the backend's business. Growing appends blocks, duplicating shares them, and a shared block is copied
// before anybody writes to it. Nothing here knows the device: memory comes through BlockMemory.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "ops/block_memory.h"

namespace q3 {

class BlockPool {
public:
    // memories [ranks]; rank_bytes: of a block on one rank; limit_bytes: of all blocks on all ranks.
    BlockPool(std::vector<BlockMemory *> memories, size_t rank_bytes, uint32_t block_tokens, uint64_t limit_bytes)
        : memories_(std::move(memories)), rank_bytes_(rank_bytes), block_tokens_(block_tokens),
          limit_bytes_(limit_bytes) {}
    ~BlockPool();
    BlockPool(const BlockPool &) = delete;
    BlockPool &operator=(const BlockPool &) = delete;

    struct Block {
        std::vector<void *> data;  // [ranks]
        uint32_t refs = 0;
    };

    // A block with one reference, whose content is unspecified or that of `source`. Both throw what a rank's memory
    // throws. They do not look at the limit: the caller has.
    Block *take();
    Block *copyOf(const Block *source);
    void release(Block *block) noexcept;

    uint32_t ranks() const { return static_cast<uint32_t>(memories_.size()); }
    size_t blockBytes() const { return rank_bytes_ * memories_.size(); }  // on all ranks together
    uint32_t blockTokens() const { return block_tokens_; }
    uint64_t limitBytes() const { return limit_bytes_; }
    uint64_t usedBytes() const { return used_blocks_ * blockBytes(); }
    // Blocks that may still be taken within the limit.
    uint64_t blocksLeft() const { return limit_bytes_ / blockBytes() - used_blocks_; }
    uint64_t blocksFor(uint64_t tokens) const { return (tokens + block_tokens_ - 1) / block_tokens_; }

private:
    template <typename Function> void onEveryRank(const Function &function) const;
    void freeBlock(Block *block) noexcept;

    std::vector<BlockMemory *> memories_;
    size_t rank_bytes_;
    uint32_t block_tokens_;
    uint64_t limit_bytes_;
    uint64_t used_blocks_ = 0;
    std::vector<Block *> free_;  // blocks that nobody holds keep their memory, because the next request is rarely far
};

}  // namespace q3

// The C API's opaque handle. Not copyable: duplicate() is the only way to share blocks.
struct KVCache {
public:
    explicit KVCache(q3::BlockPool &pool) : pool_(pool), data_(pool.ranks()) {}
    ~KVCache() { truncate(0); }
    KVCache(const KVCache &) = delete;
    KVCache &operator=(const KVCache &) = delete;

    uint32_t length() const { return length_; }

    std::unique_ptr<KVCache> duplicate(uint32_t length) const;

    // How many blocks writing tokens [pos, pos + ntok) would append. The blocks that it would write to and that other
    // caches hold too are added to `shared`: they must be copied first, unless all other holders have copied them.
    uint64_t blocksNeeded(uint32_t pos, uint32_t ntok, std::vector<const q3::BlockPool::Block *> &shared) const;

    // Makes the tokens [pos, pos + ntok) writable: afterwards nobody else holds their blocks. On a throw nothing has
    // changed.
    void prepare(uint32_t pos, uint32_t ntok);

    // Keeps the first `length` tokens and gives the other blocks back.
    void truncate(uint32_t length) noexcept;
    void setLength(uint32_t length) { length_ = length; }

    void *const *blocks(uint32_t rank = 0) const { return data_[rank].data(); }

private:
    void setData(size_t index, const q3::BlockPool::Block &block);

    q3::BlockPool &pool_;
    uint32_t length_ = 0;
    std::vector<q3::BlockPool::Block *> blocks_;
    std::vector<std::vector<void *>> data_;  // [rank][i] is blocks_[i]->data[rank], as backends read it
};
