// How many CPUs and how much memory this process may really use.
#pragma once

#include <cstdint>

namespace q3 {

// CPUs allowed by the affinity mask and the cgroup quota (v1 or v2), at least 1.
uint32_t availableCpus();

// Bytes of memory this process could still take: the smaller of the system's available memory and what is left of
// the cgroup's limit. 0 when unknown.
uint64_t availableMemory();

}  // namespace q3
