#include "runtime/kv_cache.h"

#include <algorithm>

namespace q3 {

BlockPool::~BlockPool() {
    for (Block *block : free_) {
        memory_.release(block->data);
        delete block;
    }
}

BlockPool::Block *BlockPool::take() {
    Block *block = nullptr;
    if (!free_.empty()) {
        block = free_.back();
        free_.pop_back();
    } else {
        auto fresh = std::make_unique<Block>();
        free_.reserve(used_blocks_ + free_.size() + 1);  // so that release() never allocates
        fresh->data = memory_.allocate(block_bytes_);
        block = fresh.release();
    }
    block->refs = 1;
    ++used_blocks_;
    return block;
}

BlockPool::Block *BlockPool::copyOf(const Block *source) {
    Block *block = take();
    try {
        memory_.copy(block->data, source->data, block_bytes_);
    } catch (...) {
        release(block);
        throw;
    }
    return block;
}

void BlockPool::release(Block *block) noexcept {
    if (--block->refs == 0) {
        free_.push_back(block);
        --used_blocks_;
    }
}

}  // namespace q3

using q3::BlockPool;

std::unique_ptr<KVCache> KVCache::duplicate(uint32_t length) const {
    auto copy = std::make_unique<KVCache>(pool_);
    const uint64_t count = pool_.blocksFor(length);
    copy->blocks_.reserve(count);
    copy->data_.reserve(count);
    for (uint64_t i = 0; i < count; ++i) {
        ++blocks_[i]->refs;
        copy->blocks_.push_back(blocks_[i]);
        copy->data_.push_back(data_[i]);
    }
    copy->length_ = length;
    return copy;
}

uint64_t KVCache::blocksNeeded(uint32_t pos, uint32_t ntok, std::vector<const BlockPool::Block *> &shared) const {
    const uint64_t end = pool_.blocksFor(uint64_t{pos} + ntok);
    for (uint64_t i = pos / pool_.blockTokens(); i < std::min<uint64_t>(end, blocks_.size()); ++i) {
        if (blocks_[i]->refs > 1) {
            shared.push_back(blocks_[i]);
        }
    }
    return end > blocks_.size() ? end - blocks_.size() : 0;
}

void KVCache::prepare(uint32_t pos, uint32_t ntok) {
    const uint64_t first = pos / pool_.blockTokens();
    const uint64_t end = pool_.blocksFor(uint64_t{pos} + ntok);
    std::vector<BlockPool::Block *> fresh;
    fresh.reserve(end - first);
    blocks_.reserve(std::max<size_t>(end, blocks_.size()));
    data_.reserve(blocks_.capacity());
    try {
        for (uint64_t i = first; i < end; ++i) {
            if (i >= blocks_.size()) {
                fresh.push_back(pool_.take());
            } else if (blocks_[i]->refs > 1) {
                fresh.push_back(pool_.copyOf(blocks_[i]));
            } else {
                fresh.push_back(nullptr);
            }
        }
    } catch (...) {
        for (BlockPool::Block *block : fresh) {
            if (block != nullptr) {
                pool_.release(block);
            }
        }
        throw;
    }
    for (uint64_t i = first; i < end; ++i) {
        BlockPool::Block *block = fresh[i - first];
        if (block == nullptr) {
            continue;
        }
        if (i < blocks_.size()) {
            pool_.release(blocks_[i]);
            blocks_[i] = block;
            data_[i] = block->data;
        } else {
            blocks_.push_back(block);
            data_.push_back(block->data);
        }
    }
}

void KVCache::truncate(uint32_t length) noexcept {
    const uint64_t keep = pool_.blocksFor(length);
    while (blocks_.size() > keep) {
        pool_.release(blocks_.back());
        blocks_.pop_back();
        data_.pop_back();
    }
    length_ = std::min(length_, length);
}
