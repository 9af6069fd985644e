#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>

#include "runtime/error.h"

namespace q3 {
namespace {

constexpr float kBanned = -std::numeric_limits<float>::infinity();

uint64_t splitMix64(uint64_t x) {
    x += 0x9E3779B97F4A7C15ULL;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    return x ^ (x >> 31);
}

// Loops over a vocabulary of 150,000 tokens take two times kLanes at a time. Compilers do not find that out by
// themselves: a comparison of floats may trap, which keeps them from computing both sides of a choice.
constexpr uint32_t kLanes = 4;
using Lanes = float __attribute__((vector_size(kLanes * sizeof(float)), may_alias, aligned(alignof(float))));
using IntLanes = int32_t __attribute__((vector_size(kLanes * sizeof(int32_t))));

// The maximum of every block of so many logits is kept: 2,374 maxima tell where the likeliest of 151,936 tokens are.
constexpr uint32_t kBlock = 64;

// How many of the likeliest tokens a draw without top_k looks at first: they mostly hold nearly all of the probability,
// and sorting a whole vocabulary takes as long as a step of a small model.
constexpr uint32_t kFirstLikeliest = 256;

inline Lanes load(const float *from) {
    return *reinterpret_cast<const Lanes *>(from);
}

inline Lanes larger(Lanes a, Lanes b) {
    return a > b ? a : b;
}

float largest(const float *logits, uint32_t count) {
    Lanes first = Lanes{} + kBanned;
    Lanes second = first;
    uint32_t i = 0;
    for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
        first = larger(load(logits + i), first);
        second = larger(load(logits + i + kLanes), second);
    }
    first = larger(first, second);
    float best = std::max(std::max(first[0], first[1]), std::max(first[2], first[3]));
    for (; i < count; ++i) {
        best = std::max(best, logits[i]);
    }
    return best;
}

// exp(x) for x <= 0, with a relative error of at most 3e-7 (Cephes' polynomial). Below -87 the result no longer falls.
inline Lanes expFast(Lanes x) {
    x = x < -87.0F ? Lanes{} - 87.0F : x;
    const Lanes n = (x * 1.44269504F + 12582912.0F) - 12582912.0F;
    const Lanes r = (x - n * 0.693359375F) + n * 2.12194440e-4F;
    Lanes p = r * 1.9875691500e-4F + 1.3981999507e-3F;
    p = p * r + 8.3334519073e-3F;
    p = p * r + 4.1665795894e-2F;
    p = p * r + 1.6666665459e-1F;
    p = p * r + 5.0000001201e-1F;
    p = p * r * r + r + 1.0F;
    const IntLanes bits = (__builtin_convertvector(n, IntLanes) + 127) * (1 << 23);
    Lanes scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

// Sum of exp(logit - best), in double over short float sums.
double sumExp(const float *logits, uint32_t count, float best) {
    constexpr uint32_t kShortSum = 128 * kLanes;
    double total = 0.0;
    uint32_t i = 0;
    for (; i + kShortSum <= count; i += kShortSum) {
        Lanes sums[2] = {};
        for (uint32_t j = 0; j < kShortSum; j += 2 * kLanes) {
            sums[0] += expFast(load(logits + i + j) - best);
            sums[1] += expFast(load(logits + i + j + kLanes) - best);
        }
        for (const Lanes &sum : sums) {
            for (uint32_t lane = 0; lane < kLanes; ++lane) {
                total += static_cast<double>(sum[lane]);
            }
        }
    }
    for (; i < count; ++i) {
        total += static_cast<double>(expFast(Lanes{} + (logits[i] - best))[0]);
    }
    return total;
}

constexpr float kMost = std::numeric_limits<float>::max();

// Whether a logit is NaN or +infinity.
bool isBad(float logit) {
    return !(logit <= kMost);
}

bool anyBad(const float *logits, uint32_t count) {
    IntLanes bad[2] = {};
    uint32_t i = 0;
    for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
        bad[0] |= ~(load(logits + i) <= kMost);
        bad[1] |= ~(load(logits + i + kLanes) <= kMost);
    }
    bad[0] |= bad[1];
    return (bad[0][0] | bad[0][1] | bad[0][2] | bad[0][3]) != 0 || std::any_of(logits + i, logits + count, isBad);
}

}  // namespace

Sampler::Sampler(uint32_t dvoc) : dvoc_(dvoc), maxima_((dvoc + kBlock - 1) / kBlock) {}

