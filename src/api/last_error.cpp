// Each thread's latest error.
//
// A thread-local buffer of this size would be allocated by the dynamic loader when a thread first touches it, and the
// loader ends the process when there is no memory: exactly then an error has to be recorded. So only a pointer and a
// number are thread-local, in the static block that every thread has from the start (initial-exec).
#include <pthread.h>

#include <cstdlib>

#include "api/boundary.h"

namespace q3 {
namespace {

constexpr size_t kTextBytes = 640;

__attribute__((tls_model("initial-exec"))) thread_local char *text_of_thread = nullptr;
__attribute__((tls_model("initial-exec"))) thread_local int32_t status_of_thread = QWEN3_STATUS_SUCCESS;

void forget(void *text) noexcept {
    std::free(text);
    text_of_thread = nullptr;
}

// Frees a thread's text when the thread ends.
class TextKey {
public:
    TextKey() noexcept : made_(pthread_key_create(&key_, forget) == 0) {}
    ~TextKey() {
        if (made_) {
            pthread_key_delete(key_);
        }
    }
    TextKey(const TextKey &) = delete;
    TextKey &operator=(const TextKey &) = delete;
    bool keep(void *text) const noexcept { return made_ && pthread_setspecific(key_, text) == 0; }

private:
    pthread_key_t key_{};
    bool made_;
};

const TextKey kTextKey;

}  // namespace

void recordError(const char *function, int32_t status, const char *message) noexcept {
    status_of_thread = status;
    if (text_of_thread == nullptr) {
        auto *text = static_cast<char *>(std::malloc(kTextBytes));
        if (text == nullptr || !kTextKey.keep(text)) {
            std::free(text);
            return;
        }
        text_of_thread = text;
    }
    formatText(text_of_thread, kTextBytes, "%s: %s", function, message);
}

const char *lastErrorText() noexcept {
    if (text_of_thread != nullptr) {
        return text_of_thread;
    }
    return status_of_thread == QWEN3_STATUS_SUCCESS ? "" : "out of host memory, also for the text of this error";
}

int32_t lastErrorStatus() noexcept {
    return status_of_thread;
}

}  // namespace q3
