// What a backend inherits that cannot save its weights, or has no threads of its own.
#include "ops/backend.h"

#include "runtime/error.h"

namespace q3 {
namespace {

[[noreturn]] void failCannotSave() {
    fail(QWEN3_STATUS_NOT_IMPLEMENTED, "this backend cannot save its packed weights");
}

}  // namespace

void Backend::save(const PackedLinear &, PackedWriter &) const {
    failCannotSave();
}
void Backend::save(const PackedNorm &, PackedWriter &) const {
    failCannotSave();
}

void Backend::forEach(uint32_t count, const std::function<void(uint32_t i, uint32_t thread)> &body) {
    for (uint32_t i = 0; i < count; ++i) {
        body(i, 0);
    }
}

}  // namespace q3
