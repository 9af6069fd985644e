// A progress callback in C, for interpreters whose lock another thread may hold while weights are packed.
#include <sys/mman.h>

#include "infinicore_infer/models/qwen3.h"

extern "C" int qwen3LoadProgress(void *user_data, uint64_t done, uint64_t total) {
    auto *state = static_cast<Qwen3LoadState *>(user_data);
    if (state == nullptr) {
        return 0;
    }
    for (uint32_t i = 0; state->mappings != nullptr && state->mapping_bytes != nullptr && i < state->nmappings; ++i) {
        madvise(state->mappings[i], state->mapping_bytes[i], MADV_DONTNEED);  // only a saving: refusal is no error
    }
    __atomic_store_n(&state->total, total, __ATOMIC_RELAXED);
    __atomic_store_n(&state->done, done, __ATOMIC_RELAXED);
    return __atomic_load_n(&state->cancel, __ATOMIC_RELAXED);
}
