// What a backend that cannot save its weights inherits.
#include "ops/ops.h"

#include "runtime/error.h"

namespace q3 {
namespace {

[[noreturn]] void cannotSave() {
    fail(QWEN3_STATUS_NOT_IMPLEMENTED, "this backend cannot save its packed weights");
}

}  // namespace

void Ops::save(const Linear &, PackedWriter &) const {
    cannotSave();
}
void Ops::save(const Vector &, PackedWriter &) const {
    cannotSave();
}
std::unique_ptr<Linear> Ops::loadLinear(const LinearSource &, PackedReader &) {
    cannotSave();
}
std::unique_ptr<Linear> Ops::loadGateUp(const LinearSource &, PackedReader &) {
    cannotSave();
}
std::unique_ptr<Vector> Ops::loadVector(const VectorSource &, PackedReader &) {
    cannotSave();
}
std::shared_ptr<Linear> Ops::loadEmbedding(const LinearSource &, const std::vector<const Linear *> &, bool,
                                           PackedReader &) {
    cannotSave();
}

}  // namespace q3
