#include "ops/cpu/pack/column_order.h"

#include <algorithm>
#include <numeric>

#include "ops/cpu/formats.h"
#include "ops/stored.h"

namespace q3::cpu {
namespace {

bool isInOrder(const HostMatrix &part) {
    return part.stored == nullptr || part.stored->groups.empty();
}

}  // namespace

std::vector<uint32_t> columnOrder(const HostMatrix &part) {
    if (isInOrder(part)) {
        return {};
    }
    const uint32_t *groups = part.stored->groups.data() + part.first_col;
    // Of each group: how many columns it has, then the place of the next one.
    std::vector<uint32_t> places(part.stored->ngroups(), 0);
    for (uint32_t col = 0; col < part.cols; ++col) {
        ++places[groups[col]];
    }
    uint32_t end = 0;
    for (uint32_t &place : places) {
        const uint32_t count = place;
        place = end;
        end += roundUp(count, kGroup);
    }
    std::vector<uint32_t> order(end, kNoColumn);
    for (uint32_t col = 0; col < part.cols; ++col) {
        order[places[groups[col]]++] = col;
    }
    return order;
}

std::vector<uint32_t> columnOrder(const LinearSource &source) {
    const size_t experts = std::max(1U, source.experts);
    const size_t parts = source.parts.size() / experts;
    std::vector<std::vector<uint32_t>> orders;
    size_t longest = 0;
    for (size_t e = 0; e < experts; ++e) {
        orders.push_back(columnOrder(source.parts[e * parts]));
        longest = std::max(longest, orders.back().size());
    }
    std::vector<uint32_t> all(experts * longest, kNoColumn);
    for (size_t e = 0; e < experts && longest > 0; ++e) {
        const auto begin = all.begin() + static_cast<std::ptrdiff_t>(e * longest);
        if (orders[e].empty()) {
            std::iota(begin, begin + source.parts[0].cols, 0U);
        } else {
            std::copy(orders[e].begin(), orders[e].end(), begin);
        }
    }
    return all;
}

bool haveOneOrder(const HostMatrix &a, const HostMatrix &b) {
    return (isInOrder(a) && isInOrder(b)) || columnOrder(a) == columnOrder(b);
}

}  // namespace q3::cpu
