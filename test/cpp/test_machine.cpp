// What the library believes of the machine: limits of control groups in a made-up /proc and /sys; reading from mapped
// files that others cut short; and that KV blocks lie in huge pages.
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <set>
#include <string>

#include "check.h"
#include "ops/cpu/kv.h"
#include "runtime/cgroup.h"
#include "runtime/cpu_info.h"
#include "runtime/readable.h"

namespace {

constexpr uint64_t kNone = UINT64_MAX;
constexpr uint64_t kGiB = uint64_t{1} << 30;

// A root folder for the files of one case.
class Root {
public:
    Root() {
        char folder[] = "/tmp/q3-machine-XXXXXX";
        path_ = mkdtemp(folder);
    }
    ~Root() {
        if (std::system(("rm -r " + path_).c_str()) != 0) {
            std::fprintf(stderr, "%s is left\n", path_.c_str());
        }
    }
    Root(const Root &) = delete;
    Root &operator=(const Root &) = delete;

    void write(const std::string &name, const std::string &text) const {
        for (size_t slash = name.find('/', 1); slash != std::string::npos; slash = name.find('/', slash + 1)) {
            mkdir((path_ + name.substr(0, slash)).c_str(), 0700);
        }
        std::ofstream(path_ + name) << text;
    }
    const std::string &path() const { return path_; }

private:
    std::string path_;
};

std::string number(uint64_t value) {
    return std::to_string(value) + "\n";
}

constexpr char kMountedV2[] = "24 1 0:22 / /proc rw shared:5 - proc proc rw\n"
                              "31 24 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

void testNoLimits() {
    const Root root;
    CHECK(q3::cgroupMemoryLeft(root.path()) == kNone && std::isinf(q3::cgroupCpus(root.path())));
    CHECK(q3::availableMemory(root.path()) == 0);
    root.write("/proc/meminfo", "MemTotal: 99 kB\nMemFree: 1 kB\nMemAvailable:      64 kB\n");
    CHECK(q3::availableMemory(root.path()) == 64 * 1024);
    root.write("/proc/self/mountinfo", kMountedV2);
    root.write("/proc/self/cgroup", "0::/\n");
    CHECK(q3::cgroupMemoryLeft(root.path()) == kNone && std::isinf(q3::cgroupCpus(root.path())));
    root.write("/sys/fs/cgroup/memory.max", "max\n");
    root.write("/sys/fs/cgroup/cpu.max", "max 100000\n");
    CHECK(q3::cgroupMemoryLeft(root.path()) == kNone && std::isinf(q3::cgroupCpus(root.path())));
}

void testVersion2() {
    const Root root;
    root.write("/proc/meminfo", "MemAvailable: 134217728 kB\n");
    root.write("/proc/self/mountinfo", kMountedV2);
    root.write("/proc/self/cgroup", "0::/a/b\n");
    const std::string inner = "/sys/fs/cgroup/a/b";
    root.write(inner + "/memory.max", number(4 * kGiB));
    root.write(inner + "/memory.current", number(4 * kGiB - 4096));
    CHECK(q3::cgroupMemoryLeft(root.path()) == 4096);
    // Nearly all of it is cached files, which go when memory is wanted.
    root.write(inner + "/memory.stat", "anon 5\nfile " + number(9 * kGiB) + "inactive_file " + number(2 * kGiB) +
                                           "active_file " + number(kGiB));
    CHECK(q3::cgroupMemoryLeft(root.path()) == 3 * kGiB + 4096);
    CHECK(q3::availableMemory(root.path()) == 3 * kGiB + 4096);
    // More cached than used, as when the numbers are of different moments.
    root.write(inner + "/memory.current", number(kGiB));
    CHECK(q3::cgroupMemoryLeft(root.path()) == 4 * kGiB);
    // An ancestor's limit counts, with the ancestor's use.
    root.write("/sys/fs/cgroup/a/memory.max", number(8 * kGiB));
    root.write("/sys/fs/cgroup/a/memory.current", number(7 * kGiB));
    CHECK(q3::cgroupMemoryLeft(root.path()) == kGiB);
    root.write("/sys/fs/cgroup/a/memory.current", number(9 * kGiB));  // above it, as after the limit was lowered
    CHECK(q3::cgroupMemoryLeft(root.path()) == 0 && q3::availableMemory(root.path()) == 1);
    root.write("/sys/fs/cgroup/a/memory.max", "max\n");
    root.write(inner + "/memory.high", number(2 * kGiB));
    CHECK(q3::cgroupMemoryLeft(root.path()) == 2 * kGiB);

    root.write(inner + "/cpu.max", "150000 100000\n");
    CHECK(q3::cgroupCpus(root.path()) == 1.5);
    root.write("/sys/fs/cgroup/cpu.max", "50000 100000\n");
    CHECK(q3::cgroupCpus(root.path()) == 0.5);
}

void testVersion1() {
    const Root root;
    root.write("/proc/self/mountinfo",
               "32 31 0:29 / /cg/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
               "35 31 0:32 / /cg/memory rw,relatime shared:17 master:3 - cgroup cgroup rw,memory\n");
    root.write("/proc/self/cgroup", "4:memory:/outer/inner\n3:cpuset:/\n2:cpu,cpuacct:/job\n1:name=systemd:/\n");
    root.write("/cg/memory/memory.limit_in_bytes", "9223372036854771712\n");
    root.write("/cg/memory/outer/inner/memory.limit_in_bytes", "9223372036854771712\n");
    CHECK(q3::cgroupMemoryLeft(root.path()) == kNone);
    root.write("/cg/memory/outer/memory.limit_in_bytes", number(2 * kGiB));
    root.write("/cg/memory/outer/memory.usage_in_bytes", number(kGiB + kGiB / 2));
    CHECK(q3::cgroupMemoryLeft(root.path()) == kGiB / 2);
    root.write("/cg/memory/outer/memory.stat",
               "cache 7\ninactive_file 0\ntotal_inactive_file " + number(kGiB) + "total_active_file 0\n");
    CHECK(q3::cgroupMemoryLeft(root.path()) == kGiB + kGiB / 2);
    root.write("/proc/meminfo", "MemAvailable: 134217728 kB\n");
    CHECK(q3::availableMemory(root.path()) == kGiB + kGiB / 2);
    // The limit of an ancestor that is out of sight.
    root.write("/cg/memory/outer/inner/memory.stat", "hierarchical_memory_limit " + number(kGiB));
    CHECK(q3::cgroupMemoryLeft(root.path()) == kGiB);

    root.write("/cg/cpu,cpuacct/job/cpu.cfs_quota_us", "-1\n");
    root.write("/cg/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n");
    CHECK(std::isinf(q3::cgroupCpus(root.path())));
    root.write("/cg/cpu,cpuacct/job/cpu.cfs_quota_us", "250000\n");
    CHECK(q3::cgroupCpus(root.path()) == 2.5);
}

// A container sees its own group as the root of the mount, but its path from the host's root, or with "..".
void testContainers() {
    for (const char *path : {"0::/docker/abc\n", "0::/../other\n", "0::/docker/abcdef\n"}) {
        const Root root;
        root.write("/proc/self/mountinfo", "31 24 0:27 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n");
        root.write("/proc/self/cgroup", path);
        root.write("/sys/fs/cgroup/memory.max", number(kGiB));
        CHECK(q3::cgroupMemoryLeft(root.path()) == kGiB);
    }
    const Root root;
    root.write("/proc/self/mountinfo", "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n");
    root.write("/proc/self/cgroup", "4:memory:/docker/abc/inner\n0::/\n");
    root.write("/sys/fs/cgroup/memory/inner/memory.limit_in_bytes", number(kGiB));
    CHECK(q3::cgroupMemoryLeft(root.path()) == kGiB);
}

// A mapping of a file that is cut short: what is left can be copied, what is gone is an error.
void testCopiesOfMappedFiles() {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    FILE *file = std::tmpfile();
    std::string content(3 * page, 'x');
    content[page - 1] = 'y';
    CHECK(std::fwrite(content.data(), 1, content.size(), file) == content.size() && std::fflush(file) == 0);
    void *mapping = mmap(nullptr, content.size(), PROT_READ, MAP_SHARED, fileno(file), 0);
    const auto *data = static_cast<const char *>(mapping);
    std::string copy(content.size(), ' ');
    CHECK(q3::copyReadable(copy.data(), data, content.size()) && copy == content);
    CHECK(q3::copyReadable(copy.data(), data + 1, 0));
    CHECK(ftruncate(fileno(file), static_cast<off_t>(page)) == 0);
    copy.assign(content.size(), ' ');
    CHECK(q3::copyReadable(copy.data(), data, page) && copy.compare(0, page, content, 0, page) == 0);
    CHECK(!q3::copyReadable(copy.data(), data, page + 1));
    CHECK(!q3::copyReadable(copy.data(), data + page - 1, 2));
    CHECK(!q3::copyReadable(copy.data(), data + page, 1));
    munmap(mapping, content.size());
    std::fclose(file);
}

// Nearly all of the blocks' memory is made of whole huge pages, so that the system can give them.
void testBlocksInHugePages() {
    constexpr size_t kHugePage = size_t{2} << 20;
    constexpr size_t kBlock = size_t{28} * 8 * 2 * 16 * 128 * 2;  // Qwen3-0.6B's, in bf16: 1.75 MiB
    constexpr size_t kBlocks = 256;
    q3::cpu::KvMemory memory;
    std::set<uintptr_t> blocks;
    for (size_t i = 0; i < kBlocks; ++i) {
        blocks.insert(reinterpret_cast<uintptr_t>(memory.allocate(kBlock)));
    }
    CHECK(blocks.size() == kBlocks);
    size_t huge = 0;
    for (auto block = blocks.begin(); block != blocks.end();) {
        const uintptr_t first = (*block + kHugePage - 1) / kHugePage * kHugePage;
        uintptr_t end = *block;
        for (; block != blocks.end() && *block == end; ++block) {  // neighbours
            end += kBlock;
        }
        huge += end > first ? (end - first) / kHugePage * kHugePage : 0;
    }
    CHECK(huge > kBlocks * kBlock / 20 * 19);
}

}  // namespace

int main() {
    testBlocksInHugePages();
    testCopiesOfMappedFiles();
    testNoLimits();
    testVersion2();
    testVersion1();
    testContainers();
    CHECK(q3::availableCpus() >= 1 && q3::availableMemory() > 1);
    return q3test::finish("test_machine");
}
