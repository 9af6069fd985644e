// The C boundary: nothing thrown inside passes it; the reason is kept for qwen3LastError. Inside, a call computes in
// the default floating-point environment, whatever the caller's is, and gives it back unchanged.
#pragma once

#include <cstdint>
#include <exception>
#include <new>

#include "runtime/error.h"
#include "runtime/worker_thread.h"

namespace q3 {

// This thread's latest error (last_error.cpp). Without memory for a text only the status and a fixed text are kept.
void recordError(const char *function, int32_t status, const char *message) noexcept;
const char *lastErrorText() noexcept;
int32_t lastErrorStatus() noexcept;

// Runs body and returns SUCCESS, or records the error and returns its status.
template <typename Body> int32_t guard(const char *function, Body &&body) noexcept {
    const DefaultFloats floats;
    prepareToThrow();
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
