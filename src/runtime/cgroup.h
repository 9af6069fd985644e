// Limits of the control groups (version 1 or 2) that this process is in, and of all their ancestors.
#pragma once

#include <cstdint>
#include <string>

namespace q3 {

// CPUs' worth of time that the process may use; infinity without a limit. root: prefix of all paths that are read.
double cgroupCpus(const std::string &root = "");

// Bytes that may still be taken before the nearest limit, counting cached files as free, since the kernel drops them
// when memory is short; UINT64_MAX without a limit.
uint64_t cgroupMemoryLeft(const std::string &root = "");

}  // namespace q3
