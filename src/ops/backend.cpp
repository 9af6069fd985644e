// What a backend that cannot save its weights inherits.
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

}  // namespace q3
