// The one interface between the forward pass (src/model/qwen3.cpp) and the backends (cpu/, infinicore/).
//
// Methods are fused nodes: as large as the CPU kernels want them; a backend without a fused kernel composes smaller
// ones behind the same method. Shapes are given per call with ntok = plan.ntok. A method enters this file only when
// the model needs it and every backend serves it. All methods throw q3::Error on failure; after a throw the backend
// must accept beginStep again. One thread at a time calls into an Ops.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ops/types.h"
#include "runtime/ranks.h"

namespace q3 {

// A packed linear layer [out, in]; its layout is the backend's secret.
class Linear {
public:
    virtual ~Linear() = default;
    virtual size_t bytes() const = 0;
};

// A packed vector (norm weights).
class Vector {
public:
    virtual ~Vector() = default;
    virtual size_t bytes() const = 0;
};

class PackedWriter;  // runtime/packed_file.h
class PackedReader;

// Where KV blocks live. A block holds kvBlockTokens() tokens of all layers; what is where inside is the backend's.
class BlockMemory {
public:
    virtual ~BlockMemory() = default;
    virtual void *allocate(size_t bytes) = 0;  // throws OUT_OF_MEMORY
    virtual void release(void *block) noexcept = 0;
    virtual void copy(void *dst, const void *src, size_t bytes) = 0;
};

class Ops {
public:
    virtual ~Ops() = default;

    // --- set-up; may allocate
    virtual std::unique_ptr<Linear> packLinear(const LinearSource &source) = 0;
    virtual std::unique_ptr<Linear> packGateUp(const LinearSource &gate_up) = 0;  // for linearSwiglu; parts gate, up
    virtual std::unique_ptr<Vector> packVector(const VectorSource &source) = 0;
    // Token embedding [dvoc, d]. heads: when it is tied to lm_head, the packed lm_head of every rank, whose rows follow
    // each other (rows may be read from there), else empty. borrow: source stays valid for the life of the result.
    virtual std::shared_ptr<Linear> packEmbedding(const LinearSource &source, const std::vector<const Linear *> &heads,
                                                  bool borrow) = 0;
    virtual bool sharesEmbedding() const = 0;  // whether one packed embedding can serve the ops of all ranks at once
    virtual Activation allocate(uint32_t rows, uint32_t width) = 0;  // lives as long as this Ops

    // --- saved packed weights. What saved bytes depend on; empty (as here) when this backend cannot save. load* make
    // what pack* made of the same shape when it was saved, touching no source data but a borrowed embedding's; they
    // throw PackedFileError. save may run beside steps.
    virtual std::string packedLayout() { return {}; }
    virtual void save(const Linear &linear, PackedWriter &out) const;
    virtual void save(const Vector &vector, PackedWriter &out) const;
    virtual std::unique_ptr<Linear> loadLinear(const LinearSource &shape, PackedReader &in);
    virtual std::unique_ptr<Linear> loadGateUp(const LinearSource &shape, PackedReader &in);
    virtual std::unique_ptr<Vector> loadVector(const VectorSource &shape, PackedReader &in);
    virtual std::shared_ptr<Linear> loadEmbedding(const LinearSource &shape, const std::vector<const Linear *> &heads,
                                                  bool borrow, PackedReader &in);

    // --- KV storage
    virtual uint32_t kvBlockTokens() const = 0;
    virtual size_t kvBlockBytes() const = 0;  // all layers, K and V
    virtual BlockMemory &kvMemory() = 0;
    // What the bytes of blocks depend on besides the model; they are in host memory then. Empty (as here): blocks
    // cannot be saved.
    virtual std::string kvLayout() const { return {}; }

    // --- one step
    virtual void beginStep(const StepPlan &plan) = 0;  // plan stays valid until the next beginStep
    // x[ntok, d] = table[tokens]
    virtual void embed(Activation x, const Linear &table) = 0;
    // x += delta (skipped when delta.data is null); h = x / sqrt(mean(x^2) + epsilon) * weight     [ntok, d]
    virtual void addRmsnorm(Activation h, Activation x, Activation delta, const Vector &weight, float epsilon) = 0;
    // out[ntok, out] = in[ntok, in] W^T + bias
    virtual void linear(Activation out, Activation in, const Linear &weight) = 0;
    // qkv[ntok, (nh + 2 nkvh) dh]: RMSNorm over each q and k head, NeoX rope on q and k in place (k may be left
    // stale), K and V appended to the plan's blocks. attention() with the same qkv and layer is the next node, and may
    // do any part of this.
    virtual void qkNormRopeStore(Activation qkv, const Vector &q_norm, const Vector &k_norm, float epsilon,
                                 uint32_t layer) = 0;
    // out[ntok, nh dh] = causal GQA attention of q (in qkv) over the plan's blocks, scale 1 / sqrt(dh)
    virtual void attention(Activation out, Activation qkv, uint32_t layer) = 0;
    // act[ntok, di] = silu(h W_gate^T) * (h W_up^T)
    virtual void linearSwiglu(Activation act, Activation h, const Linear &gate_up) = 0;
    // out[nrows, d] = rmsnorm((x + delta)[rows], weight); rows are indices < ntok in host memory
    virtual void gatherRmsnorm(Activation out, Activation x, Activation delta, const uint32_t *rows, uint32_t nrows,
                               const Vector &weight, float epsilon) = 0;
    // logits[nrows, out], float32 in host memory with rows ld apart, complete on return; in[nrows, d]
    virtual void readLogits(float *logits, size_t ld, Activation in, uint32_t nrows, const Linear &head) = 0;
    // x[ntok, width] = its sum over all ranks; every rank calls it at the same point. Nothing to do for one rank.
    // Throws RankStopped when another rank failed.
    virtual void allReduceSum(Activation x) = 0;

    // --- information
    virtual size_t scratchBytes() const = 0;
    virtual uint32_t threads() const = 0;
    virtual std::string description() const = 0;  // "backend=cpu isa=avx2 threads=2"
};

struct OpsOptions {
    int32_t backend;    // Qwen3Backend
    int32_t device;     // Qwen3Device
    int32_t device_id;  // set by makeOps
    int32_t nthreads;   // makeOps: of all ranks, 0 for as many as the process may use; backends get a number
    int32_t dt_weight;
    int32_t dt_kv;
    int32_t dt_mat;               // dtype of the checkpoint's matrices
    uint64_t kv_limit_bytes = 0;  // makeOps: of all caches on all ranks; backends get their rank's share; 0: not given
    // One of several ranks in one address space, whose sums go through `reduce`; null for a single rank.
    uint32_t rank = 0;
    HostAllReduce *reduce = nullptr;
};

// The backends of all ranks, made on the ranks' threads (factory.cpp): configs[rank] is the rank's part of the model;
// nthreads are divided. dev_ids [ranks]. `reduce` and `group` must outlive them. Throws DEVICE_TYPE_NOT_SUPPORTED and
// how to install InfiniCore when this build has none.
std::vector<std::unique_ptr<Ops>> makeOps(const std::vector<ModelConfig> &configs, const OpsOptions &options,
                                          const std::vector<int32_t> &dev_ids, RankGroup &group, HostAllReduce &reduce);

}  // namespace q3
