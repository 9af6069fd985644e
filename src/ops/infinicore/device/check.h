// Turns InfiniCore's status codes into q3::Error.
#pragma once

#include "ops/infinicore/device/functions.h"

namespace q3::infinicore {

// Throws the Error of a failed call; `call` is its source text, the device is the thread's current one.
[[noreturn]] void failStatus(infiniStatus_t status, const char *call);

inline void check(infiniStatus_t status, const char *call) {
    if (status != INFINI_STATUS_SUCCESS) {
        failStatus(status, call);
    }
}

}  // namespace q3::infinicore

#define INFINI_CHECK(call) ::q3::infinicore::check((call), #call)