double uniform(uint64_t seed, uint64_t counter) {
    return static_cast<double>(splitMix64(splitMix64(seed) ^ counter) >> 11) * 0x1.0p-53;
}

void Sampler::sample(float *logits, const Qwen3SamplingParams &params, uint32_t position, Qwen3SampleResult &result) {
    adjust(logits, params);
    const uint32_t best = findMaxima(logits);
    if (logits[best] == kBanned) {
        if (params.allowed_mask == nullptr && params.nbias == 0) {
            fail(QWEN3_STATUS_INTERNAL_ERROR, "the model produced -inf as logit of each of %u tokens", dvoc_);
        }
        fail(QWEN3_STATUS_BAD_PARAM, "allowed_mask and bias leave no token of the vocabulary of %u to choose", dvoc_);
    }
    const bool greedy = params.temperature == 0.0F || params.top_k == 1;
    result.token = greedy ? best : draw(logits, logits[best], params, position);
    result.ntop = 0;
    result.logprob = 0.0F;
    if (params.no_logprob == 0 || params.top_logprobs > 0) {
        reportLogprobs(logits, logits[best], params, result);
    }
}

void Sampler::adjust(float *logits, const Qwen3SamplingParams &params) {
    if (anyBad(logits, dvoc_)) {
        const auto *bad = std::find_if(logits, logits + dvoc_, isBad);
        fail(QWEN3_STATUS_INTERNAL_ERROR, "the model produced %g as logit of token %u", static_cast<double>(*bad),
             static_cast<uint32_t>(bad - logits));
    }
    // An adjusted logit stays at or below the largest float, because the difference of two infinities is NaN.
    const auto set = [&](uint32_t token, float value) { logits[token] = std::min(value, kMost); };
    for (uint32_t i = 0; i < params.nbias; ++i) {
        set(params.bias_tokens[i], logits[params.bias_tokens[i]] + params.bias_values[i]);
    }
    if (params.allowed_mask != nullptr) {
        for (uint32_t i = 0; i < dvoc_; ++i) {
            if ((params.allowed_mask[i / 32] >> (i % 32) & 1U) == 0) {
                logits[i] = kBanned;
            }
        }
    }
    const float repetition = params.repetition_penalty;
    if (repetition != 1.0F) {
        seen_.assign(params.history, params.history + params.nhistory);
        std::sort(seen_.begin(), seen_.end());
        seen_.erase(std::unique(seen_.begin(), seen_.end()), seen_.end());
        for (const uint32_t token : seen_) {
            set(token, logits[token] > 0.0F ? logits[token] / repetition : logits[token] * repetition);
        }
    }
    if (params.presence_penalty != 0.0F || params.frequency_penalty != 0.0F) {
        seen_.assign(params.history + (params.nhistory - params.ngenerated), params.history + params.nhistory);
        std::sort(seen_.begin(), seen_.end());
        for (size_t i = 0; i < seen_.size(); ++i) {
            const bool first = i == 0 || seen_[i] != seen_[i - 1];
            set(seen_[i], logits[seen_[i]] - params.frequency_penalty - (first ? params.presence_penalty : 0.0F));
        }
    }
}

// Fills maxima_; returns the index of the largest logit, the lowest one on ties.
uint32_t Sampler::findMaxima(const float *logits) {
    for (uint32_t b = 0; b < maxima_.size(); ++b) {
        const uint32_t first = b * kBlock;
        maxima_[b] = largest(logits + first, std::min(kBlock, dvoc_ - first));
    }
    const auto best = std::max_element(maxima_.begin(), maxima_.end());
    const float *block = logits + (best - maxima_.begin()) * ptrdiff_t{kBlock};
    return static_cast<uint32_t>(std::find(block, logits + dvoc_, *best) - logits);
}

