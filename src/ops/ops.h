// What the forward pass (src/model/qwen3.cpp) calls: the nodes of a step.
//
// Nodes are fused: as large as the CPU kernels want them; a backend without a fused kernel composes smaller ones behind
// the same method. Shapes are given per call with ntok = plan.ntok. A node enters this file only when the model needs
// it and every backend serves it. All methods throw q3::Error on failure; after a throw beginStep must work again. One
// thread at a time calls into an Ops.
#pragma once

#include "ops/types.h"
#include "ops/weights.h"

namespace q3 {

class Ops {
public:
    virtual ~Ops() = default;

    // The nodes below belong to this step until the next beginStep. The plan is valid whenever one of them is called.
    virtual void beginStep(const StepPlan &plan) = 0;
    // x[ntok, d] = table[tokens]
    virtual void embed(Activation x, const PackedLinear &table) = 0;
    // x += delta (skipped when delta.data is null); h = x / sqrt(mean(x^2) + epsilon) * weight     [ntok, d]
    virtual void addRmsnorm(Activation h, Activation x, Activation delta, const PackedNorm &weight, float epsilon) = 0;
    // out[ntok, out] = in[ntok, in] W^T + bias
    virtual void linear(Activation out, Activation in, const PackedLinear &weight) = 0;
    // qkv[ntok, (nh + 2 nkvh) dh]: RMSNorm over each q and k head, NeoX rope on q and k in place (k may be left
    // stale), K and V appended to the plan's blocks. attention() with the same qkv and layer is the next node, and may
    // do any part of this.
    virtual void qkNormRopeStore(Activation qkv, const PackedNorm &q_norm, const PackedNorm &k_norm, float epsilon,
                                 uint32_t layer) = 0;
    // out[ntok, nh dh] = causal GQA attention of q (in qkv) over the plan's blocks, scale 1 / sqrt(dh)
    virtual void attention(Activation out, Activation qkv, uint32_t layer) = 0;
    // act[ntok, di] = silu(h W_gate^T) * (h W_up^T)
    virtual void linearSwiglu(Activation act, Activation h, const PackedLinear &gate_up) = 0;
    // out[ntok, d] = sum over the experts that a row's router logits (h W_router^T) choose (ops/routing.h), in falling
    // order of their weights, of weight * silu(h W_gate^T) * (h W_up^T) W_down^T; gate_up and down are LinearSources of
    // all experts.
    virtual void experts(Activation out, Activation h, const PackedLinear &router, const PackedLinear &gate_up,
                         const PackedLinear &down) = 0;
    // out[nrows, d] = rmsnorm((x + delta)[rows], weight); rows are indices < ntok in host memory
    virtual void gatherRmsnorm(Activation out, Activation x, Activation delta, const uint32_t *rows, uint32_t nrows,
                               const PackedNorm &weight, float epsilon) = 0;
    // logits[nrows, out], float32 in host memory with rows ld apart, complete on return; in[nrows, d]
    virtual void readLogits(float *logits, size_t ld, Activation in, uint32_t nrows, const PackedLinear &head) = 0;
    // out[nrows, in.width] = in[nrows], float32 in host memory, complete on return
    virtual void readRows(float *out, Activation in, uint32_t nrows) = 0;
    // x[ntok, width] = its sum over all ranks; every rank calls it at the same point. Nothing to do for one rank.
    // Throws RankStopped when another rank failed.
    virtual void allReduceSum(Activation x) = 0;
};

}  // namespace q3
