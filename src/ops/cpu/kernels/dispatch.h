// Chooses the kernel table for the CPU the process runs on.
#pragma once

#include <vector>

#include "ops/cpu/kernels/kernels.h"

namespace q3::cpu {

struct KernelEntry {
    const KernelTable *kernels;
    bool supported;  // by this CPU and its operating system
};

// All tables of this build, best first.
const std::vector<KernelEntry> &kernelEntries();

// The best table this CPU can run, or the one named by the environment variable QWEN3_CPU_ISA. Throws
// DEVICE_ARCHITECTURE_NOT_SUPPORTED when the named one is unknown or not supported here.
const KernelTable &selectKernels();

}  // namespace q3::cpu
