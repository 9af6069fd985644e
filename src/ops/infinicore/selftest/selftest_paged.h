// The part of the self-test for newer InfiniCore's paged operators.
#pragma once

#include "ops/infinicore/selftest/trial.h"

namespace q3::infinicore {

// Tries paged_caching, paged_attention and paged_attention_prefill on two sequences in three blocks; tells each
// verdict.
void tryPagedOperators(Trial &t, Operators &operators, const ModelConfig &config, uint32_t block_tokens,
                       const std::function<void(const Verdict &)> &judge);

}  // namespace q3::infinicore
