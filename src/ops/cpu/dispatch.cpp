#include "ops/cpu/dispatch.h"

#include <cstdlib>
#include <cstring>
#include <string>

#include "runtime/error.h"

namespace q3::cpu {

const std::vector<KernelEntry> &kernelEntries() {
    static const std::vector<KernelEntry> entries = [] {
        std::vector<KernelEntry> found;
#if defined(__x86_64__)
        const bool avx2 =
            __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
        const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
        found.push_back({&kAvx512VnniKernels, avx512 && __builtin_cpu_supports("avx512vnni")});
        found.push_back({&kAvx512Kernels, avx512});
        found.push_back({&kAvx2Kernels, avx2});
#elif defined(__aarch64__)
        found.push_back({&kNeonKernels, true});
#endif
        found.push_back({&kScalarKernels, true});
        return found;
    }();
    return entries;
}

const Kernels &selectKernels() {
    const char *forced = std::getenv("QWEN3_CPU_ISA");
    std::string names;
    for (const KernelEntry &entry : kernelEntries()) {
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
        names += (names.empty() ? "" : ", ") + std::string(entry.kernels->name);
    }
    fail(QWEN3_STATUS_DEVICE_ARCHITECTURE_NOT_SUPPORTED, "QWEN3_CPU_ISA=%s: not one of %s", forced, names.c_str());
}

}  // namespace q3::cpu
