// The KV block pool and caches against a plain model of what they should hold, and the sampler against its definition.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "check.h"
#include "engine/kv_cache.h"
#include "engine/sampler.h"
#include "ops/cpu/host_buffer.h"
#include "runtime/error.h"
#include "runtime/packed_file.h"

namespace {

constexpr uint32_t kBlockTokens = 4;

// Counts live allocations and can fail the n-th one.
class CountingMemory final : public q3::BlockMemory {
public:
    void *allocate(size_t bytes) override {
        if (fail_in > 0 && --fail_in == 0) {
            q3::fail(QWEN3_STATUS_OUT_OF_MEMORY, "injected");
        }
        ++live;
        return std::malloc(bytes);
    }
    void release(void *block) noexcept override {
        --live;
        std::free(block);
    }
    void copy(void *dst, const void *src, size_t bytes) override { std::memcpy(dst, src, bytes); }
    int live = 0;
    int fail_in = 0;
};

// What a backend does: one value per token, written where the block table says.
void append(KVCache &cache, uint32_t pos, const std::vector<int> &values) {
    cache.prepare(pos, static_cast<uint32_t>(values.size()));
    for (uint32_t i = 0; i < values.size(); ++i) {
        const uint32_t at = pos + i;
        static_cast<int *>(cache.blocks()[at / kBlockTokens])[at % kBlockTokens] = values[i];
    }
    cache.setLength(pos + static_cast<uint32_t>(values.size()));
    cache.truncate(cache.length());
}

std::vector<int> contents(const KVCache &cache) {
    std::vector<int> out;
    for (uint32_t i = 0; i < cache.length(); ++i) {
        out.push_back(static_cast<int *>(cache.blocks()[i / kBlockTokens])[i % kBlockTokens]);
    }
    return out;
}

// Random creates, duplicates, appends, rewinds and drops; every cache must always hold what its model holds.
void testRandomSharing() {
    CountingMemory memory;
    {
        q3::BlockPool pool({&memory}, kBlockTokens * sizeof(int), kBlockTokens, 1 << 20);
        std::vector<std::pair<std::unique_ptr<KVCache>, std::vector<int>>> caches;
        std::mt19937 rng(7);
        int next_value = 0;
        for (int step = 0; step < 4000; ++step) {
            const uint32_t action = rng() % 5;
            if (caches.empty() || (action == 0 && caches.size() < 20)) {
                caches.emplace_back(std::make_unique<KVCache>(pool), std::vector<int>{});
                continue;
            }
            const size_t i = rng() % caches.size();
            auto &[cache, expected] = caches[i];
            if (action == 1 && caches.size() < 20) {
                const auto length = static_cast<uint32_t>(rng() % (expected.size() + 1));
                auto copy = cache->duplicate(length);
                caches.emplace_back(std::move(copy), std::vector<int>(expected.begin(), expected.begin() + length));
            } else if (action == 2) {
                caches.erase(caches.begin() + static_cast<ptrdiff_t>(i));
            } else {
                const auto pos = static_cast<uint32_t>(action == 3 ? expected.size() : rng() % (expected.size() + 1));
                std::vector<int> values(1 + rng() % 9);
                for (int &value : values) {
                    value = next_value++;
                }
                const uint64_t before = pool.usedBytes();
                std::vector<const q3::BlockPool::Block *> shared;
                const uint64_t appended = cache->blocksNeeded(pos, static_cast<uint32_t>(values.size()), shared);
                append(*cache, pos, values);
                CHECK(pool.usedBytes() <= before + (appended + shared.size()) * pool.blockBytes());
                expected.resize(pos);
                expected.insert(expected.end(), values.begin(), values.end());
            }
            for (const auto &[live, want] : caches) {
                CHECK(contents(*live) == want);
            }
        }
        caches.clear();
        CHECK(pool.usedBytes() == 0);
    }
    CHECK(memory.live == 0);
}

void testFailedPrepareChangesNothing() {
    CountingMemory memory;
    q3::BlockPool pool({&memory}, kBlockTokens * sizeof(int), kBlockTokens, 1 << 20);
    KVCache cache(pool);
    append(cache, 0, {1, 2, 3, 4, 5});
    const auto copy = cache.duplicate(5);
    const uint64_t used = pool.usedBytes();
    memory.fail_in = 2;  // the first of the three blocks needed succeeds
    bool thrown = false;
    try {
        cache.prepare(5, 10);
    } catch (const q3::Error &error) {
        thrown = error.status() == QWEN3_STATUS_OUT_OF_MEMORY;
    }
    CHECK(thrown);
    CHECK(pool.usedBytes() == used);
    CHECK((contents(cache) == std::vector<int>{1, 2, 3, 4, 5}));
    CHECK((contents(*copy) == std::vector<int>{1, 2, 3, 4, 5}));
}

bool failsSampling(q3::Sampler &sampler, std::vector<float> logits, const Qwen3SamplingParams &params, int32_t status,
                   const std::string &text) {
    Qwen3SampleResult result{};
    try {
        sampler.sample(logits.data(), params, 0, result);
    } catch (const q3::Error &error) {
        return error.status() == status && std::string(error.what()).find(text) != std::string::npos;
    }
    return false;
}

// Log-probabilities and the choice on a vocabulary of Qwen3's size and one that fills no vector, against double.
void testSamplerSizes() {
    for (const uint32_t dvoc : {3U, 8U, 511U, 512U, 151936U}) {
        std::mt19937 rng(dvoc);
        std::normal_distribution<float> normal(0.0F, 4.0F);
        std::vector<float> logits(dvoc);
        for (float &logit : logits) {
            logit = normal(rng);
        }
        logits[dvoc - 1] = 25.0F;  // the likeliest twice: the lower id wins
        logits[dvoc / 2] = 25.0F;
        logits[0] = -1000.0F;
        double sum = 0.0;
        for (const float logit : logits) {
            sum += std::exp(static_cast<double>(logit));
        }
        Qwen3SamplingParams params = QWEN3_SAMPLING_PARAMS_INIT;
        params.top_logprobs = 3;
        std::vector<uint32_t> tokens(3);
        std::vector<float> logprobs(3);
        Qwen3SampleResult result{sizeof(Qwen3SampleResult), 0, 0, 0.0F, 0, tokens.data(), logprobs.data()};
        q3::Sampler sampler(dvoc);
        std::vector<float> copy = logits;
        sampler.sample(copy.data(), params, 0, result);
        CHECK(result.token == dvoc / 2 && result.ntop == 3 && tokens[0] == dvoc / 2 && tokens[1] == dvoc - 1);
        CHECK(std::fabs(static_cast<double>(result.logprob) - (25.0 - std::log(sum))) < 1e-6);
        const double third = static_cast<double>(logits[tokens[2]]) - std::log(sum);
        CHECK(std::fabs(static_cast<double>(logprobs[2]) - third) < 1e-6 * std::max(1.0, std::fabs(third)));

        for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
            copy = logits;
            copy[dvoc - 2] = bad;
            CHECK(
                failsSampling(sampler, copy, params, QWEN3_STATUS_INTERNAL_ERROR, "token " + std::to_string(dvoc - 2)));
        }
        copy.assign(dvoc, -std::numeric_limits<float>::infinity());
        CHECK(failsSampling(sampler, copy, params, QWEN3_STATUS_INTERNAL_ERROR, "the model produced -inf"));
        const std::vector<uint32_t> none((dvoc + 31) / 32);
        params.allowed_mask = none.data();
        CHECK(failsSampling(sampler, logits, params, QWEN3_STATUS_BAD_PARAM, "allowed_mask and bias leave no token"));
    }
    // Flat logits: every term of the sum counts, none is the largest alone.
    std::vector<float> flat(151936);
    for (uint32_t i = 0; i < flat.size(); ++i) {
        flat[i] = -2.0F * static_cast<float>(i % 1000) / 1000.0F;
    }
    double sum = 0.0;
    for (const float logit : flat) {
        sum += std::exp(static_cast<double>(logit));
    }
    Qwen3SamplingParams params = QWEN3_SAMPLING_PARAMS_INIT;
    Qwen3SampleResult result{};
    q3::Sampler(151936).sample(flat.data(), params, 0, result);
    CHECK(result.token == 0);
    CHECK(std::fabs(static_cast<double>(result.logprob) + std::log(sum)) < 2e-6);
}