// The `count` likeliest tokens (fewer if bans leave fewer), best first, into candidates_.
void Sampler::selectLikeliest(const float *logits, uint32_t count) {
    const auto likelier = [](const Candidate &a, const Candidate &b) {
        return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
    };
    // At least `count` blocks have a maximum of `bound` or more, and so at least `count` tokens such a logit: a token
    // below it is none of the likeliest.
    float bound = kBanned;
    if (count < maxima_.size()) {
        sorted_maxima_ = maxima_;
        const auto nth = sorted_maxima_.begin() + (count - 1);
        std::nth_element(sorted_maxima_.begin(), nth, sorted_maxima_.end(), std::greater<>());
        bound = *nth;
    }
    candidates_.clear();
    for (uint32_t b = 0; b < maxima_.size(); ++b) {
        if (maxima_[b] < bound || maxima_[b] == kBanned) {
            continue;
        }
        for (uint32_t i = b * kBlock; i < std::min((b + 1) * kBlock, dvoc_); ++i) {
            if (logits[i] >= bound && logits[i] != kBanned) {
                candidates_.push_back({logits[i], i});
            }
        }
    }
    if (count < candidates_.size()) {
        std::nth_element(candidates_.begin(), candidates_.begin() + count, candidates_.end(), likelier);
        candidates_.resize(count);
    }
    std::sort(candidates_.begin(), candidates_.end(), likelier);
}

uint32_t Sampler::draw(const float *logits, float largest_logit, const Qwen3SamplingParams &params, uint32_t position) {
    const double scale = 1.0 / static_cast<double>(params.temperature);
    const double best = static_cast<double>(largest_logit);
    // The difference is taken before scaling: with a tiny temperature the scaled logits themselves would overflow.
    const auto weight = [&](float logit) { return std::exp((static_cast<double>(logit) - best) * scale); };
    const bool all = params.top_k == 0 || params.top_k >= dvoc_;
    double total = 0.0;
    for (uint32_t i = 0; all && i < dvoc_; ++i) {
        total += weight(logits[i]);
    }
    for (uint32_t count = all ? kFirstLikeliest : params.top_k;; count *= 8) {
        selectLikeliest(logits, std::min(count, dvoc_));
        probs_.resize(candidates_.size());
        for (size_t i = 0; i < candidates_.size(); ++i) {
            probs_[i] = weight(candidates_[i].logit);
        }
        if (!all) {
            total = std::accumulate(probs_.begin(), probs_.end(), 0.0);
        }
        const bool complete = !all || candidates_.size() < count;
        const size_t chosen = choose(params, uniform(params.seed, position), total, complete);
        if (chosen < candidates_.size()) {
            return candidates_[chosen].token;
        }
    }
}

// Which candidate the uniform number `random` stands for; `total` is the weight of all tokens that may be drawn. Unless
// `complete`, the candidates are only the likeliest of these, and the number may stand for a token beyond them: then
// the number of candidates is returned.
size_t Sampler::choose(const Qwen3SamplingParams &params, double random, double total, bool complete) const {
    size_t keep = probs_.size();
    bool cut = false;
    if (params.top_p < 1.0F) {
        double sum = 0.0;
        for (size_t i = 0; i < keep && !cut; ++i) {
            sum += probs_[i];
            if (sum >= static_cast<double>(params.top_p) * total) {
                keep = i + 1;
                cut = true;
            }
        }
    }
    if (params.min_p > 0.0F) {
        while (keep > 1 && probs_[keep - 1] < static_cast<double>(params.min_p) * probs_[0]) {
            --keep;
            cut = true;
        }
    }
    if (!cut && !complete && (params.top_p < 1.0F || params.min_p > 0.0F)) {
        return probs_.size();
    }
    const auto end = probs_.begin() + static_cast<ptrdiff_t>(keep);
    double target = random * (cut ? std::accumulate(probs_.begin(), end, 0.0) : total);
    for (size_t i = 0; i < keep; ++i) {
        target -= probs_[i];
        if (target < 0.0) {
            return i;
        }
    }
    return cut || complete ? keep - 1 : keep;
}

void Sampler::reportLogprobs(const float *logits, float largest_logit, const Qwen3SamplingParams &params,
                             Qwen3SampleResult &result) {
    const double best = static_cast<double>(largest_logit);
    const double sum = sumExp(logits, dvoc_, largest_logit);
    // The difference is taken first: added to a large logit, log(sum) would vanish in rounding.
    const auto logprob = [&, log_sum = std::log(sum)](float logit) {
        return static_cast<float>(static_cast<double>(logit) - best - log_sum);
    };
    result.logprob = logprob(logits[result.token]);
    if (params.top_logprobs == 0) {
        return;
    }
    selectLikeliest(logits, params.top_logprobs);
    result.ntop = static_cast<uint32_t>(candidates_.size());
    for (uint32_t i = 0; i < result.ntop; ++i) {
        result.top_tokens[i] = candidates_[i].token;
        result.top_logprobs[i] = logprob(candidates_[i].logit);
    }
}

}  // namespace q3
