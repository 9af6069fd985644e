// How many CPUs and how much memory this process may really use.
#pragma once

#include <cstdint>
#include <string>

namespace q3 {

// CPUs allowed by the affinity mask and the cgroup quota (v1 or v2), at least 1.
uint32_t availableCpus();

// Bytes of memory this process could still take, at least 1: the smaller of the system's available memory and what is
// left of its cgroups' limits (v1 or v2). 0 when unknown. root: prefix of all paths that are read.
uint64_t availableMemory(const std::string &root = "");

}  // namespace q3