// The definition of a draw, by sorting everything: what the sampler's shortcuts must not change.
uint32_t plainDraw(const std::vector<float> &logits, const Qwen3SamplingParams &params, uint32_t position) {
    std::vector<uint32_t> order;
    for (uint32_t i = 0; i < logits.size(); ++i) {
        if (std::isfinite(logits[i])) {
            order.push_back(i);
        }
    }
    std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return logits[a] > logits[b]; });
    if (params.top_k > 0 && params.top_k < order.size()) {
        order.resize(params.top_k);
    }
    std::vector<double> weights;
    double total = 0.0;
    for (const uint32_t token : order) {
        const double difference = static_cast<double>(logits[token]) - static_cast<double>(logits[order[0]]);
        weights.push_back(std::exp(difference / static_cast<double>(params.temperature)));
        total += weights.back();
    }
    size_t keep = 0;
    for (double sum = 0.0; keep < order.size(); sum += weights[keep++]) {
        if (params.top_p < 1.0F && keep > 0 && sum >= static_cast<double>(params.top_p) * total) {
            break;
        }
    }
    while (keep > 1 && weights[keep - 1] < static_cast<double>(params.min_p)) {
        --keep;
    }
    double kept = 0.0;
    for (size_t i = 0; i < keep; ++i) {
        kept += weights[i];
    }
    double target = q3::uniform(params.seed, position) * kept;
    size_t chosen = 0;
    while (chosen + 1 < keep && (target -= weights[chosen]) >= 0.0) {
        ++chosen;
    }
    return order[chosen];
}

