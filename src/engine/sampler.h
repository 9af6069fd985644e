// Chooses the next token of one request from its float32 logits, on the host, for every backend alike.
#pragma once

#include <cstdint>
#include <vector>

#include "infinicore_infer/models/qwen3.h"

namespace q3 {

// Keeps its scratch memory, which grows to what is asked of it, from call to call. One caller at a time.
class Sampler {
public:
    explicit Sampler(uint32_t dvoc);

    // Overwrites logits [dvoc]. The draw depends on params.seed and position alone. Writes result.token, and the
    // log-probabilities unless params want none. Throws BAD_PARAM when the mask and biases leave no token, and
    // INTERNAL_ERROR when a logit is NaN or +infinity.
    void sample(float *logits, const Qwen3SamplingParams &params, uint32_t position, Qwen3SampleResult &result);

private:
    struct Candidate {
        float logit;
        uint32_t token;
    };
    void adjust(float *logits, const Qwen3SamplingParams &params);
    void reportLogprobs(const float *logits, float largest_logit, const Qwen3SamplingParams &params,
                        Qwen3SampleResult &result);
    uint32_t findMaxima(const float *logits);
    void selectLikeliest(const float *logits, uint32_t count);
    uint32_t draw(const float *logits, float largest_logit, const Qwen3SamplingParams &params, uint32_t position);
    size_t choose(const Qwen3SamplingParams &params, double random, double total, bool complete) const;

    uint32_t dvoc_;
    std::vector<float> maxima_;  // of each block of adjusted logits
    std::vector<float> sorted_maxima_;
    std::vector<Candidate> candidates_;
    std::vector<double> probs_;
    std::vector<uint32_t> seen_;  // sorted distinct tokens of the history
};

// A uniform number in [0, 1) from a seed and a counter; the same on every machine.
double uniform(uint64_t seed, uint64_t counter);

}  // namespace q3
