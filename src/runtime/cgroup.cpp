#include "runtime/cgroup.h"

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <limits>
#include <vector>

#include "runtime/small_file.h"

namespace q3 {
namespace {

constexpr uint64_t kUnlimited = std::numeric_limits<uint64_t>::max();

std::vector<std::string> split(const std::string &text, char separator) {
    std::vector<std::string> parts;
    size_t begin = 0;
    for (size_t end = text.find(separator); end != std::string::npos; end = text.find(separator, begin)) {
        parts.push_back(text.substr(begin, end - begin));
        begin = end + 1;
    }
    parts.push_back(text.substr(begin));
    return parts;
}

bool contains(const std::vector<std::string> &items, const std::string &item) {
    return std::find(items.begin(), items.end(), item) != items.end();
}

// Where a hierarchy is mounted, and which of its groups stands at the mount point.
struct Mount {
    std::string point;
    std::string group;
};

// Finds the mount of a controller of version 1, or, with an empty name, that of version 2. The point is empty if there
// is none.
Mount mountOf(const std::string &root, const std::string &controller) {
    Mount found;
    // id parent device group point options [tags...] - type source options-of-the-type
    for (const std::string &line : split(readSmallFile(root + "/proc/self/mountinfo"), '\n')) {
        const std::vector<std::string> fields = split(line, ' ');
        const auto dash = std::find(fields.begin(), fields.end(), "-");
        if (fields.size() < 5 || fields.end() - dash < 4) {
            continue;
        }
        const bool right = controller.empty() ? dash[1] == "cgroup2"
                                              : dash[1] == "cgroup" && contains(split(dash[3], ','), controller);
        if (right) {
            found = {fields[4], fields[3] == "/" ? "" : fields[3]};
        }
    }
    return found;
}

// The process's group of a controller; "" for the root of the hierarchy or when it is in none.
std::string groupOf(const std::string &root, const std::string &controller) {
    // number:controllers:path, of version 2 without controllers
    for (const std::string &line : split(readSmallFile(root + "/proc/self/cgroup"), '\n')) {
        const std::vector<std::string> fields = split(line, ':');
        if (fields.size() >= 3 && contains(split(fields[1], ','), controller)) {
            const std::string path = line.substr(fields[0].size() + fields[1].size() + 2);
            return path == "/" ? "" : path;
        }
    }
    return "";
}

// Calls visit with the folder of the process's group and of each of its ancestors.
void eachGroup(const std::string &root, const std::string &controller,
               const std::function<void(const std::string &)> &visit) {
    const Mount mount = mountOf(root, controller);
    if (mount.point.empty()) {
        return;
    }
    std::string path = groupOf(root, controller);
    // A container often sees only its own group, mounted as if it were the root, but the path from the real one.
    const bool below = path.compare(0, mount.group.size(), mount.group) == 0;
    path = below ? path.substr(mount.group.size()) : "";
    path = path.empty() || path[0] == '/' ? path : "";
    const std::string top = root + mount.point;
    for (; !path.empty() && path.find("..") == std::string::npos; path.erase(path.find_last_of('/'))) {
        visit(top + path);
    }
    visit(top);
}

// The number in a file; `fallback` for "max", without the file, and for negative numbers, which mean no limit.
uint64_t number(const std::string &path, uint64_t fallback) {
    const std::string text = readSmallFile(path);
    const bool digit = !text.empty() && text[0] >= '0' && text[0] <= '9';
    return digit ? std::strtoull(text.c_str(), nullptr, 10) : fallback;
}

// The sum of some lines "name value" of a file.
uint64_t sumOf(const std::string &path, const std::vector<std::string> &names) {
    uint64_t sum = 0;
    for (const std::string &line : split(readSmallFile(path), '\n')) {
        const size_t space = line.find(' ');
        if (space != std::string::npos && contains(names, line.substr(0, space))) {
            sum += std::strtoull(line.c_str() + space, nullptr, 10);
        }
    }
    return sum;
}

uint64_t left(uint64_t limit, uint64_t used, uint64_t cached) {
    if (limit == kUnlimited) {
        return kUnlimited;
    }
    const uint64_t kept = used - std::min(used, cached);
    return limit - std::min(limit, kept);
}

}  // namespace

double cgroupCpus(const std::string &root) {
    double best = std::numeric_limits<double>::infinity();
    const auto note = [&](uint64_t quota, uint64_t period) {
        if (quota > 0 && quota != kUnlimited && period > 0) {
            best = std::min(best, static_cast<double>(quota) / static_cast<double>(period));
        }
    };
    eachGroup(root, "", [&](const std::string &folder) {
        const std::string text = readSmallFile(folder + "/cpu.max");  // "quota period", or "max period"
        const size_t space = text.find(' ');
        if (space != std::string::npos) {
            note(std::strtoull(text.c_str(), nullptr, 10), std::strtoull(text.c_str() + space, nullptr, 10));
        }
    });
    eachGroup(root, "cpu", [&](const std::string &folder) {
        note(number(folder + "/cpu.cfs_quota_us", kUnlimited), number(folder + "/cpu.cfs_period_us", 0));
    });
    return best;
}

uint64_t cgroupMemoryLeft(const std::string &root) {
    uint64_t best = kUnlimited;
    eachGroup(root, "", [&](const std::string &folder) {
        // Above memory.high a process is slowed down until it gives memory back.
        const uint64_t limit =
            std::min(number(folder + "/memory.max", kUnlimited), number(folder + "/memory.high", kUnlimited));
        const uint64_t cached = sumOf(folder + "/memory.stat", {"active_file", "inactive_file"});
        best = std::min(best, left(limit, number(folder + "/memory.current", 0), cached));
    });
    eachGroup(root, "memory", [&](const std::string &folder) {
        // No limit is the largest multiple of a page that 63 bits hold.
        constexpr uint64_t kNone = uint64_t{1} << 62;
        const uint64_t own = number(folder + "/memory.limit_in_bytes", kUnlimited);
        // This is the least limit of the group and all its ancestors, even of those that a container does not see.
        const uint64_t all = sumOf(folder + "/memory.stat", {"hierarchical_memory_limit"});
        const uint64_t limit = all == 0 ? own : std::min(own, all);
        const uint64_t cached = sumOf(folder + "/memory.stat", {"total_active_file", "total_inactive_file"});
        const uint64_t used = number(folder + "/memory.usage_in_bytes", 0);
        best = std::min(best, left(limit >= kNone ? kUnlimited : limit, used, cached));
    });
    return best;
}

}  // namespace q3