void testDraws() {
    struct Case {
        uint32_t dvoc;
        float spread;  // standard deviation of the logits
        float step;    // logits are multiples of it, so that there are ties; 0: any
    };
    for (const Case &c :
         {Case{70, 2.0F, 0.5F}, Case{20011, 3.0F, 0.25F}, Case{20011, 0.2F, 0.0F}, Case{151936, 3.0F, 0.0F}}) {
        std::mt19937 rng(c.dvoc);
        std::normal_distribution<float> normal(0.0F, c.spread);
        std::vector<float> logits(c.dvoc);
        for (float &logit : logits) {
            logit = normal(rng);
            logit = c.step > 0.0F ? std::round(logit / c.step) * c.step : logit;
            logit = rng() % 5 == 0 ? -std::numeric_limits<float>::infinity() : logit;
        }
        q3::Sampler sampler(c.dvoc);
        uint32_t position = 0;
        for (const uint32_t top_k : {0U, 2U, 20U, 300U, 10000U, 1000000U}) {
            for (const float top_p : {1.0F, 0.999F, 0.9F, 0.3F}) {
                for (const float min_p : {0.0F, 0.001F, 0.3F}) {
                    Qwen3SamplingParams params = QWEN3_SAMPLING_PARAMS_INIT;
                    params.temperature = position % 2 == 0 ? 0.7F : 2.0F;
                    params.top_k = top_k;
                    params.top_p = top_p;
                    params.min_p = min_p;
                    params.seed = 7;
                    params.no_logprob = 1;
                    std::vector<float> copy = logits;
                    Qwen3SampleResult result{};
                    sampler.sample(copy.data(), params, ++position, result);
                    CHECK(result.token == plainDraw(logits, params, position));
                }
            }
        }
    }
}

// The reported likeliest tokens, ties included, against a full sort.
void testLikeliest() {
    const uint32_t dvoc = 20011;
    std::mt19937 rng(3);
    std::vector<float> logits(dvoc);
    for (float &logit : logits) {
        logit = static_cast<float>(rng() % 4000) / 100.0F;
    }
    std::vector<uint32_t> order(dvoc);
    std::iota(order.begin(), order.end(), 0U);
    std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return logits[a] > logits[b]; });
    q3::Sampler sampler(dvoc);
    for (const uint32_t count : {1U, 2U, 63U, 64U, 128U}) {
        Qwen3SamplingParams params = QWEN3_SAMPLING_PARAMS_INIT;
        params.top_logprobs = count;
        std::vector<uint32_t> tokens(count);
        std::vector<float> logprobs(count);
        Qwen3SampleResult result{};
        result.top_tokens = tokens.data();
        result.top_logprobs = logprobs.data();
        std::vector<float> copy = logits;
        sampler.sample(copy.data(), params, 0, result);
        CHECK(result.ntop == count && result.token == order[0]);
        CHECK(std::equal(tokens.begin(), tokens.end(), order.begin()));
    }
}

