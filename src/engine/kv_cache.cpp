#include "engine/kv_cache.h"

#include <algorithm>

#include "runtime/ranks.h"

namespace q3 {

// Calls function(rank) for every rank. With several ranks, what it throws gets the rank's number into its message.
template <typename Function> void BlockPool::onEveryRank(const Function &function) const {
    for (uint32_t rank = 0; rank < ranks(); ++rank) {
        try {
            function(rank);
        } catch (...) {
            if (ranks() == 1) {
                throw;
            }
            rethrowOfRank(rank, ranks(), std::current_exception());
        }
    }
}

BlockPool::~BlockPool() {
    for (Block *block : free_) {
        freeBlock(block);
    }
}

void BlockPool::freeBlock(Block *block) noexcept {
    for (size_t rank = 0; rank < block->data.size(); ++rank) {
        memories_[rank]->release(block->data[rank]);
    }
    delete block;
}

BlockPool::Block *BlockPool::take() {
    Block *block = nullptr;
    if (!free_.empty()) {
        block = free_.back();
        free_.pop_back();
    } else {
        free_.reserve(used_blocks_ + free_.size() + 1);  // so that release() never allocates
        block = new Block;
        try {
            block->data.reserve(ranks());
            onEveryRank([&](uint32_t rank) { block->data.push_back(memories_[rank]->allocate(rank_bytes_)); });
        } catch (...) {
            freeBlock(block);
            throw;
        }
    }
    block->refs = 1;
    ++used_blocks_;
    return block;
}

BlockPool::Block *BlockPool::copyOf(const Block *source) {
    Block *block = take();
    try {
        onEveryRank([&](uint32_t rank) { memories_[rank]->copy(block->data[rank], source->data[rank], rank_bytes_); });
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
    for (uint32_t rank = 0; rank < pool_.ranks(); ++rank) {
        copy->data_[rank].assign(data_[rank].begin(), data_[rank].begin() + static_cast<ptrdiff_t>(count));
    }
    for (uint64_t i = 0; i < count; ++i) {
        ++blocks_[i]->refs;
        copy->blocks_.push_back(blocks_[i]);
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
    for (std::vector<void *> &data : data_) {
        data.reserve(blocks_.capacity());
    }
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
        } else {
            blocks_.push_back(block);
        }
        setData(i, *block);
    }
}

// Allocates nothing: prepare() has reserved the capacity.
void KVCache::setData(size_t index, const BlockPool::Block &block) {
    for (uint32_t rank = 0; rank < pool_.ranks(); ++rank) {
        data_[rank].resize(std::max(data_[rank].size(), index + 1));
        data_[rank][index] = block.data[rank];
    }
}

void KVCache::truncate(uint32_t length) noexcept {
    const uint64_t keep = pool_.blocksFor(length);
    while (blocks_.size() > keep) {
        pool_.release(blocks_.back());
        blocks_.pop_back();
        for (std::vector<void *> &data : data_) {
            data.pop_back();
        }
    }
    length_ = std::min(length_, length);
}
