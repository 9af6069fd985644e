// Chooses the tokens of a call: after which rows a token is needed, which drafts are right, and what each request gets.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "engine/batch.h"
#include "engine/chunk.h"
#include "engine/sampler.h"

namespace q3 {

// Rows of logits that are computed at a time: one pass over the head serves them all, at dvoc * 4 bytes each.
inline constexpr uint32_t kLogitRows = 64;

// One for each model, used by one call at a time: begin, choose for every chunk in order, finish.
class Chooser {
public:
    // Calls body(i, thread) once for each i < count, side by side; body does not throw, and thread < nthreads.
    using ForEach = std::function<void(uint32_t count, const std::function<void(uint32_t i, uint32_t thread)> &body)>;

    Chooser(uint32_t dvoc, uint32_t nthreads, ForEach for_each)
        : dvoc_(dvoc), for_each_(std::move(for_each)), samplers_(nthreads, Sampler(dvoc)) {}

    // Writes logits [nrows, dvoc] of rows of the chunk that ran last; nrows is at most kLogitRows.
    using ReadLogits = std::function<void(const uint32_t *rows, uint32_t nrows, float *logits)>;

    // args and params [nreq] have been checked and outlive finish().
    void begin(const BatchArgs &args, const Qwen3SamplingParams *params);
    // Chooses after the last token of each request that ends in this chunk, and after drafts as long as they are right.
    void choose(const Chunk &chunk, const ReadLogits &read_logits);
    // Writes results [nreq]; their arrays have room for what params ask.
    void finish(Qwen3SampleResult *results) const;
    // Drafts at the end of a request that were wrong.
    uint32_t rejected(uint32_t request) const;

private:
    // What one request has been given so far.
    struct Choice {
        Qwen3SampleResult result;
        std::vector<uint32_t> top_tokens;
        std::vector<float> top_logprobs;
        std::vector<uint32_t> history;  // the caller's, then the accepted drafts; empty until one is accepted
        bool decided;                   // no further token is to be chosen
    };
    // A row after which a token may have to be chosen.
    struct Candidate {
        uint32_t row;    // of the chunk
        uint32_t index;  // token of the request
        uint32_t request;
    };
    std::vector<Candidate> candidatesIn(const Chunk &chunk) const;
    void chooseAll(const Candidate *candidates, uint32_t count, const Chunk &chunk);
    void chooseAfter(const Candidate &candidate, const Chunk &chunk, float *logits, Sampler &sampler);

    uint32_t dvoc_;
    ForEach for_each_;
    std::vector<Sampler> samplers_;  // [nthreads]
    BatchArgs args_{};
    const Qwen3SamplingParams *params_ = nullptr;
    std::vector<Choice> choices_;  // [nreq] at least: kept for their memory
    std::vector<float> logits_;
};

}  // namespace q3