void testUniform() {
    std::set<double> values;
    double sum = 0;
    for (uint64_t seed = 0; seed < 100; ++seed) {
        for (uint64_t position = 0; position < 100; ++position) {
            const double value = q3::uniform(seed, position);
            CHECK(value >= 0.0 && value < 1.0);
            values.insert(value);
            sum += value;
        }
    }
    CHECK(values.size() == 10000);
    CHECK(sum / 10000 > 0.48 && sum / 10000 < 0.52);
}

// Buffers of an arena are zeroed, aligned and apart, keep their memory when the arena and other buffers go, and can be
// moved; large ones and empty ones are as without it.
void testArena() {
    std::vector<q3::cpu::HostBuffer> buffers;
    {
        q3::cpu::Arena arena;
        for (size_t i = 0; i < 200; ++i) {
            const size_t bytes = i % 50 == 0 ? (size_t{40} << 20) : i % 7 == 0 ? 0 : i * 9973 % (size_t{5} << 20) + 1;
            q3::cpu::HostBuffer buffer = arena.allocate(bytes);
            CHECK(buffer.bytes() >= bytes && (buffer.data() != nullptr) == (bytes > 0));
            CHECK(reinterpret_cast<uintptr_t>(buffer.data()) % 64 == 0);
            if (i % 3 == 0) {
                buffers.push_back(std::move(buffer));
            }
        }
    }
    for (size_t i = 0; i < buffers.size(); ++i) {
        const size_t bytes = buffers[i].bytes();
        for (const size_t at : {size_t{0}, bytes / 2, bytes - 1}) {
            if (bytes > 0) {
                CHECK(buffers[i].as<char>()[at] == 0);
                buffers[i].as<char>()[at] = static_cast<char>(i + 1);
            }
        }
    }
    for (size_t i = 0; i < buffers.size(); ++i) {
        const size_t bytes = buffers[i].bytes();
        CHECK(bytes == 0 || buffers[i].as<char>()[bytes - 1] == static_cast<char>(i + 1));
        CHECK(bytes == 0 || buffers[i].as<char>()[0] == static_cast<char>(i + 1));
    }
}

// Every changed bit, every other length and every swap of words gives another hash, whatever the block and the tail.
void testHash() {
    std::vector<uint8_t> data(200);
    for (size_t i = 0; i < data.size(); ++i) {
        data[i] = static_cast<uint8_t>(i * 37);
    }
    for (const size_t n : {0U, 1U, 7U, 8U, 63U, 64U, 65U, 128U, 200U}) {
        const uint64_t hash = q3::hashBytes(data.data(), n);
        for (size_t i = 0; i < n * 8; ++i) {
            data[i / 8] ^= static_cast<uint8_t>(1U << i % 8);
            CHECK(q3::hashBytes(data.data(), n) != hash);
            data[i / 8] ^= static_cast<uint8_t>(1U << i % 8);
        }
        std::set<uint64_t> swapped = {hash};
        for (size_t i = 8; i + 8 <= n; i += 8) {
            std::swap_ranges(data.begin(), data.begin() + 8, data.begin() + static_cast<ptrdiff_t>(i));
            swapped.insert(q3::hashBytes(data.data(), n));
            std::swap_ranges(data.begin(), data.begin() + 8, data.begin() + static_cast<ptrdiff_t>(i));
        }
        CHECK(swapped.size() == std::max<size_t>(n / 8, 1));
    }
    const std::vector<uint8_t> zeros(300);
    std::set<uint64_t> lengths;
    for (size_t n = 0; n <= zeros.size(); ++n) {
        lengths.insert(q3::hashBytes(zeros.data(), n));
    }
    CHECK(lengths.size() == zeros.size() + 1);
}

}  // namespace

int main() {
    testArena();
    testHash();
    testRandomSharing();
    testFailedPrepareChangesNothing();
    testSamplerSizes();
    testDraws();
    testLikeliest();
    testUniform();
    return q3test::finish("test_runtime");
}
