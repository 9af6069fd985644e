// The C boundary: nothing thrown inside passes it; the reason stays in thread-local storage for qwen3LastError.
#pragma once

#include <cstdint>
#include <exception>
#include <new>

#include "runtime/error.h"

namespace q3 {

void recordError(const char *function, int32_t status, const char *message) noexcept;

// Runs body and returns SUCCESS, or records the error and returns its status.
template <typename Body> int32_t guard(const char *function, Body &&body) noexcept {
    int32_t status = QWEN3_STATUS_INTERNAL_ERROR;
    try {
        body();
        return QWEN3_STATUS_SUCCESS;
    } catch (const Error &error) {
        status = error.status();
        recordError(function, status, error.what());
    } catch (const std::bad_alloc &) {
        status = QWEN3_STATUS_OUT_OF_MEMORY;
        recordError(function, status, "out of host memory");
    } catch (const std::exception &error) {
        recordError(function, status, error.what());
    } catch (...) {
        recordError(function, status, "unknown exception");
    }
    return status;
}

}  // namespace q3
