#include "model/split.h"

#include <algorithm>
#include <string>

#include "runtime/error.h"

namespace q3 {
namespace {

bool divides(const ModelConfig &c, uint32_t nranks) {
    return c.nh % nranks == 0 && (c.nkvh % nranks == 0 || nranks % c.nkvh == 0) && nranks <= std::min(c.di, c.dvoc) &&
           (c.nexperts == 0 || nranks <= c.dm);
}

// Where the share of `rank` begins; shares are equal to one unit.
uint32_t shareBegin(uint32_t total, uint32_t rank, uint32_t nranks, uint32_t unit) {
    while (unit > 1 && (total + unit - 1) / unit < nranks) {
        unit /= 2;
    }
    const uint64_t units = (total + unit - 1) / unit;
    return static_cast<uint32_t>(std::min<uint64_t>(total, units * rank / nranks * unit));
}

std::string allowedRanks(const ModelConfig &c) {
    std::string list;
    for (uint32_t n = 1; n <= c.nh && list.size() < 100; ++n) {
        if (divides(c, n)) {
            list += (list.empty() ? "" : ", ") + std::to_string(n);
        }
    }
    const size_t last = list.rfind(", ");
    return last == std::string::npos ? list : list.replace(last, 2, " or ");
}

}  // namespace

std::vector<RankSlice> splitModel(const ModelConfig &c, uint32_t nranks, uint32_t inner_unit) {
    if (!divides(c, nranks)) {
        fail(QWEN3_STATUS_BAD_PARAM, "ndev is %u: a model of nh %u and nkvh %u heads can be cut over %s devices",
             nranks, c.nh, c.nkvh, allowedRanks(c).c_str());
    }
    std::vector<RankSlice> slices(nranks);
    for (uint32_t rank = 0; rank < nranks; ++rank) {
        RankSlice &s = slices[rank];
        s.rank = rank;
        s.config = c;
        s.config.nh = c.nh / nranks;
        s.config.nkvh = std::max(1U, c.nkvh / nranks);
        s.first_head = rank * s.config.nh;
        s.first_kv_head = s.first_head / c.group();
        s.first_inner = shareBegin(c.di, rank, nranks, inner_unit);
        s.config.di = shareBegin(c.di, rank + 1, nranks, inner_unit) - s.first_inner;
        s.first_expert_inner = shareBegin(c.dm, rank, nranks, inner_unit);
        s.config.dm = shareBegin(c.dm, rank + 1, nranks, inner_unit) - s.first_expert_inner;
        s.first_vocab = shareBegin(c.dvoc, rank, nranks, kSplitUnit);
        s.config.dvoc = shareBegin(c.dvoc, rank + 1, nranks, kSplitUnit) - s.first_vocab;
    }
    return slices;
}

}  // namespace q3
