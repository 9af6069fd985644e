// Where the ranks of a CPU model run: which CPUs share a memory controller, and who gets them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace q3 {

// CPU numbers of a kernel list such as "0-3,8,10-11"; empty when it is not one.
std::vector<uint32_t> parseCpuList(const std::string &text);

// The CPUs of each NUMA node that this thread may run on; nodes without any are left out. Empty when the files under
// `root` do not tell.
std::vector<std::vector<uint32_t>> numaNodes(const std::string &root = "/sys/devices/system/node");

// CPUs for each of nranks ranks: whole nodes when there are at least as many nodes as ranks, else a node shared by
// neighbouring ranks. Empty, which means anywhere, with fewer than two nodes or ranks.
std::vector<std::vector<uint32_t>> placeRanks(const std::vector<std::vector<uint32_t>> &nodes, uint32_t nranks);

// A rank's share of `total` threads: equal but for the remainder, and at least 1.
uint32_t threadsOfRank(uint32_t total, uint32_t rank, uint32_t nranks);

}  // namespace q3
