// The Qwen3 forward pass, written once for every backend. Each rank of a model has one, and runs it at the same time as
// the others.
#pragma once

#include <atomic>
#include <memory>

#include "model/weights.h"
#include "ops/backend.h"
#include "ops/ops.h"

namespace q3 {

class Qwen3Forward {
public:
    // config: the rank's part. Allocates all activations for config.max_step_tokens rows.
    Qwen3Forward(const ModelConfig &config, ModelWeights weights, Backend &backend);

    // Runs all layers over the plan's tokens and appends their keys and values. Throws CANCELLED between layers once
    // `cancel` is set. Ranks may see it in different layers of one step, but no rank gets past the sum that follows.
    void run(const StepPlan &plan, const std::atomic<bool> &cancel);

    // The rank's logits [nrows, config.dvoc], ld floats from row to row, of rows (indices < plan.ntok) of the step that
    // ran last.
    void logits(const uint32_t *rows, uint32_t nrows, float *out, size_t ld);

    // Hidden states [nrows, d] after the last norm, float32, of rows (indices < plan.ntok) of the step that ran last.
    void hidden(const uint32_t *rows, uint32_t nrows, float *out);

    const ModelWeights &weights() const { return weights_; }

private:
    ModelConfig c_;
    ModelWeights weights_;
    Ops &op_;
    // The residual stream is x_; a branch's output waits in delta_ until the next norm adds it.
    Activation x_, h_, qkv_, attn_, act_, delta_;
};

}  // namespace q3
