#include "model/qwen3.h"

#include "runtime/error.h"

namespace q3 {

Qwen3Forward::Qwen3Forward(const ModelConfig &config, ModelWeights weights, Backend &backend)
    : c_(config), weights_(std::move(weights)), op_(backend.ops()) {
    const uint32_t rows = c_.max_step_tokens;
    x_ = backend.allocate(rows, c_.d);
    h_ = backend.allocate(rows, c_.d);
    qkv_ = backend.allocate(rows, c_.qkvWidth());
    attn_ = backend.allocate(rows, c_.nh * c_.dh);
    act_ = backend.allocate(rows, c_.di);
    delta_ = backend.allocate(rows, c_.d);
}

void Qwen3Forward::run(const StepPlan &plan, const std::atomic<bool> &cancel) {
    op_.beginStep(plan);
    op_.embed(x_, *weights_.embedding);
    Activation delta;  // nothing to add before the first layer
    for (uint32_t i = 0; i < c_.nlayer; ++i) {
        if (cancel.load(std::memory_order_relaxed)) {
            fail(QWEN3_STATUS_CANCELLED, "cancelled before layer %u of %u", i, c_.nlayer);
        }
        const LayerWeights &w = weights_.layers[i];
        op_.addRmsnorm(h_, x_, delta, *w.attn_norm, c_.epsilon);         // [ntok, d]
        op_.linear(qkv_, h_, *w.attn_qkv);                               // [ntok, (nh + 2 nkvh) dh]
        op_.qkNormRopeStore(qkv_, *w.q_norm, *w.k_norm, c_.epsilon, i);  // k and v into the cache
        op_.attention(attn_, qkv_, i);                                   // [ntok, nh dh]
        op_.linear(delta_, attn_, *w.attn_o);                            // [ntok, d]
        op_.allReduceSum(delta_);
        delta = delta_;
        op_.addRmsnorm(h_, x_, delta, *w.ffn_norm, c_.epsilon);
        if (w.router != nullptr) {
            op_.experts(delta_, h_, *w.router, *w.ffn_gate_up, *w.ffn_down);
        } else {
            op_.linearSwiglu(act_, h_, *w.ffn_gate_up);  // [ntok, di]
            op_.linear(delta_, act_, *w.ffn_down);
        }
        op_.allReduceSum(delta_);
    }
}

void Qwen3Forward::logits(const uint32_t *rows, uint32_t nrows, float *out, size_t ld) {
    // h_ is free after the last layer.
    op_.gatherRmsnorm(h_, x_, delta_, rows, nrows, *weights_.output_norm, c_.epsilon);
    op_.readLogits(out, ld, h_, nrows, *weights_.head);
}

void Qwen3Forward::hidden(const uint32_t *rows, uint32_t nrows, float *out) {
    op_.gatherRmsnorm(h_, x_, delta_, rows, nrows, *weights_.output_norm, c_.epsilon);
    op_.readRows(out, h_, nrows);
}

}  // namespace q3
