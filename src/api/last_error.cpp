// Each thread's latest error.
#include "api/boundary.h"
#include "runtime/thread_text.h"

namespace q3 {
namespace {

// initial-exec: in the static block that every thread has from the start, as is then everything thread-local in this
// library, what the C++ library keeps for exceptions included (it is linked in, see xmake.lua). Otherwise the dynamic
// loader would allocate that at the first touch, and end the process when it cannot.
__attribute__((tls_model("initial-exec"))) thread_local int32_t status_of_thread = QWEN3_STATUS_SUCCESS;

const ThreadText kText(640);

}  // namespace

void recordError(const char *function, int32_t status, const char *message) noexcept {
    status_of_thread = status;
    if (char *const text = kText.buffer(); text != nullptr) {
        formatText(text, kText.bytes(), "%s: %s", function, message);
    }
}

const char *lastErrorText() noexcept {
    if (const char *const text = kText.existing(); text != nullptr) {
        return text;
    }
    return status_of_thread == QWEN3_STATUS_SUCCESS ? "" : "out of host memory, also for the text of this error";
}

int32_t lastErrorStatus() noexcept {
    return status_of_thread;
}

}  // namespace q3
