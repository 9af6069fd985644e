#include "ops/module/seam.h"

#include <cstdio>
#include <new>

#include "runtime/error.h"
#include "runtime/ranks.h"

namespace q3::module {
namespace {

thread_local char last_error[1024];

void keep(const char *text) noexcept {
    std::snprintf(last_error, sizeof last_error, "%s", text);
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
    return last_error;
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
