#include "runtime/cpu_info.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>
#include <thread>

#include "runtime/cgroup.h"
#include "runtime/small_file.h"

namespace q3 {

uint32_t availableCpus() {
    uint32_t cpus = std::max(1U, std::thread::hardware_concurrency());
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        cpus = static_cast<uint32_t>(CPU_COUNT(&set));
    }
    const double quota = cgroupCpus();
    if (quota < cpus) {
        cpus = static_cast<uint32_t>(std::ceil(quota));
    }
    return std::max(1U, cpus);
}

uint64_t availableMemory(const std::string &root) {
    constexpr char kName[] = "\nMemAvailable:";
    const std::string facts = "\n" + readSmallFile(root + "/proc/meminfo");
    const size_t found = facts.find(kName);
    const uint64_t left = cgroupMemoryLeft(root);
    if (found == std::string::npos) {
        return left == UINT64_MAX ? 0 : std::max<uint64_t>(left, 1);
    }
    const uint64_t free = std::strtoull(facts.c_str() + found + sizeof kName - 1, nullptr, 10) * 1024;
    return std::max<uint64_t>(std::min(free, left), 1);
}

}  // namespace q3
