#include "ops/cpu/attention_plan.h"

#include <algorithm>

namespace q3::cpu {
namespace {

// Reading a key and its value costs a core about as much as the arithmetic of this many rows on them: 512 bytes at 15
// GB/s against 512 operations at 100 GFLOP/s.
constexpr double kReadRows = 6;
// Long items are cut, which costs two more forks per layer, if the last thread would work this many times as long as
// its even share.
constexpr double kWorthCutting = 1.25;
// A thread claims several items of a batch at once, but no more than this part of its share in one claim: threads then
// finish together.
constexpr double kClaimsEach = 8;
// Parts have room for at least this many rows per thread and split, as a draft of eight tokens with two heads each has.
constexpr uint32_t kPartRows = 16;

uint32_t splitsOf(uint32_t keys) {
    return (keys + kSplit - 1) / kSplit;
}

}  // namespace

size_t AttentionPlan::maxPartRows() const {
    return shape_.threads == 1 ? 0 : size_t{shape_.threads} * splitsOf(shape_.dctx) * std::max(shape_.group, kPartRows);
}

double AttentionPlan::cost(const AttentionItem &item) const {
    return item.keys() * (item.ntok * shape_.group + kReadRows);
}

void AttentionPlan::build(const std::vector<Sequence> &sequences) {
    items_.clear();
    units_.clear();
    merges_.clear();
    double total = 0;
    double longest = 0;
    double longest_split = 0;
    one_item_each_ = true;
    for (const Sequence &sequence : sequences) {
        one_item_each_ = one_item_each_ && sequence.ntok <= shape_.tokens_per_item;
        for (uint32_t first = 0; first < sequence.ntok; first += shape_.tokens_per_item) {
            const uint32_t ntok = std::min(shape_.tokens_per_item, sequence.ntok - first);
            for (uint32_t head = 0; head < shape_.nkvh; ++head) {
                items_.push_back({&sequence, head, first, ntok});
            }
            const double item = cost(items_.back());
            total += item * shape_.nkvh;
            longest = std::max(longest, item);
            longest_split = std::max(longest_split, item / items_.back().keys() * kSplit);
        }
    }

    // The time until the last thread is done: it has the longest item, or one item more than others.
    const size_t threads = shape_.threads;
    const size_t rounds = (items_.size() + threads - 1) / threads;
    const double last = std::max(longest, static_cast<double>(rounds) * total /
                                              static_cast<double>(std::max<size_t>(1, items_.size())));
    const double share = total / static_cast<double>(threads);
    const bool cut = last > kWorthCutting * std::max(share, longest_split);

    // In a batch of short sequences an item takes about a microsecond, a claim a tenth of that; and heads of a sequence
    // lie side by side in memory.
    units_together_ = 1;
    if (one_item_each_ && !cut && !items_.empty()) {
        units_together_ = std::max(1U, static_cast<uint32_t>(share / kClaimsEach / longest));
    }

    size_t part = 0;
    for (uint32_t i = 0; i < items_.size(); ++i) {
        const AttentionItem &item = items_[i];
        const size_t rows = size_t{splitsOf(item.keys())} * item.ntok * shape_.group;
        if (cut && item.keys() > kSplit && cost(item) > share / 4 && part + rows <= maxPartRows()) {
            cutItem(i, part);
            part += rows;
        } else {
            units_.push_back({i, false, 0, 0});
        }
    }
}

void AttentionPlan::cutItem(uint32_t index, size_t part) {
    const uint32_t rows = items_[index].ntok * shape_.group;
    for (uint32_t row = 0; row < rows; ++row) {
        merges_.push_back({index, row, part});
    }
    for (uint32_t key = 0; key < items_[index].keys(); key += kSplit) {
        units_.push_back({index, true, key, part});
        part += rows;
    }
}

}  // namespace q3::cpu
