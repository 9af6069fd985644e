// Which of several ways through InfiniCore a device is driven: not every device has every operator.
#pragma once

#include <string>

#include "ops/types.h"

namespace q3::infinicore {

// All true: the shortest way. The self-test clears what a device refuses; the environment variable
// QWEN3_INFINICORE_AVOID, a list of the names below, clears more.
struct Routes {
    bool rope_neox = true;  // else the interleaved (GPT-J) rope, with q and k rows permuted when they are packed
    bool add = true;        // else sums through gemm with an identity
    bool gemm_add = true;   // products that go into the residual stream are added by gemm; else afterwards
    bool causal = true;     // causal_softmax masks rows of any width; else wide scores are masked beforehand
    bool beta0 = true;      // gemm with beta 0 does not read C; else C is cleared first
    // Operators that 0.1.0 does not have: a library built with it never takes these routes.
    bool add_rms_norm = true;
    bool embedding = true;
    bool silu_and_mul = true;
    bool paged_attention = true;  // paged_caching, paged_attention and paged_attention_prefill
    bool graphs = true;           // decode steps of paged attention are recorded once and repeated
};

// The routes that this build and the environment leave. Throws BAD_PARAM for an unknown name.
Routes initialRoutes();
bool selfTestWanted();                         // QWEN3_INFINICORE_SELF_TEST is not "0"
std::string routesText(const Routes &routes);  // the routes not taken, "add,rope_neox"; "none" for none

}  // namespace q3::infinicore
