#include "ops/cpu/dispatch.h"

#include <cstdlib>
#include <cstring>

#include "runtime/error.h"

namespace q3::cpu {
namespace {

struct Entry {
    const Kernels *kernels;
    bool supported;
};

}  // namespace

const Kernels &selectKernels() {
    const Entry entries[] = {
    // Best first.
#if defined(__x86_64__)
        {&kAvx2Kernels,
         __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")},
#endif
        {&kScalarKernels, true},
    };
    const char *forced = std::getenv("QWEN3_CPU_ISA");
    for (const Entry &entry : entries) {
        if (forced == nullptr || *forced == '\0') {
            if (entry.supported) {
                return *entry.kernels;
            }
        } else if (std::strcmp(forced, entry.kernels->name) == 0) {
            if (!entry.supported) {
                fail(QWEN3_STATUS_DEVICE_ARCHITECTURE_NOT_SUPPORTED, "QWEN3_CPU_ISA=%s: this CPU cannot run it",
                     forced);
            }
            return *entry.kernels;
        }
    }
    fail(QWEN3_STATUS_DEVICE_ARCHITECTURE_NOT_SUPPORTED, "QWEN3_CPU_ISA=%s: not one of scalar, avx2", forced);
}

}  // namespace q3::cpu
