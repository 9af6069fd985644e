// Computes attention over the KV cache. attention_plan.h says what a thread does at a time; a thread's scratch has a
// fixed size whatever the context length.
#include "ops/cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "runtime/error.h"

namespace q3::cpu {
namespace {

constexpr uint32_t kBlockTokens = KvLayout::kBlockTokens;

// Query rows per work item: enough to reuse a K/V tile from L1, small enough to share out the work. A wider GQA group
// makes wider items, up to a limit that bounds the scratch.
constexpr uint32_t kQueryRows = 96;
constexpr uint32_t kMaxQueryRows = 256;

// Keys between the tile that is converted and the one that is prefetched.
constexpr uint32_t kKeysAhead = 2 * kBlockTokens;

// Tokens whose heads a thread prepares at a time.
constexpr uint32_t kTokenGrain = 4;

// KV tiles that hold so many tokens.
constexpr uint32_t tilesOf(uint32_t tokens) {
    return (tokens + kBlockTokens - 1) / kBlockTokens;
}

inline void prefetch(const char *next, size_t bytes) {
    for (size_t line = 0; line < bytes; line += 64) {
        __builtin_prefetch(next + line);
    }
}

// Calls use(tiles, first key) for the groups of kTilesTogether tiles of `nkeys` keys; tile(key) gives a tile's address.
// Tiles lie far apart, one per block, so the hardware does not see the next ones coming: the kernel prefetches them
// while it multiplies. During the last group it prefetches the first `later` tiles of what the thread reads after these
// keys, which tile() gives from key tilesOf(nkeys) * 16 on.
template <typename Tile, typename Use> void forTiles(uint32_t nkeys, uint32_t later, const Tile &tile, const Use &use) {
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

}  // namespace

Attention::Attention(const ModelConfig &config, const KernelTable &kernels, const KvLayout &kv, ThreadPool &pool,
                     Activations activations)
    : config_(config), kernels_(kernels), kv_(kv), pool_(pool), activations_(activations),
      query_rows_(std::max(kQueryRows, config.group())),
      plan_({config.nkvh, config.group(), query_rows_ / config.group(), config.dctx, pool.size()}) {
    if (query_rows_ > kMaxQueryRows) {
        fail(QWEN3_STATUS_BAD_PARAM, "nh / nkvh is %u: the CPU backend supports at most %u query heads per KV head",
             config.group(), kMaxQueryRows);
    }
    for (uint32_t i = 0; i < pool.size(); ++i) {
        scratch_.emplace_back(AttentionScratch::floats(query_rows_, config.dh, kv.valueWidth(), pairBytes()) *
                              sizeof(float));
    }
    parts_ = HostBuffer(AttentionPart::floats(plan_.maxPartRows(), kv.valueWidth()) * sizeof(float));
}

size_t Attention::scratchBytes() const {
    size_t total = parts_.bytes();
    for (const HostBuffer &buffer : scratch_) {
        total += buffer.bytes();
    }
    return total;
}

void Attention::beginStep(const StepPlan &plan) {
    step_ = &plan;
    plan_.build(plan.sequences);
}

AttentionScratch Attention::scratchOf(uint32_t thread) const {
    return {scratch_[thread].as<float>(), query_rows_, config_.dh, kv_.valueWidth(), pairBytes()};
}

// Of entries of rounded queries and weights; 0: they stay float32.
size_t Attention::pairBytes() const {
    return activations_ == Activations::kBf16 ? kernels_.pair_bytes : 0;
}

// The part that begins at a row of parts_, as the plan counts them.
AttentionPart Attention::partAt(size_t row, uint32_t rows) const {
    return {parts_.as<float>() + AttentionPart::floats(row, kv_.valueWidth()), rows, kv_.valueWidth()};
}

// In decode no item reads keys that another one stores, so attend() lets every item begin with its own heads, which
// saves a fork. Where items are cut, and in longer chunks, all keys must be stored before any unit starts. In chunks a
// thread takes all heads of a few tokens, which lie side by side.
void Attention::prepareHeads(Activation qkv, const float *q_norm, const float *k_norm, float epsilon, uint32_t layer) {
    norms_ = {q_norm, k_norm, epsilon};
    if (!plan_.oneItemEach()) {
        for (const Sequence &sequence : step_->sequences) {
            pool_.parallelFor(sequence.ntok, kTokenGrain, [&](uint32_t begin, uint32_t end, uint32_t) {
                for (uint32_t head = 0; head < config_.nkvh; ++head) {
                    prepareItem({&sequence, head, begin, end - begin}, qkv, layer);
                }
            });
        }
    } else if (!plan_.merges().empty()) {
        const auto &items = plan_.items();
        pool_.parallelFor(static_cast<uint32_t>(items.size()), 1, [&](uint32_t begin, uint32_t end, uint32_t) {
            for (uint32_t i = begin; i < end; ++i) {
                prepareItem(items[i], qkv, layer);
            }
        });
    } else {
        return;
    }
    norms_ = {};
}

// Norm and rope for the item's query heads and its key head, whose keys and values go into the cache.
void Attention::prepareItem(const AttentionItem &item, Activation qkv, uint32_t layer) const {
    const ModelConfig &c = config_;
    const uint32_t group = c.group();
    for (uint32_t i = item.first; i < item.first + item.ntok; ++i) {
        const uint32_t row = item.sequence->row + i;
        float *heads = static_cast<float *>(qkv.data) + size_t{row} * qkv.width;
        const auto head = [&](uint32_t index) { return heads + size_t{index} * c.dh; };
        const float *cos = step_->rope_cos + size_t{row} * (c.dh / 2);
        const float *sin = step_->rope_sin + size_t{row} * (c.dh / 2);
        const auto turn = [&](float *x, const float *norm) {
            kernels_.rmsnorm(x, x, norm, c.dh, norms_.epsilon);
            kernels_.rope(x, cos, sin, c.dh / 2);
        };
        for (uint32_t q = 0; q < group; ++q) {
            turn(head(item.kv_head * group + q), norms_.q);
        }
        float *k = head(c.nh + item.kv_head);  // k heads follow the q heads, and v heads them
        turn(k, norms_.k);
        const uint32_t pos = item.sequence->pos + i;
        kv_.storeToken(kv_.tile(item.sequence->kv_blocks[pos / kBlockTokens], layer, item.kv_head), pos % kBlockTokens,
                       k, head(c.nh + c.nkvh + item.kv_head));
    }
}

void Attention::attend(Activation out, Activation qkv, uint32_t layer) {
    const auto &items = plan_.items();
    const auto &units = plan_.units();
    const auto nunits = static_cast<uint32_t>(units.size());
    pool_.parallelFor(nunits, plan_.unitsTogether(), [&](uint32_t begin, uint32_t end, uint32_t thread) {
        const AttentionScratch s = scratchOf(thread);
        for (uint32_t i = begin; i < end; ++i) {
            const AttentionPlan::Unit &unit = units[i];
            const AttentionItem &item = items[unit.item];
            if (unit.cut) {
                loadQueries(item, qkv, s);
                attendSplit(item, layer, unit.first_key, std::min(unit.first_key + kSplit, item.keys()), s,
                            partAt(unit.part, rowsOf(item)));
            } else {
                attendItem(item, out, qkv, layer, s);
            }
        }
    });

    const auto &merges = plan_.merges();
    pool_.parallelFor(static_cast<uint32_t>(merges.size()), 1, [&](uint32_t begin, uint32_t end, uint32_t thread) {
        const AttentionScratch s = scratchOf(thread);
        for (uint32_t i = begin; i < end; ++i) {
            const AttentionPlan::Merge &merge = merges[i];
            const AttentionItem &item = items[merge.item];
            const uint32_t rows = rowsOf(item);
            for (size_t first_key = 0, at = merge.part; first_key < item.keys(); first_key += kSplit, at += rows) {
                mergeSplit(item, static_cast<uint32_t>(first_key), merge.row, partAt(at, rows), s);
            }
            finishRow(item, merge.row, out, s);
        }
    });
}

void Attention::attendItem(const AttentionItem &item, Activation out, Activation qkv, uint32_t layer,
                           const AttentionScratch &s) const {
    if (norms_.q != nullptr) {
        prepareItem(item, qkv, layer);
    }
    loadQueries(item, qkv, s);
    const uint32_t rows = rowsOf(item);
    attendSplit(item, layer, 0, item.keys(), s, s.total);
    for (uint32_t first_key = kSplit; first_key < item.keys(); first_key += kSplit) {
        attendSplit(item, layer, first_key, item.keys(), s, s.part);
        for (uint32_t r = 0; r < rows; ++r) {
            mergeSplit(item, first_key, r, s.part, s);
        }
    }
    for (uint32_t r = 0; r < rows; ++r) {
        finishRow(item, r, out, s);
    }
}

// Where row r of the item lies in an activation.
float *Attention::rowOf(const AttentionItem &item, uint32_t r, Activation x) const {
    const uint32_t group = config_.group();
    return static_cast<float *>(x.data) + size_t{item.sequence->row + item.first + r / group} * x.width +
           size_t{item.kv_head * group + r % group} * config_.dh;
}

void Attention::loadQueries(const AttentionItem &item, Activation qkv, const AttentionScratch &s) const {
    const uint32_t dh = config_.dh;
    const uint32_t rows = rowsOf(item);
    const float scale = 1.0F / std::sqrt(static_cast<float>(dh));
    for (uint32_t r = 0; r < rows; ++r) {
        const float *q = rowOf(item, r, qkv);
        for (uint32_t i = 0; i < dh; ++i) {
            s.query[size_t{r} * dh + i] = q[i] * scale;
        }
        if (pairBytes() > 0) {
            kernels_.round[0](s.query + size_t{r} * dh, dh, s.queries + r * s.query_bytes);
        }
    }
}

// Scores the split's keys for every row. While it scores the last keys, it prefetches V of this split.
void Attention::scoreKeys(const Tiles &tiles, uint32_t nkeys, uint32_t rows, const AttentionScratch &s) const {
    const uint32_t dh = config_.dh;
    const uint32_t ntiles = tilesOf(nkeys);
    const auto tile = [&](uint32_t key) {
        const uint32_t end = ntiles * kBlockTokens;
        return key < end ? tiles.at(key).keys : tiles.at(key - end).values;
    };
    forTiles(nkeys, ntiles, tile, [&](const KvTiles &keys, uint32_t key) {
        for (uint32_t row = 0; row < rows; row += kernels_.tile_rows) {
            kernels_.score[kv_.format()](s.query + size_t{row} * dh, dh, std::min(kernels_.tile_rows, rows - row), keys,
                                         dh, s.scores + size_t{row} * kSplit + key, kSplit);
        }
    });
}

// out[rows][value width] = scores times V. While it adds the last values, it prefetches the keys of the thread's next
// split, if there is one.
void Attention::weighValues(const Tiles &tiles, uint32_t nkeys, uint32_t rows, const AttentionScratch &s,
                            float *out) const {
    const auto tile = [&](uint32_t key) { return key < nkeys ? tiles.at(key).values : tiles.at(key).keys; };
    forTiles(nkeys, tiles.ntiles - tilesOf(nkeys), tile, [&](const KvTiles &values, uint32_t key) {
        for (uint32_t row = 0; row < rows; row += kernels_.tile_rows) {
            kernels_.weigh[kv_.format()](
                s.scores + size_t{row} * kSplit + key, kSplit, std::min(kernels_.tile_rows, rows - row), values,
                std::min(nkeys - key, values.count * kBlockTokens), kv_.valueWidth() / kPanelRows,
                out + size_t{row} * kv_.valueWidth(), kv_.valueWidth(), key > 0);
        }
    });
}

// The same where attention is in bf16. Tiles that the cache does not keep in pairs are brought into that form, a group
// at a time for all rows.
void Attention::scoreKeyPairs(const Tiles &tiles, uint32_t nkeys, uint32_t rows, const AttentionScratch &s) const {
    const uint32_t ntiles = tilesOf(nkeys);
    const auto tile = [&](uint32_t key) {
        const uint32_t end = ntiles * kBlockTokens;
        return key < end ? tiles.at(key).keys : tiles.at(key - end).values;
    };
    forTiles(nkeys, ntiles, tile, [&](const KvTiles &kept, uint32_t key) {
        const char *made[kTilesTogether];
        const KvTiles keys = inPairs(tiles, kept, key, &KvLayout::pairKeys, made, s);
        for (uint32_t row = 0; row < rows; row += kernels_.tile_rows) {
            kernels_.scorePairs({s.queries + row * s.query_bytes, s.query_bytes},
                                std::min(kernels_.tile_rows, rows - row), keys, config_.dh,
                                s.scores + size_t{row} * kSplit + key, kSplit);
        }
    });
}

void Attention::weighValuePairs(const Tiles &tiles, uint32_t nkeys, uint32_t rows, const AttentionScratch &s,
                                float *out) const {
    const auto tile = [&](uint32_t key) { return key < nkeys ? tiles.at(key).values : tiles.at(key).keys; };
    forTiles(nkeys, tiles.ntiles - tilesOf(nkeys), tile, [&](const KvTiles &kept, uint32_t key) {
        const char *made[kTilesTogether];
        const KvTiles values = inPairs(tiles, kept, key, &KvLayout::pairValues, made, s);
        const char *weights = s.weights + roundedRowBytes(key, 1, kernels_.pair_bytes);
        for (uint32_t row = 0; row < rows; row += kernels_.tile_rows) {
            kernels_.weighPairs({weights + row * s.weight_bytes, s.weight_bytes},
                                std::min(kernels_.tile_rows, rows - row), values,
                                std::min(nkeys - key, values.count * kBlockTokens), kv_.valueWidth() / kPanelRows,
                                out + size_t{row} * kv_.valueWidth(), kv_.valueWidth(), key > 0);
        }
    });
}

// The tiles of `kept`, which begin at a key, in pairs: themselves, or as pair() makes them in scratch.
KvTiles Attention::inPairs(const Tiles &tiles, const KvTiles &kept, uint32_t key,
                           void (KvLayout::*pair)(const KvLayout::Tile &, uint32_t *, float *) const, const char **made,
                           const AttentionScratch &s) const {
    if (kv_.keepsPairs()) {
        return kept;
    }
    for (uint32_t t = 0; t < kept.count; ++t) {
        uint32_t *to = s.pairs + t * AttentionScratch::pairTileWords(config_.dh, kv_.valueWidth());
        (kv_.*pair)(tiles.at(key + t * kBlockTokens), to, s.tile);
        made[t] = reinterpret_cast<const char *>(to);
    }
    return {made, kept.count, 0};
}

// scoreKeysWide and weighValuesWide serve many rows, for all of which a tile is converted to floats once.
// scoreKeysWide takes kKeyTiles tiles at a time, weighValuesWide adds up kWideKeys keys.
void Attention::scoreKeysWide(const Tiles &tiles, uint32_t nkeys, uint32_t rows, const AttentionScratch &s) const {
    constexpr uint32_t kTiles = AttentionScratch::kKeyTiles;
    const size_t tile_floats = size_t{config_.dh} * kBlockTokens;
    for (uint32_t first = 0; first < nkeys; first += kTiles * kBlockTokens) {
        const float *b[kTiles];
        uint32_t count = 0;
        for (uint32_t key = first; key < nkeys && count < kTiles; key += kBlockTokens, ++count) {
            if (key + kKeysAhead < nkeys) {
                prefetch(tiles.at(key + kKeysAhead).keys, tile_floats * kv_.elementSize());
            }
            kv_.loadKeys(tiles.at(key), s.tile + count * tile_floats);
            b[count] = s.tile + count * tile_floats;
        }
        for (uint32_t row = 0; row < rows; row += kernels_.tile_rows) {
            float *c[kTiles];
            for (uint32_t t = 0; t < count; ++t) {
                c[t] = s.scores + size_t{row} * kSplit + first + size_t{t} * kBlockTokens;
            }
            kernels_.tile(s.query + size_t{row} * config_.dh, config_.dh, 1, b, kBlockTokens, config_.dh, c, kSplit,
                          std::min(kernels_.tile_rows, rows - row), count, false);
        }
    }
}

void Attention::weighValuesWide(const Tiles &tiles, uint32_t nkeys, uint32_t rows, const AttentionScratch &s,
                                float *out) const {
    constexpr uint32_t kKeys = AttentionScratch::kWideKeys;
    const uint32_t width = kv_.valuePanel();
    const size_t panel_bytes = kBlockTokens * width * kv_.elementSize();
    for (uint32_t first = 0; first < nkeys; first += kKeys) {
        const uint32_t count = std::min(kKeys, nkeys - first);
        for (uint32_t panel = 0; panel < kv_.valueWidth() / width; ++panel) {
            for (uint32_t key = 0; key < count; key += kBlockTokens) {
                if (first + key + kKeys < nkeys) {
                    prefetch(tiles.at(first + key + kKeys).values + panel * panel_bytes, panel_bytes);
                }
                kv_.loadValues(tiles.at(first + key), panel, s.tile + size_t{key} * width);
            }
            const float *b[] = {s.tile, s.tile + kPanelRows};
            for (uint32_t row = 0; row < rows; row += kernels_.tile_rows) {
                float *to = out + size_t{row} * kv_.valueWidth() + size_t{panel} * width;
                float *c[] = {to, to + kPanelRows};
                kernels_.tile(s.scores + size_t{row} * kSplit + first, kSplit, 1, b, width, count, c, kv_.valueWidth(),
                              std::min(kernels_.tile_rows, rows - row), width / kPanelRows, first > 0);
            }
        }
    }
}

// Computes the split that begins at first_key. The thread goes on with the keys after it, up to `end`.
void Attention::attendSplit(const AttentionItem &item, uint32_t layer, uint32_t first_key, uint32_t end,
                            const AttentionScratch &s, const AttentionPart &part) const {
    const uint32_t rows = rowsOf(item);
    const uint32_t nkeys = std::min(kSplit, end - first_key);
    const Tiles tiles{kv_, item.sequence->kv_blocks + first_key / kBlockTokens, tilesOf(end - first_key), layer,
                      item.kv_head};
    if (pairBytes() > 0) {
        scoreKeyPairs(tiles, nkeys, rows, s);
        for (uint32_t r = 0; r < rows; ++r) {
            const float *scores = s.scores + size_t{r} * kSplit;
            const uint32_t count = std::min(nkeys, keysFrom(item, r, first_key));
            part.maximum[r] = count > 0 ? kernels_.max(scores, count) : 0.0F;
            part.sum[r] = kernels_.expRound(scores, count, part.maximum[r], nkeys, s.weights + r * s.weight_bytes);
        }
        weighValuePairs(tiles, nkeys, rows, s, part.values);
        return;
    }

    // Converting a tile pays where rows use it three times or more. int8 tiles are always converted: no kernel reads
    // them as they are.
    const bool wide = rows > 2 * kernels_.tile_rows || kv_.keepsCodes();
    (this->*(wide ? &Attention::scoreKeysWide : &Attention::scoreKeys))(tiles, nkeys, rows, s);

    for (uint32_t r = 0; r < rows; ++r) {
        float *scores = s.scores + size_t{r} * kSplit;
        const uint32_t count = std::min(nkeys, keysFrom(item, r, first_key));
        if (count > 0) {
            part.maximum[r] = kernels_.max(scores, count);
            part.sum[r] = kernels_.expSum(scores, count, part.maximum[r]);
        }
        std::fill(scores + count, scores + nkeys, 0.0F);  // so that V of masked keys has no weight
    }

    (this->*(wide ? &Attention::weighValuesWide : &Attention::weighValues))(tiles, nkeys, rows, s, part.values);
}

// Keys from `first_key` on that row r may see.
uint32_t Attention::keysFrom(const AttentionItem &item, uint32_t r, uint32_t first_key) const {
    const uint32_t seen = item.sequence->pos + item.first + r / config_.group() + 1;
    return seen <= first_key ? 0 : seen - first_key;
}

// Adds what the split that begins at first_key gave to row r's total, which the first split begins.
void Attention::mergeSplit(const AttentionItem &item, uint32_t first_key, uint32_t r, const AttentionPart &part,
                           const AttentionScratch &s) const {
    if (keysFrom(item, r, first_key) == 0) {
        return;
    }
    const AttentionPart &total = s.total;
    const uint32_t width = kv_.valueWidth();
    float *to = total.values + size_t{r} * width;
    const float *from = part.values + size_t{r} * width;
    if (first_key == 0) {
        total.maximum[r] = part.maximum[r];
        total.sum[r] = part.sum[r];
        std::copy_n(from, width, to);
        return;
    }
    const float maximum = std::max(total.maximum[r], part.maximum[r]);
    const float keep = std::exp(total.maximum[r] - maximum);
    const float take = std::exp(part.maximum[r] - maximum);
    total.maximum[r] = maximum;
    total.sum[r] = total.sum[r] * keep + part.sum[r] * take;
    for (uint32_t i = 0; i < width; ++i) {
        to[i] = to[i] * keep + from[i] * take;
    }
}

void Attention::finishRow(const AttentionItem &item, uint32_t r, Activation out, const AttentionScratch &s) const {
    float *o = rowOf(item, r, out);
    const float inverse = 1.0F / s.total.sum[r];
    for (uint32_t i = 0; i < config_.dh; ++i) {
        o[i] = s.total.values[size_t{r} * kv_.valueWidth() + i] * inverse;
    }
}

}  // namespace q3::cpu
