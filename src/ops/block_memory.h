// Where KV blocks live. A block holds Backend::kvBlockTokens() tokens of all layers; what lies where inside is the
// backend's.
#pragma once

#include <cstddef>

namespace q3 {

class BlockMemory {
public:
    virtual ~BlockMemory() = default;
    virtual void *allocate(size_t bytes) = 0;  // throws OUT_OF_MEMORY
    virtual void release(void *block) noexcept = 0;
    virtual void copy(void *dst, const void *src, size_t bytes) = 0;
};

}  // namespace q3
