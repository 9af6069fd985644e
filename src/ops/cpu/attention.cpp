// Causal GQA attention over KV blocks. attention_plan.h says what a thread does at a time; its scratch is a fixed size
// whatever the context length.
#include "ops/cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "ops/cpu/cpu_backend.h"

namespace q3::cpu {
namespace {

constexpr uint32_t kTokenGrain = 4;  // worth a fork

// KV tiles that hold so many tokens.
constexpr uint32_t tilesOf(uint32_t tokens) {
    return (tokens + kPanelRows - 1) / kPanelRows;
}

inline void prefetch(const char *next, size_t bytes) {
    for (size_t line = 0; line < bytes; line += 64) {
        __builtin_prefetch(next + line);
    }
}

}  // namespace

// In decode an item reads no keys of other items, so it begins with its own heads: a fork less. If it is cut, and in
// longer chunks, keys must be there before any unit starts. There a thread takes all heads of a few tokens, which lie
// side by side.
void CpuBackend::qkNormRopeStore(Activation qkv, const PackedNorm &q_norm, const PackedNorm &k_norm, float epsilon,
                                 uint32_t layer) {
    head_norms_ = {static_cast<const CpuVector &>(q_norm).data(), static_cast<const CpuVector &>(k_norm).data(),
                   epsilon};
    if (!attention_plan_.oneItemEach()) {
        for (const Sequence &sequence : plan_->sequences) {
            pool_.parallelFor(sequence.ntok, kTokenGrain, [&](uint32_t begin, uint32_t end, uint32_t) {
                for (uint32_t head = 0; head < config_.nkvh; ++head) {
                    prepareHeads({&sequence, head, begin, end - begin}, qkv, layer);
                }
            });
        }
    } else if (!attention_plan_.merges().empty()) {
        const auto &items = attention_plan_.items();
        pool_.parallelFor(static_cast<uint32_t>(items.size()), 1, [&](uint32_t begin, uint32_t end, uint32_t) {
            for (uint32_t i = begin; i < end; ++i) {
                prepareHeads(items[i], qkv, layer);
            }
        });
    } else {
        return;
    }
    head_norms_ = {};
}

// Norm and rope for the item's query heads and its key head, whose keys and values go into the cache.
void CpuBackend::prepareHeads(const AttentionItem &item, Activation qkv, uint32_t layer) const {
    const ModelConfig &c = config_;
    const uint32_t group = c.group();
    for (uint32_t i = item.first; i < item.first + item.ntok; ++i) {
        const uint32_t row = item.sequence->row + i;
        float *heads = static_cast<float *>(qkv.data) + size_t{row} * qkv.width;
        const auto head = [&](uint32_t index) { return heads + size_t{index} * c.dh; };
        const float *cos = plan_->rope_cos + size_t{row} * (c.dh / 2);
        const float *sin = plan_->rope_sin + size_t{row} * (c.dh / 2);
        const auto turn = [&](float *x, const float *norm) {
            kernels_.rmsnorm(x, x, norm, c.dh, head_norms_.epsilon);
            kernels_.rope(x, cos, sin, c.dh / 2);
        };
        for (uint32_t q = 0; q < group; ++q) {
            turn(head(item.kv_head * group + q), head_norms_.q);
        }
        float *k = head(c.nh + item.kv_head);  // k heads follow the q heads, and v heads them
        turn(k, head_norms_.k);
        const uint32_t pos = item.sequence->pos + i;
        storeToken(kvTile(item.sequence->kv_blocks[pos / kBlockTokens], layer, item.kv_head), pos % kBlockTokens, k,
                   head(c.nh + c.nkvh + item.kv_head));
    }
}

void CpuBackend::attention(Activation out, Activation qkv, uint32_t layer) {
    const auto &items = attention_plan_.items();
    const auto &units = attention_plan_.units();
    const auto scratch = [&](uint32_t thread) {
        return AttentionScratch(attention_scratch_[thread].as<float>(), query_rows_, config_.dh);
    };
    const auto part = [&](size_t row, uint32_t rows) {
        return AttentionPart(attention_parts_.as<float>() + AttentionPart::floats(row, config_.dh), rows, config_.dh);
    };
    pool_.parallelFor(static_cast<uint32_t>(units.size()), 1, [&](uint32_t begin, uint32_t end, uint32_t thread) {
        const AttentionScratch s = scratch(thread);
        for (uint32_t i = begin; i < end; ++i) {
            const AttentionPlan::Unit &unit = units[i];
            const AttentionItem &item = items[unit.item];
            if (unit.cut) {
                loadQueries(item, qkv, s);
                attendSplit(item, layer, unit.first_key, std::min(unit.first_key + kSplit, item.keys()), s,
                            part(unit.part, item.ntok * config_.group()));
            } else {
                attendItem(item, out, qkv, layer, s);
            }
        }
    });

    const auto &merges = attention_plan_.merges();
    pool_.parallelFor(static_cast<uint32_t>(merges.size()), 1, [&](uint32_t begin, uint32_t end, uint32_t thread) {
        const AttentionScratch s = scratch(thread);
        for (uint32_t i = begin; i < end; ++i) {
            const AttentionPlan::Merge &merge = merges[i];
            const AttentionItem &item = items[merge.item];
            const uint32_t rows = item.ntok * config_.group();
            clearTotal(s, merge.row);
            for (size_t first_key = 0, at = merge.part; first_key < item.keys(); first_key += kSplit, at += rows) {
                mergeSplit(item, static_cast<uint32_t>(first_key), merge.row, part(at, rows), s);
            }
            finishRow(item, merge.row, out, s);
        }
    });
}

void CpuBackend::attendItem(const AttentionItem &item, Activation out, Activation qkv, uint32_t layer,
                            const AttentionScratch &s) const {
    if (head_norms_.q != nullptr) {
        prepareHeads(item, qkv, layer);
    }
    loadQueries(item, qkv, s);
    const uint32_t rows = item.ntok * config_.group();
    for (uint32_t r = 0; r < rows; ++r) {
        clearTotal(s, r);
    }
    for (uint32_t first_key = 0; first_key < item.keys(); first_key += kSplit) {
        attendSplit(item, layer, first_key, item.keys(), s, s.part);
        for (uint32_t r = 0; r < rows; ++r) {
            mergeSplit(item, first_key, r, s.part, s);
        }
    }
    for (uint32_t r = 0; r < rows; ++r) {
        finishRow(item, r, out, s);
    }
}

// Where row r of the item is in an activation.
float *CpuBackend::rowOf(const AttentionItem &item, uint32_t r, Activation x) const {
    const uint32_t group = config_.group();
    return static_cast<float *>(x.data) + size_t{item.sequence->row + item.first + r / group} * x.width +
           size_t{item.kv_head * group + r % group} * config_.dh;
}

void CpuBackend::loadQueries(const AttentionItem &item, Activation qkv, const AttentionScratch &s) const {
    const uint32_t dh = config_.dh;
    const float scale = 1.0F / std::sqrt(static_cast<float>(dh));
    for (uint32_t r = 0; r < item.ntok * config_.group(); ++r) {
        const float *q = rowOf(item, r, qkv);
        for (uint32_t i = 0; i < dh; ++i) {
            s.query[size_t{r} * dh + i] = q[i] * scale;
        }
    }
}

// Calls use(tiles, first key) for the groups of kTilesTogether tiles of `nkeys` keys; tile(key) is where one is. Tiles
// lie far apart, one per block, so the hardware does not see the next ones coming: a kernel fetches them while it
// multiplies, and with the last group the first `later` tiles of what comes then, which tile() gives from ntiles * 16
// on.
template <typename Tile, typename Use>
void CpuBackend::forTiles(uint32_t nkeys, uint32_t later, const Tile &tile, const Use &use) {
    const uint32_t ntiles = tilesOf(nkeys);
    const uint32_t all = ntiles + std::min(later, kTilesTogether);
    const char *at[kSplit / kBlockTokens + kTilesTogether];
    for (uint32_t t = 0; t < all; ++t) {
        at[t] = tile(t * kBlockTokens);
    }
    for (uint32_t t = 0; t < ntiles; t += kTilesTogether) {
        const uint32_t count = std::min(kTilesTogether, ntiles - t);
        use(KvTiles{at + t, count, std::min(count, all - t - count)}, t * kBlockTokens);
    }
}

// Scores of the split's keys for every row; its values come then.
void CpuBackend::scoreKeys(const Tiles &tiles, uint32_t nkeys, uint32_t rows, const AttentionScratch &s) const {
    const uint32_t dh = config_.dh;
    const uint32_t ntiles = tilesOf(nkeys);
    const auto tile = [&](uint32_t key) {
        const uint32_t end = ntiles * kBlockTokens;
        return key < end ? tiles.at(key).keys : tiles.at(key - end).values;
    };
    forTiles(nkeys, ntiles, tile, [&](const KvTiles &keys, uint32_t key) {
        for (uint32_t row = 0; row < rows; row += kernels_.tile_rows) {
            kernels_.score[kv_type_](s.query + size_t{row} * dh, dh, std::min(kernels_.tile_rows, rows - row), keys, dh,
                                     s.scores + size_t{row} * kSplit + key, kSplit);
        }
    });
}

// out[rows][value_width_] = scores times V; the keys of the next split come then.
void CpuBackend::weighValues(const Tiles &tiles, uint32_t nkeys, uint32_t rows, const AttentionScratch &s,
                             float *out) const {
    const auto tile = [&](uint32_t key) { return key < nkeys ? tiles.at(key).values : tiles.at(key).keys; };
    forTiles(nkeys, tiles.ntiles - tilesOf(nkeys), tile, [&](const KvTiles &values, uint32_t key) {
        for (uint32_t row = 0; row < rows; row += kernels_.tile_rows) {
            kernels_.weigh[kv_type_](s.scores + size_t{row} * kSplit + key, kSplit,
                                     std::min(kernels_.tile_rows, rows - row), values,
                                     std::min(nkeys - key, values.count * kBlockTokens), value_width_ / kPanelRows,
                                     out + size_t{row} * value_width_, value_width_, key > 0);
        }
    });
}

// The same two for many rows: tiles are converted to float once for all of them, and chains are longer.
void CpuBackend::scoreKeysWide(const Tiles &tiles, uint32_t nkeys, uint32_t rows, const AttentionScratch &s) const {
    for (uint32_t key = 0; key < nkeys; key += kBlockTokens) {
        if (key + kPair < nkeys) {
            prefetch(tiles.at(key + kPair).keys, size_t{config_.dh} * kBlockTokens * elementSize());
        }
        loadKeys(tiles.at(key), s.tile);
        const float *b = s.tile;
        for (uint32_t row = 0; row < rows; row += kernels_.tile_rows) {
            float *c = s.scores + size_t{row} * kSplit + key;
            kernels_.tile(s.query + size_t{row} * config_.dh, config_.dh, 1, &b, kBlockTokens, config_.dh, &c, kSplit,
                          std::min(kernels_.tile_rows, rows - row), 1, false);
        }
    }
}

void CpuBackend::weighValuesWide(const Tiles &tiles, uint32_t nkeys, uint32_t rows, const AttentionScratch &s,
                                 float *out) const {
    constexpr uint32_t kKeys = AttentionScratch::kWideKeys;
    const uint32_t width = valuePanel();
    const size_t panel_bytes = kBlockTokens * width * elementSize();
    for (uint32_t first = 0; first < nkeys; first += kKeys) {
        const uint32_t count = std::min(kKeys, nkeys - first);
        for (uint32_t panel = 0; panel < value_width_ / width; ++panel) {
            for (uint32_t key = 0; key < count; key += kBlockTokens) {
                if (first + key + kKeys < nkeys) {
                    prefetch(tiles.at(first + key + kKeys).values + panel * panel_bytes, panel_bytes);
                }
                loadValues(tiles.at(first + key), panel, s.tile + size_t{key} * width);
            }
            const float *b[] = {s.tile, s.tile + kPanelRows};
            for (uint32_t row = 0; row < rows; row += kernels_.tile_rows) {
                float *to = out + size_t{row} * value_width_ + size_t{panel} * width;
                float *c[] = {to, to + kPanelRows};
                kernels_.tile(s.scores + size_t{row} * kSplit + first, kSplit, 1, b, width, count, c, value_width_,
                              std::min(kernels_.tile_rows, rows - row), width / kPanelRows, first > 0);
            }
        }
    }
}

// The split that begins at first_key; the thread goes on to keys up to `end` then.
void CpuBackend::attendSplit(const AttentionItem &item, uint32_t layer, uint32_t first_key, uint32_t end,
                             const AttentionScratch &s, const AttentionPart &part) const {
    const uint32_t rows = item.ntok * config_.group();
    const uint32_t nkeys = std::min(kSplit, end - first_key);
    const Tiles tiles{*this, item.sequence->kv_blocks + first_key / kBlockTokens, tilesOf(end - first_key), layer,
                      item.kv_head};
    // Many rows use a conversion three times or more; int8 is converted in any case.
    const bool wide = rows > 2 * kernels_.tile_rows || kv_codes_;
    (this->*(wide ? &CpuBackend::scoreKeysWide : &CpuBackend::scoreKeys))(tiles, nkeys, rows, s);

    for (uint32_t r = 0; r < rows; ++r) {
        float *scores = s.scores + size_t{r} * kSplit;
        const uint32_t count = std::min(nkeys, keysFrom(item, r, first_key));
        if (count > 0) {
            part.maximum[r] = kernels_.max(scores, count);
            part.sum[r] = kernels_.expSum(scores, count, part.maximum[r]);
        }
        std::fill(scores + count, scores + nkeys, 0.0F);  // masked keys weigh nothing below
    }

    (this->*(wide ? &CpuBackend::weighValuesWide : &CpuBackend::weighValues))(tiles, nkeys, rows, s, part.values);
}

// Keys from `first_key` on that row r may see.
uint32_t CpuBackend::keysFrom(const AttentionItem &item, uint32_t r, uint32_t first_key) const {
    const uint32_t seen = item.sequence->pos + item.first + r / config_.group() + 1;
    return seen <= first_key ? 0 : seen - first_key;
}

void CpuBackend::clearTotal(const AttentionScratch &s, uint32_t r) const {
    s.total.maximum[r] = -std::numeric_limits<float>::infinity();
    s.total.sum[r] = 0.0F;
    std::fill_n(s.total.values + size_t{r} * value_width_, value_width_, 0.0F);
}

// Adds what the split that begins at first_key gave to row r's total.
void CpuBackend::mergeSplit(const AttentionItem &item, uint32_t first_key, uint32_t r, const AttentionPart &part,
                            const AttentionScratch &s) const {
    if (keysFrom(item, r, first_key) == 0) {
        return;
    }
    const AttentionPart &total = s.total;
    const float maximum = std::max(total.maximum[r], part.maximum[r]);
    const float keep = std::exp(total.maximum[r] - maximum);  // 0 for the first split
    const float take = std::exp(part.maximum[r] - maximum);
    total.maximum[r] = maximum;
    total.sum[r] = total.sum[r] * keep + part.sum[r] * take;
    float *to = total.values + size_t{r} * value_width_;
    const float *from = part.values + size_t{r} * value_width_;
    for (uint32_t i = 0; i < value_width_; ++i) {
        to[i] = to[i] * keep + from[i] * take;
    }
}

void CpuBackend::finishRow(const AttentionItem &item, uint32_t r, Activation out, const AttentionScratch &s) const {
    float *o = rowOf(item, r, out);
    const float inverse = 1.0F / s.total.sum[r];
    for (uint32_t i = 0; i < config_.dh; ++i) {
        o[i] = s.total.values[size_t{r} * value_width_ + i] * inverse;
    }
}

}  // namespace q3::cpu
