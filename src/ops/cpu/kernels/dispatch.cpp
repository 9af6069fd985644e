#include "ops/cpu/kernels/dispatch.h"

#include <cstdlib>
#include <cstring>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "runtime/error.h"

namespace q3::cpu {

namespace {

const char *forcedName() {
    const char *name = std::getenv("QWEN3_CPU_ISA");
    return name == nullptr ? "" : name;
}

#if defined(__x86_64__) && !defined(Q3_WITHOUT_AVX512)
// Whether the CPU has AMX for int8 and bf16, and the operating system saves the tiles and lets this process use them.
// Linux must be asked, because the tiles add 8 KB to a thread's saved state; kernels before 5.16 and some sandboxes
// refuse.
bool requestAmx() {
    constexpr unsigned kOsxsave = 1U << 27;  // leaf 1, ecx
    constexpr unsigned kAmxTile = 1U << 24;  // leaf 7, edx
    constexpr unsigned kAmxInt8 = 1U << 25;  // leaf 7, edx
    constexpr unsigned kAmxBf16 = 1U << 22;  // leaf 7, edx
    constexpr unsigned kAmx = kAmxTile | kAmxInt8 | kAmxBf16;
    constexpr unsigned kTileStates = 1U << 17 | 1U << 18;  // XCR0: configuration and data
    constexpr long kRequestPermission = 0x1023;            // ARCH_REQ_XCOMP_PERM
    constexpr long kTileData = 18;                         // XFEATURE_XTILEDATA
    unsigned eax = 0;
    unsigned ebx = 0;
    unsigned ecx = 0;
    unsigned edx = 0;
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx & kOsxsave) == 0) {
        return false;
    }
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (edx & kAmx) != kAmx) {
        return false;
    }
    asm("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    return (eax & kTileStates) == kTileStates && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

}  // namespace

const std::vector<KernelEntry> &kernelEntries() {
    static const std::vector<KernelEntry> entries = [] {
        std::vector<KernelEntry> found;
#if defined(__x86_64__)
        const bool avx2 =
            __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#if !defined(Q3_WITHOUT_AVX512)  // xmake.lua
        const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
        const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
        const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
        // Asking for AMX has side effects (signal stacks must be larger), so nobody asks when another table is forced.
        const bool wanted = *forcedName() == '\0' || std::strcmp(forcedName(), kAmxKernels.name) == 0;
        found.push_back({&kAmxKernels, bf16 && wanted && requestAmx()});
        found.push_back({&kAvx512Bf16Kernels, bf16});
        found.push_back({&kAvx512VnniKernels, vnni});
        found.push_back({&kAvx512Kernels, avx512});
#endif
        found.push_back({&kAvxVnniKernels, avx2 && __builtin_cpu_supports("avxvnni") != 0});
        found.push_back({&kAvx2Kernels, avx2});
#elif defined(__aarch64__)
        const bool dotprod = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
        found.push_back({&kNeonI8mmKernels, dotprod && (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0});
        found.push_back({&kNeonDotprodKernels, dotprod});
        found.push_back({&kNeonKernels, true});
#endif
        found.push_back({&kScalarKernels, true});
        return found;
    }();
    return entries;
}

const KernelTable &selectKernels() {
    const char *forced = forcedName();
    std::string names;
    for (const KernelEntry &entry : kernelEntries()) {
        if (*forced == '\0') {
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
