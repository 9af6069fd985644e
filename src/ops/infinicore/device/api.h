// InfiniCore's operators, whatever its version. 0.1.0 has none of the operators gated here; a library built against a
// newer InfiniCore uses them where the device has them (see routes.h).
#pragma once

#include <type_traits>

#include "infiniop.h"

#if __has_include("infiniop/ops/add_rms_norm.h")
#include "infiniop/ops/add_rms_norm.h"
#define Q3_HAS_ADD_RMS_NORM 1
#else
#define Q3_HAS_ADD_RMS_NORM 0
#endif

#if __has_include("infiniop/ops/embedding.h")
#include "infiniop/ops/embedding.h"
#define Q3_HAS_EMBEDDING 1
#else
#define Q3_HAS_EMBEDDING 0
#endif

#if __has_include("infiniop/ops/silu_and_mul.h")
#include "infiniop/ops/silu_and_mul.h"
#define Q3_HAS_SILU_AND_MUL 1
#else
#define Q3_HAS_SILU_AND_MUL 0
#endif

// The three operators of paged attention work on the same cache, so they are used together or not at all.
#if __has_include("infiniop/ops/paged_caching.h") && __has_include(                                                    \
                                                         "infiniop/ops/paged_attention.h") &&                          \
                                                         __has_include("infiniop/ops/paged_attention_prefill.h")
#include "infiniop/ops/paged_attention.h"
#include "infiniop/ops/paged_attention_prefill.h"
#include "infiniop/ops/paged_caching.h"
#define Q3_HAS_PAGED_ATTENTION 1
#else
#define Q3_HAS_PAGED_ATTENTION 0
#endif

namespace q3::infinicore {

// Newer operators still change their arguments. An operator whose arguments differ from ours counts as missing, so that
// the module builds and takes another route. So does an operator that the InfiniCore found at run time lacks.
template <class Function, class... Args> infiniStatus_t callIfKnown(Function function, Args... args) {
    if constexpr (std::is_invocable_v<Function, Args...>) {
        if constexpr (std::is_pointer_v<Function>) {
            if (function == nullptr) {
                return INFINI_STATUS_NOT_IMPLEMENTED;
            }
        }
        return function(args...);
    } else {
        return INFINI_STATUS_NOT_IMPLEMENTED;
    }
}

}  // namespace q3::infinicore
