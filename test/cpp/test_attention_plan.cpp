// Checks who does what in attention: nothing is left out or done twice, parts do not overlap, and no thread waits long
// where there are more threads than items.
#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <tuple>
#include <vector>

#include "check.h"
#include "ops/cpu/attention_plan.h"

using q3::Sequence;
using q3::cpu::AttentionItem;
using q3::cpu::AttentionPlan;
using q3::cpu::kSplit;

namespace {

struct Request {
    uint32_t pos, ntok;
};

std::vector<Sequence> sequencesOf(const std::vector<Request> &requests) {
    std::vector<Sequence> sequences;
    uint32_t row = 0;
    for (const Request &request : requests) {
        sequences.push_back({row, request.ntok, request.pos, nullptr});
        row += request.ntok;
    }
    return sequences;
}

// Every row of every sequence and head meets every split of its keys once, and the rows of cut items are merged once.
void checkComplete(const AttentionPlan &plan, const AttentionPlan::Shape &shape,
                   const std::vector<Sequence> &sequences) {
    std::set<std::tuple<const Sequence *, uint32_t, uint32_t>> tokens;
    size_t expected = 0;
    for (const Sequence &sequence : sequences) {
        expected += size_t{sequence.ntok} * shape.nkvh;
    }
    for (const AttentionItem &item : plan.items()) {
        CHECK(item.ntok <= shape.tokens_per_item);
        CHECK(item.keys() == item.sequence->pos + item.first + item.ntok);
        for (uint32_t i = item.first; i < item.first + item.ntok; ++i) {
            CHECK(i < item.sequence->ntok && item.kv_head < shape.nkvh);
            CHECK(tokens.emplace(item.sequence, item.kv_head, i).second);
        }
    }
    CHECK(tokens.size() == expected);

    std::vector<uint32_t> whole(plan.items().size());
    std::vector<std::map<uint32_t, size_t>> splits(plan.items().size());  // first key: part
    std::vector<bool> used(plan.maxPartRows());
    for (const AttentionPlan::Unit &unit : plan.units()) {
        const AttentionItem &item = plan.items()[unit.item];
        if (!unit.cut) {
            ++whole[unit.item];
            continue;
        }
        CHECK(unit.first_key % kSplit == 0 && unit.first_key < item.keys());
        CHECK(splits[unit.item].emplace(unit.first_key, unit.part).second);
        const uint32_t rows = item.ntok * shape.group;
        CHECK(unit.part + rows <= used.size());
        for (size_t row = unit.part; row < std::min(unit.part + rows, used.size()); ++row) {
            CHECK(!used[row]);
            used[row] = true;
        }
    }
    std::map<uint32_t, std::set<uint32_t>> merged;
    for (const AttentionPlan::Merge &merge : plan.merges()) {
        CHECK(merged[merge.item].insert(merge.row).second);
        const uint32_t rows = plan.items()[merge.item].ntok * shape.group;
        CHECK(merge.row < rows);
        for (const auto &[first_key, part] : splits[merge.item]) {
            CHECK(part == merge.part + first_key / kSplit * rows);
        }
    }
    for (uint32_t i = 0; i < plan.items().size(); ++i) {
        const uint32_t keys = plan.items()[i].keys();
        const bool cut = !splits[i].empty();
        CHECK(whole[i] == (cut ? 0 : 1));
        CHECK(!cut || splits[i].size() == (keys + kSplit - 1) / kSplit);
        CHECK(merged[i].size() == (cut ? plan.items()[i].ntok * shape.group : 0));
    }
    const bool one_item_each = std::all_of(sequences.begin(), sequences.end(),
                                           [&](const Sequence &s) { return s.ntok <= shape.tokens_per_item; });
    CHECK(plan.oneItemEach() == one_item_each);
}

// Keys that the busiest thread reads when units are claimed in order by whoever is free.
uint64_t busiest(const AttentionPlan &plan, uint32_t threads) {
    std::vector<uint64_t> until(threads);
    for (size_t i = 0; i < plan.units().size();) {
        uint64_t &first_free = *std::min_element(until.begin(), until.end());
        for (const size_t end = std::min(plan.units().size(), i + plan.unitsTogether()); i < end; ++i) {
            const AttentionPlan::Unit &unit = plan.units()[i];
            const uint32_t keys = plan.items()[unit.item].keys();
            first_free += unit.cut ? std::min(kSplit, keys - unit.first_key) : keys;
        }
    }
    return *std::max_element(until.begin(), until.end());
}

// A decode step; returns whether anything was cut.
bool decode(uint32_t nkvh, uint32_t threads, const std::vector<uint32_t> &contexts, double at_most) {
    const AttentionPlan::Shape shape{nkvh, 2, 48, 40960, threads};
    AttentionPlan plan(shape);
    std::vector<Request> requests;
    for (const uint32_t context : contexts) {
        requests.push_back({context - 1, 1});
    }
    const std::vector<Sequence> sequences = sequencesOf(requests);
    plan.build(sequences);
    checkComplete(plan, shape, sequences);
    const uint64_t total = uint64_t{nkvh} * std::accumulate(contexts.begin(), contexts.end(), uint64_t{0});
    const double share = static_cast<double>(total) / threads;
    CHECK(static_cast<double>(busiest(plan, threads)) <= at_most * share);
    return !plan.merges().empty();
}

void testDecode() {
    CHECK(!decode(8, 1, {40000}, 1.0));
    CHECK(!decode(8, 2, {40000}, 1.0));
    CHECK(!decode(8, 8, {40000}, 1.0));
    CHECK(decode(8, 16, {40000}, 1.05));  // 2.0 with whole items
    CHECK(decode(8, 6, {4096}, 1.05));    // 1.5
    CHECK(decode(1, 8, {4096}, 1.0));     // one rank of several; 8.0
    CHECK(decode(8, 64, {32768}, 1.0));
    CHECK(decode(2, 8, {30000, 600, 600, 600}, 1.1));  // a long one among short ones
    CHECK(!decode(2, 8, {600}, 4.0));                  // parts of 512 would hardly be shorter
    CHECK(!decode(2, 8, {512}, 4.0));
    CHECK(!decode(8, 16, std::vector<uint32_t>(16, 4096), 1.0));
    CHECK(!decode(3, 4, {}, 1.0));
}

// Short sequences of a batch are claimed several heads at a time, unless threads would wait for each other.
void testTogether() {
    const auto together = [](uint32_t threads, const std::vector<Request> &requests) {
        AttentionPlan plan({8, 2, 48, 40960, threads});
        const std::vector<Sequence> sequences = sequencesOf(requests);
        plan.build(sequences);
        return plan.unitsTogether();
    };
    CHECK(together(2, std::vector<Request>(16, {40, 1})) == 8);
    CHECK(together(8, std::vector<Request>(16, {40, 1})) == 2);
    CHECK(together(32, std::vector<Request>(16, {40, 1})) == 1);
    CHECK(together(2, {{40, 1}}) == 1);
    CHECK(together(2, {{0, 512}}) == 1);
    std::vector<Request> mixed(16, {40, 1});
    mixed[15].pos = 400;
    CHECK(together(2, mixed) == 1);
    CHECK(!decode(8, 2, std::vector<uint32_t>(15, 40), 1.1));
    CHECK(!decode(8, 3, std::vector<uint32_t>(32, 40), 1.1));
    CHECK(!decode(8, 2, {40, 40, 40, 40, 40, 40, 40, 40, 40, 40, 40, 40, 40, 40, 40, 160}, 1.15));
}

// Prompts, drafts and decode together, more than parts have room for.
void testMixed() {
    std::mt19937 random(5);
    const auto upTo = [&](uint32_t limit) { return 1 + static_cast<uint32_t>(random() % limit); };
    uint32_t cut = 0;
    uint32_t full = 0;
    for (int trial = 0; trial < 500; ++trial) {
        const uint32_t group = upTo(8);
        const AttentionPlan::Shape shape{upTo(8), group, 96 / group, 8192, upTo(40)};
        AttentionPlan plan(shape);
        std::vector<Request> requests;
        for (uint32_t i = upTo(6); i > 0; --i) {
            const uint32_t ntok = random() % 3 == 0 ? upTo(400) : upTo(8);
            requests.push_back({random() % 3 == 0 ? 0 : upTo(8192 - ntok), ntok});
        }
        const std::vector<Sequence> sequences = sequencesOf(requests);
        plan.build(sequences);
        checkComplete(plan, shape, sequences);
        CHECK(shape.threads > 1 || plan.maxPartRows() == 0);
        cut += plan.merges().empty() ? 0 : 1;
        full += std::any_of(plan.units().begin(), plan.units().end(),
                            [&](const auto &unit) {
                                return !plan.merges().empty() && !unit.cut && plan.items()[unit.item].keys() > 4096 &&
                                       plan.items()[unit.item].ntok >= 48 / group;
                            })
                    ? 1
                    : 0;
        plan.build({});
        CHECK(plan.items().empty() && plan.units().empty() && plan.merges().empty());
    }
    CHECK(cut > 50 && full > 5);  // or the trials say little
    std::printf("%u of 500 steps cut, %u with no room for some\n", cut, full);
}

}  // namespace

int main() {
    testDecode();
    testTogether();
    testMixed();
    return q3test::finish("attention_plan");
}
