// Chooses the kernel table for the CPU the process runs on.
#pragma once

#include "ops/cpu/kernels.h"

namespace q3::cpu {

// The best table this CPU can run, or the one named by the environment variable QWEN3_CPU_ISA (scalar, avx2). Throws
// DEVICE_ARCHITECTURE_NOT_SUPPORTED when the named one is unknown or not supported here.
const Kernels &selectKernels();

}  // namespace q3::cpu
