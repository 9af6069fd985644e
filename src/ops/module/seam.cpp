#include "ops/module/seam.h"

#include <cstdio>
#include <new>

#include "runtime/error.h"
#include "runtime/ranks.h"
#include "runtime/thread_text.h"

namespace q3::module {
namespace {

const ThreadText kText(1024);

// Whether there was memory to keep the latest text. initial-exec: see src/api/last_error.cpp, for the module likewise.
__attribute__((tls_model("initial-exec"))) thread_local bool is_kept = true;

void keep(const char *text) noexcept {
    char *const buffer = kText.buffer();
    is_kept = buffer != nullptr;
    if (is_kept) {
        std::snprintf(buffer, kText.bytes(), "%s", text);
    }
}

}  // namespace

int32_t caught() noexcept {
    try {
        throw;
    } catch (const RankStopped &error) {
        keep(error.what());
        return kRankStopped;
    } catch (const Error &error) {
        keep(error.what());
        return error.status();
    } catch (const std::bad_alloc &) {
        keep("out of host memory");
        return QWEN3_STATUS_OUT_OF_MEMORY;
    } catch (const std::exception &error) {
        keep(error.what());
    } catch (...) {
        keep("unknown exception");
    }
    return QWEN3_STATUS_INTERNAL_ERROR;
}

const char *lastError() noexcept {
    const char *const text = kText.existing();
    return is_kept && text != nullptr ? text : "out of host memory, also for the text of this error";
}

void rethrow(int32_t status, const char *(*error)()) {
    if (status == kRankStopped) {
        throw RankStopped{};
    }
    if (status != QWEN3_STATUS_SUCCESS) {
        throw Error(status, error());
    }
}

}  // namespace q3::module
