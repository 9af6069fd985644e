// Decides which thread does what in attention. A work item is (sequence, KV head, a run of tokens); its rows are the
// queries of all heads that share the KV head, so each K and V tile is read once for all of them. Where items alone
// would keep threads waiting, as with more threads than KV heads in decode, long ones are cut into their splits of
// keys.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ops/types.h"

namespace q3::cpu {

// Keys per softmax pass. Attention is defined as: one softmax-weighted sum per split of 512 positions, counted from
// position 0, merged in order. It therefore depends neither on chunking nor on how the work is shared out.
constexpr uint32_t kSplit = 512;

// Rows are ordered token by token, and the heads of the group inside a token.
struct AttentionItem {
    const Sequence *sequence;
    uint32_t kv_head;
    uint32_t first;  // first token, relative to the sequence's first row
    uint32_t ntok;
    uint32_t keys() const { return sequence->pos + first + ntok; }  // visible to the last token
};

class AttentionPlan {
public:
    struct Shape {
        uint32_t nkvh;
        uint32_t group;            // query heads per KV head
        uint32_t tokens_per_item;  // limit
        uint32_t dctx;
        uint32_t threads;
    };
    // What a thread claims: an item, or one split of a cut item.
    struct Unit {
        uint32_t item;
        bool cut;
        uint32_t first_key;  // first key of the split
        size_t part;         // where the split's result is kept, in rows
    };
    // What a thread claims after all units are done: one row of a cut item, whose parts it merges.
    struct Merge {
        uint32_t item;
        uint32_t row;
        size_t part;  // where the item's parts begin; each has all rows of the item
    };

    explicit AttentionPlan(const Shape &shape) : shape_(shape) {}

    void build(const std::vector<Sequence> &sequences);

    // The most rows that all parts of a step take together.
    size_t maxPartRows() const;
    const std::vector<AttentionItem> &items() const { return items_; }
    const std::vector<Unit> &units() const { return units_; }
    // How many neighbouring units a thread claims at a time.
    uint32_t unitsTogether() const { return units_together_; }
    const std::vector<Merge> &merges() const { return merges_; }
    // Whether every sequence has one item per KV head, as in decode: no item reads keys that another one writes.
    bool oneItemEach() const { return one_item_each_; }

private:
    double cost(const AttentionItem &item) const;
    void cutItem(uint32_t index, size_t part);

    Shape shape_;
    bool one_item_each_ = true;
    uint32_t units_together_ = 1;
    std::vector<AttentionItem> items_;
    std::vector<Unit> units_;
    std::vector<Merge> merges_;
};

}  // namespace q3::cpu
