#include "ops/routing.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace q3 {

Routing::Routing(const ModelConfig &config)
    : nexperts_(config.nexperts), nused_(config.nused), norm_(config.norm_topk),
      experts_(size_t{config.max_step_tokens} * config.nused), weights_(experts_.size()), slot_of_(experts_.size()),
      row_of_(experts_.size()), counts_(config.nexperts) {
    shares_.reserve(config.nexperts);
}

namespace {

// In place of the probability of an expert that has been chosen.
constexpr float kTaken = -1.0F;

}  // namespace

void Routing::choose(uint32_t row, float *logits) {
    const float most = *std::max_element(logits, logits + nexperts_);
    float sum = 0.0F;
    for (uint32_t e = 0; e < nexperts_; ++e) {
        logits[e] = std::exp(logits[e] - most);
        sum += logits[e];
    }
    std::transform(logits, logits + nexperts_, logits, [&](float value) { return value / sum; });
    uint32_t *experts = experts_.data() + size_t{row} * nused_;
    float *weights = weights_.data() + size_t{row} * nused_;
    for (uint32_t i = 0; i < nused_; ++i) {
        // Comparisons with NaN are false, so that a row without numbers goes through the first experts.
        const auto left = [](float value) { return value != kTaken; };
        auto best = static_cast<uint32_t>(std::find_if(logits, logits + nexperts_, left) - logits);
        for (uint32_t e = best + 1; e < nexperts_; ++e) {
            best = logits[e] > logits[best] ? e : best;
        }
        experts[i] = best;
        weights[i] = std::exchange(logits[best], kTaken);
    }
    if (norm_) {
        const float total = std::accumulate(weights, weights + nused_, 0.0F);
        std::transform(weights, weights + nused_, weights, [&](float value) { return value / total; });
    }
}

void Routing::sort(uint32_t rows) {
    slots_ = rows * nused_;
    std::fill(counts_.begin(), counts_.end(), 0U);
    for (uint32_t i = 0; i < slots_; ++i) {
        ++counts_[experts_[i]];
    }
    shares_.clear();
    uint32_t next = 0;
    for (uint32_t e = 0; e < nexperts_; ++e) {
        if (counts_[e] > 0) {
            shares_.push_back({e, next, counts_[e]});
        }
        next += std::exchange(counts_[e], next);
    }
    for (uint32_t i = 0; i < slots_; ++i) {
        slot_of_[i] = counts_[experts_[i]]++;
        row_of_[slot_of_[i]] = i / nused_;
    }
}

}  // namespace q3
