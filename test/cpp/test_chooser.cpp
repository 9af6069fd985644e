// How a call is cut into steps, and which tokens it chooses: the same however it is cut, drafts verified one after
// another, no logits read that nobody needs, and the same on however many threads.
#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "check.h"
#include "engine/chooser.h"
#include "runtime/error.h"

using namespace q3;

namespace {

constexpr uint32_t kVocabulary = 10;
constexpr uint32_t kThreads = 3;

// The arguments of a call, without caches.
struct Call {
    std::vector<uint32_t> tokens, req_lens, req_pos;
    std::vector<Qwen3SamplingParams> params;

    void add(const std::vector<uint32_t> &request, size_t ndraft = 0) {
        tokens.insert(tokens.end(), request.begin(), request.end());
        req_lens.push_back(static_cast<uint32_t>(request.size()));
        req_pos.push_back(0);
        Qwen3SamplingParams greedy = QWEN3_SAMPLING_PARAMS_INIT;
        greedy.temperature = 0.0F;
        greedy.ndraft = ndraft;
        params.push_back(greedy);
    }
    BatchArgs args() const {
        return {tokens.data(),   static_cast<uint32_t>(tokens.size()),
                req_lens.data(), static_cast<uint32_t>(req_lens.size()),
                req_pos.data(),  nullptr};
    }
};

void testChunks() {
    std::mt19937 random(3);
    for (int trial = 0; trial < 300; ++trial) {
        Call call;
        for (uint32_t n = 1 + random() % 6; n > 0; --n) {
            call.add(std::vector<uint32_t>(1 + random() % 40));
        }
        const uint32_t limit = 1 + static_cast<uint32_t>(random() % 50);
        const std::vector<Chunk> chunks = cutIntoChunks(call.args(), limit);
        uint32_t token = 0;
        uint32_t request = 0;
        uint32_t index = 0;
        for (const Chunk &chunk : chunks) {
            CHECK(chunk.first_token == token);
            CHECK(chunk.ntok == limit || (&chunk == &chunks.back() && chunk.ntok < limit));
            uint32_t row = 0;
            for (const Piece &piece : chunk.pieces) {
                CHECK(piece.request == request && piece.first == index && piece.row == row && piece.ntok > 0);
                row += piece.ntok;
                index += piece.ntok;
                if (index == call.req_lens[request]) {
                    ++request;
                    index = 0;
                }
            }
            CHECK(row == chunk.ntok);
            token += chunk.ntok;
        }
        CHECK(token == call.tokens.size() && request == call.req_lens.size() && index == 0);
    }
}

struct Outcome {
    std::vector<Qwen3SampleResult> results;
    std::vector<uint32_t> rejected;
    size_t rows = 0;  // of logits that were read
};

void firstFirst(uint32_t count, const std::function<void(uint32_t, uint32_t)> &body) {
    for (uint32_t i = 0; i < count; ++i) {
        body(i, i % kThreads);
    }
}

void lastFirst(uint32_t count, const std::function<void(uint32_t, uint32_t)> &body) {
    while (count-- > 0) {
        body(count, count % kThreads);
    }
}

// Runs a call with a model whose logits after token t are logits_after(t).
template <typename LogitsAfter>
Outcome run(const Call &call, uint32_t limit, const LogitsAfter &logits_after,
            const Chooser::ForEach &for_each = firstFirst) {
    Chooser chooser(kVocabulary, kThreads, for_each);
    Outcome outcome;
    chooser.begin(call.args(), call.params.data());
    for (const Chunk &chunk : cutIntoChunks(call.args(), limit)) {
        chooser.choose(chunk, [&](const uint32_t *rows, uint32_t nrows, float *logits) {
            CHECK(nrows > 0 && nrows <= kLogitRows);
            outcome.rows += nrows;
            for (uint32_t i = 0; i < nrows; ++i) {
                CHECK(rows[i] < chunk.ntok);
                const std::vector<float> row = logits_after(call.tokens[chunk.first_token + rows[i]]);
                std::copy(row.begin(), row.end(), logits + size_t{i} * kVocabulary);
            }
        });
    }
    outcome.results.resize(call.req_lens.size());
    chooser.finish(outcome.results.data());
    for (uint32_t r = 0; r < call.req_lens.size(); ++r) {
        outcome.rejected.push_back(chooser.rejected(r));
    }
    return outcome;
}

// A model that counts: 4 follows 3.
std::vector<float> next(uint32_t token) {
    std::vector<float> logits(kVocabulary, 0.0F);
    logits[(token + 1) % kVocabulary] = 1.0F;
    return logits;
}

void testDrafts() {
    Call call;
    call.add({1, 2, 3});
    call.add({1, 2, 3, 4, 5}, 3);  // all right
    call.add({1, 2, 7, 8}, 3);     // one right
    call.add({4, 6, 7}, 2);        // none right, although 7 follows 6
    call.add({1, 2});
    call.params[4].skip = 1;
    const uint32_t tokens[] = {4, 6, 3, 5, 0};
    const uint32_t accepted[] = {0, 3, 1, 0, 0};
    const uint32_t rejected[] = {0, 0, 2, 2, 0};
    for (uint32_t limit = 1; limit <= 20; ++limit) {
        const Outcome outcome = run(call, limit, next, limit % 2 == 0 ? firstFirst : lastFirst);
        for (uint32_t r = 0; r < 5; ++r) {
            CHECK(outcome.results[r].token == tokens[r]);
            CHECK(outcome.results[r].naccepted == accepted[r]);
            CHECK(outcome.rejected[r] == rejected[r]);
        }
    }
}

void testRowsRead() {
    Call right;
    std::vector<uint32_t> counting(3 * kLogitRows);
    std::iota(counting.begin(), counting.end(), 0U);
    std::transform(counting.begin(), counting.end(), counting.begin(), [](uint32_t i) { return i % kVocabulary; });
    right.add(counting, counting.size() - 1);
    const Outcome all = run(right, 512, next);
    CHECK(all.rows == counting.size() && all.results[0].naccepted == counting.size() - 1);

    Call wrong = right;
    wrong.tokens[1] = 5;
    const Outcome first = run(wrong, 512, next);
    CHECK(first.rows == kLogitRows && first.results[0].naccepted == 0 && first.results[0].token == 1);

    Call prompts;
    prompts.add(counting);
    prompts.add(counting);
    CHECK(run(prompts, 100, next).rows == 2);
}

// Accepted drafts belong to the history of what is chosen after them.
void testHistory() {
    const auto always = [](uint32_t) {
        std::vector<float> logits(kVocabulary, 0.0F);
        logits[5] = 2.0F;
        logits[6] = 1.5F;
        return logits;
    };
    Call call;
    call.add({1, 5, 6, 5}, 3);
    call.params[0].repetition_penalty = 2.0F;  // 5 counts 1.0 once it has been seen, and 6 counts 0.75
    const Outcome outcome = run(call, 3, always);
    CHECK(outcome.results[0].naccepted == 3 && outcome.results[0].token == 5);
    call.params[0].repetition_penalty = 1.0F;
    CHECK(run(call, 3, always).results[0].naccepted == 1);
}

// On threads, each request gets what a sampler of its own gives it, and the error of the first that fails is thrown.
void testThreads() {
    const Chooser::ForEach side_by_side = [](uint32_t count, const auto &body) {
        std::vector<std::thread> threads;
        for (uint32_t t = 0; t < kThreads; ++t) {
            threads.emplace_back([&, t] {
                for (uint32_t i = t; i < count; i += kThreads) {
                    body(i, t);
                }
            });
        }
        for (std::thread &thread : threads) {
            thread.join();
        }
    };
    std::mt19937 random(7);
    std::vector<std::vector<float>> logits(kVocabulary, std::vector<float>(kVocabulary));
    for (std::vector<float> &row : logits) {
        std::generate(row.begin(), row.end(), [&] { return static_cast<float>(random() % 100) / 25.0F; });
    }
    const auto after = [&](uint32_t token) { return logits[token]; };
    const std::vector<uint32_t> history = {1, 2, 2, 3};
    const std::vector<uint32_t> bias_tokens = {4};
    const std::vector<float> bias_values = {2.0F};
    const uint32_t mask = 0x155;
    Call call;
    for (uint32_t r = 0; r < 3 * kLogitRows / 2; ++r) {  // more than one batch of rows
        call.add({r % kVocabulary});
        Qwen3SamplingParams &p = call.params.back();
        p.temperature = r % 3 == 0 ? 0.0F : 1.0F;
        p.seed = r;
        p.history = history.data();
        p.nhistory = history.size();
        p.ngenerated = 2;
        p.repetition_penalty = r % 4 == 1 ? 1.5F : 1.0F;
        p.frequency_penalty = r % 4 == 2 ? 0.5F : 0.0F;
        p.bias_tokens = bias_tokens.data();
        p.bias_values = bias_values.data();
        p.nbias = r % 5 == 0 ? 1 : 0;
        p.allowed_mask = r % 5 == 1 ? &mask : nullptr;
    }
    const Outcome outcome = run(call, 512, after, side_by_side);
    for (uint32_t r = 0; r < call.params.size(); ++r) {
        std::vector<float> row = after(call.tokens[r]);
        Qwen3SampleResult alone{};
        Sampler(kVocabulary).sample(row.data(), call.params[r], 0, alone);
        CHECK(outcome.results[r].token == alone.token && outcome.results[r].logprob == alone.logprob);
    }

    const auto failure = [&](const Chooser::ForEach &for_each) {
        try {
            run(call, 512, after, for_each);
        } catch (const Error &error) {
            return error.status();
        }
        return static_cast<int32_t>(QWEN3_STATUS_SUCCESS);
    };
    const uint32_t nothing = 0;
    call.params[5].allowed_mask = &nothing;
    logits[7][0] = std::numeric_limits<float>::quiet_NaN();
    CHECK(failure(side_by_side) == QWEN3_STATUS_BAD_PARAM && failure(lastFirst) == QWEN3_STATUS_BAD_PARAM);
    call.params[8].allowed_mask = &nothing;
    call.params[5].allowed_mask = nullptr;
    CHECK(failure(side_by_side) == QWEN3_STATUS_INTERNAL_ERROR && failure(lastFirst) == QWEN3_STATUS_INTERNAL_ERROR);
    call.params[8].allowed_mask = nullptr;
    logits[7][0] = 0.0F;
    CHECK(failure(side_by_side) == QWEN3_STATUS_SUCCESS);
}

}  // namespace

int main() {
    testChunks();
    testDrafts();
    testRowsRead();
    testHistory();
    testThreads();
    return q3test::finish("chooser");
}
