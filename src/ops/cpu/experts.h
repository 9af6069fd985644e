// A layer of experts: routing, then the products of all rows with their experts as one loop over all threads each.
#pragma once

#include "ops/cpu/host_buffer.h"
#include "ops/cpu/kernels/kernels.h"
#include "ops/cpu/linear.h"
#include "ops/cpu/pack/pack.h"
#include "ops/routing.h"
#include "runtime/thread_pool.h"

namespace q3::cpu {

// One caller at a time. Nothing allocates after construction. A row's result does not depend on the rows beside it, nor
// on the number of threads.
class Experts {
public:
    // config: of a model with experts. The others must outlive the object.
    Experts(const ModelConfig &config, ThreadPool &pool, Linears &linears);

    // out[rows, d], h[rows, d]; Ops::experts says what.
    void run(float *out, const float *h, uint32_t rows, const CpuLinear &router, const CpuLinear &gate_up,
             const CpuLinear &down);

    size_t scratchBytes() const { return logits_.bytes() + act_.bytes() + product_.bytes(); }

private:
    ThreadPool &pool_;
    Linears &linears_;
    uint32_t d_, dm_;
    Routing routing_;
    HostBuffer logits_;   // [rows, nexperts]
    HostBuffer act_;      // [slots, dm]
    HostBuffer product_;  // [slots, d]
};

}  // namespace q3::cpu
