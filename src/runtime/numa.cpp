#include "runtime/numa.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <sstream>

namespace q3 {
namespace {

constexpr uint32_t kMaxCpus = 1U << 16;

std::string readLine(const std::string &path) {
    std::ifstream file(path);
    std::string line;
    std::getline(file, line);
    return line;
}

bool mayRunOn(uint32_t cpu) {
    cpu_set_t set;
    // When the kernel gives no answer, or the set has no bit for the CPU, placing the thread will show whether it may
    // run.
    return sched_getaffinity(0, sizeof set, &set) != 0 || cpu >= CPU_SETSIZE || CPU_ISSET(cpu, &set);
}

}  // namespace

std::vector<uint32_t> parseCpuList(const std::string &text) {
    std::vector<uint32_t> cpus;
    std::istringstream input(text);
    for (std::string item; std::getline(input, item, ',');) {
        std::istringstream range(item);
        uint32_t first = 0;
        uint32_t last = 0;
        char dash = '-';
        if (!(range >> first)) {
            return {};
        }
        last = first;
        if (range >> dash && (dash != '-' || !(range >> last))) {
            return {};
        }
        std::string rest;
        if (range >> rest || last < first || last >= kMaxCpus) {
            return {};
        }
        for (uint32_t cpu = first; cpu <= last; ++cpu) {
            cpus.push_back(cpu);
        }
    }
    return cpus;
}

std::vector<std::vector<uint32_t>> numaNodes(const std::string &root) {
    std::vector<std::vector<uint32_t>> nodes;
    for (const uint32_t node : parseCpuList(readLine(root + "/online"))) {
        std::vector<uint32_t> cpus = parseCpuList(readLine(root + "/node" + std::to_string(node) + "/cpulist"));
        cpus.erase(std::remove_if(cpus.begin(), cpus.end(), [](uint32_t cpu) { return !mayRunOn(cpu); }), cpus.end());
        if (!cpus.empty()) {
            nodes.push_back(std::move(cpus));
        }
    }
    return nodes;
}

std::vector<std::vector<uint32_t>> placeRanks(const std::vector<std::vector<uint32_t>> &nodes, uint32_t nranks) {
    const auto nnodes = static_cast<uint32_t>(nodes.size());
    if (nnodes < 2 || nranks < 2) {
        return {};
    }
    std::vector<std::vector<uint32_t>> places(nranks);
    for (uint32_t rank = 0; rank < nranks; ++rank) {
        const uint32_t first = rank * nnodes / nranks;
        const uint32_t end = std::max(first + 1, (rank + 1) * nnodes / nranks);
        for (uint32_t node = first; node < end; ++node) {
            places[rank].insert(places[rank].end(), nodes[node].begin(), nodes[node].end());
        }
    }
    return places;
}

uint32_t threadsOfRank(uint32_t total, uint32_t rank, uint32_t nranks) {
    return std::max(1U, total / nranks + (rank < total % nranks ? 1U : 0U));
}

}  // namespace q3
