// What the calls that run the model have in common.
#pragma once

#include <cstdint>

struct KVCache;

namespace q3 {

// The arguments shared by inferBatch, inferBatchEx, forwardBatch and embedBatch.
struct BatchArgs {
    const uint32_t *tokens;
    uint32_t ntok;
    const uint32_t *req_lens;
    uint32_t nreq;
    const uint32_t *req_pos;
    KVCache *const *kv_caches;
};

}  // namespace q3
