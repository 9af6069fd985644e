#include "runtime/cpu_info.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <string>
#include <thread>

namespace q3 {
namespace {

// Path of this process's cgroup below the mount point, for v2 ("0::/path") only.
std::string cgroupPath() {
    std::ifstream file("/proc/self/cgroup");
    for (std::string line; std::getline(file, line);) {
        if (line.rfind("0::", 0) == 0) {
            return line.substr(3) == "/" ? "" : line.substr(3);
        }
    }
    return "";
}

// CPU quota in whole or partial CPUs; infinity when there is none.
double cgroupCpuQuota() {
    const double none = std::numeric_limits<double>::infinity();
    double best = none;
    // A limit may sit on any ancestor of the cgroup.
    for (std::string path = cgroupPath();; path.erase(path.find_last_of('/'))) {
        std::ifstream file("/sys/fs/cgroup" + path + "/cpu.max");
        std::string text;  // a number, or "max"
        double period = 0;
        file >> text >> period;
        const double quota = std::strtod(text.c_str(), nullptr);
        if (quota > 0 && period > 0) {
            best = std::min(best, quota / period);
        }
        if (path.find('/') == std::string::npos) {
            break;
        }
    }
    std::ifstream quota_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
    std::ifstream period_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
    double quota = 0;
    double period = 0;
    if (quota_file >> quota && period_file >> period && quota > 0 && period > 0) {
        best = std::min(best, quota / period);
    }
    return best;
}

uint64_t readNumber(const std::string &path) {
    std::ifstream file(path);
    uint64_t value = 0;
    return file >> value ? value : std::numeric_limits<uint64_t>::max();
}

}  // namespace

uint32_t availableCpus() {
    uint32_t cpus = std::max(1U, std::thread::hardware_concurrency());
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        cpus = static_cast<uint32_t>(CPU_COUNT(&set));
    }
    const double quota = cgroupCpuQuota();
    if (quota < cpus) {
        cpus = static_cast<uint32_t>(std::ceil(quota));
    }
    return std::max(1U, cpus);
}

uint64_t availableMemory() {
    uint64_t bytes = 0;
    std::ifstream file("/proc/meminfo");
    for (std::string line; std::getline(file, line);) {
        if (line.rfind("MemAvailable:", 0) == 0) {
            bytes = std::strtoull(line.c_str() + 13, nullptr, 10) * 1024;
        }
    }
    const std::string root = "/sys/fs/cgroup" + cgroupPath();
    const uint64_t limit = readNumber(root + "/memory.max");
    const uint64_t used = readNumber(root + "/memory.current");
    if (limit != std::numeric_limits<uint64_t>::max() && used <= limit) {
        bytes = std::min(bytes, limit - used);
    }
    return bytes;
}

}  // namespace q3
