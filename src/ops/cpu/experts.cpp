#include "ops/cpu/experts.h"

#include <algorithm>

namespace q3::cpu {
namespace {

constexpr uint32_t kRouteGrain = 4;     // rows per claim
constexpr uint32_t kSumColumns = 1024;  // columns of a row that are summed at a time

}  // namespace

Experts::Experts(const ModelConfig &config, ThreadPool &pool, Linears &linears)
    : pool_(pool), linears_(linears), d_(config.d), dm_(config.dm), routing_(config),
      logits_(size_t{config.max_step_tokens} * config.nexperts * sizeof(float)),
      act_(size_t{config.max_step_tokens} * config.nused * config.dm * sizeof(float)),
      product_(size_t{config.max_step_tokens} * config.nused * config.d * sizeof(float)) {}

void Experts::run(float *out, const float *h, uint32_t rows, const CpuLinear &router, const CpuLinear &gate_up,
                  const CpuLinear &down) {
    auto *logits = logits_.as<float>();
    auto *act = act_.as<float>();
    auto *product = product_.as<float>();
    const uint32_t nexperts = routing_.nexperts();
    linears_.multiply(logits, nexperts, h, rows, router);
    pool_.parallelFor(rows, kRouteGrain, [&](uint32_t begin, uint32_t end, uint32_t) {
        for (uint32_t row = begin; row < end; ++row) {
            routing_.choose(row, logits + size_t{row} * nexperts);
        }
    });
    routing_.sort(rows);
    linears_.fetch(routing_, gate_up);
    linears_.fetch(routing_, down);
    linears_.multiplyExpertsSwiglu(act, dm_, h, false, routing_, gate_up);
    linears_.multiplyExperts(product, d_, act, true, routing_, down);
    const uint32_t blocks = (d_ + kSumColumns - 1) / kSumColumns;
    pool_.parallelFor(rows * blocks, blocks == 1 ? kRouteGrain : 1, [&](uint32_t begin, uint32_t end, uint32_t) {
        for (uint32_t item = begin; item < end; ++item) {
            const uint32_t row = item / blocks;
            const uint32_t first = item % blocks * kSumColumns;
            const uint32_t last = std::min(d_, first + kSumColumns);
            float *sum = out + size_t{row} * d_;
            std::fill(sum + first, sum + last, 0.0F);
            for (uint32_t i = 0; i < routing_.nused(); ++i) {
                const float weight = routing_.weightsOf(row)[i];
                const float *term = product + size_t{routing_.slotsOf(row)[i]} * d_;
                for (uint32_t j = first; j < last; ++j) {
                    sum[j] += weight * term[j];
                }
            }
        }
    });
}

}  // namespace q3::cpu
