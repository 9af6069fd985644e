// One rank's share of a device: packs weights, owns the activations and the memory of KV blocks, and gives the Ops that
// run steps on them. What implements Backend is in cpu/ and infinicore/; factory.h chooses.
//
// All methods throw q3::Error on failure. One thread at a time calls into a Backend and its Ops, but for save, which
// may run beside steps.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "ops/block_memory.h"
#include "ops/ops.h"
#include "ops/types.h"
#include "ops/weights.h"

namespace q3 {

class HostAllReduce;  // runtime/ranks.h
class PackedReader;   // runtime/packed_file.h
class PackedWriter;

class Backend {
public:
    virtual ~Backend() = default;

    virtual Ops &ops() = 0;  // lives as long as this Backend

    // --- set-up; may allocate
    virtual Activation allocate(uint32_t rows, uint32_t width) = 0;  // lives as long as this Backend
    // Each packs its source, or, when `saved` is not null, reads from there what was packed from a source of the same
    // shape and then saved. Reading touches no data of the source but a borrowed embedding's, and throws
    // PackedFileError.
    virtual std::unique_ptr<PackedLinear> makeLinear(const LinearSource &source, PackedReader *saved) = 0;
    virtual std::unique_ptr<PackedNorm> makeNorm(const NormSource &source, PackedReader *saved) = 0;
    virtual std::shared_ptr<PackedLinear> makeEmbedding(const EmbeddingSource &source, PackedReader *saved) = 0;
    // Whether one packed embedding can serve the backends of all ranks at once.
    virtual bool sharesEmbedding() const = 0;

    // --- saving packed weights
    // What the saved bytes depend on; empty (as here) when this backend cannot save. Then save throws NOT_IMPLEMENTED,
    // and nobody passes `saved`.
    virtual std::string packedLayout() { return {}; }
    virtual void save(const PackedLinear &linear, PackedWriter &out) const;
    virtual void save(const PackedNorm &norm, PackedWriter &out) const;

    // --- KV storage
    virtual uint32_t kvBlockTokens() const = 0;
    virtual size_t kvBlockBytes() const = 0;  // all layers, K and V
    virtual BlockMemory &kvMemory() = 0;
    // What the bytes of blocks depend on besides the model; they are in host memory then. Empty (as here) when blocks
    // cannot be saved.
    virtual std::string kvLayout() const { return {}; }
    // A name that backends share which compute the same bits from the same weights; where kvLayout() is not empty.
    virtual std::string numerics() const { return {}; }

    // --- work of the engine's own on the host
    // Calls body(i, thread) once for each i < count, thread < threads(): side by side on the threads that this backend
    // has, or (as here) one after the other where it has none. Between steps; body must not throw.
    virtual void forEach(uint32_t count, const std::function<void(uint32_t i, uint32_t thread)> &body);

    // --- information
    virtual size_t scratchBytes() const = 0;
    virtual uint32_t threads() const = 0;
    virtual std::string description() const = 0;  // "backend=cpu device=cpu:0 threads=2"
};

// What a backend is made with, besides the rank's part of the model.
struct BackendOptions {
    BackendKind backend;
    DeviceType device;
    int32_t device_id;  // set by makeBackends
    int32_t nthreads;   // makeBackends: of all ranks, 0 for as many as the process may use; backends get a number
    DType dt_weight;
    DType dt_kv;
    DType dt_mat;                                  // the dtype that most of the checkpoint's matrices have
    bool coded = false;                            // whether some are codes (HostMatrix::stored)
    Activations activations = Activations::kAuto;  // of the CPU backend
    bool experts_in_file = false;  // the CPU backend leaves experts in the file that it reads packed weights from
    // makeBackends: of all caches on all ranks; backends get their rank's share; 0: not given
    uint64_t kv_limit_bytes = 0;
    // One of several ranks in one address space, whose sums go through `reduce`; null for a single rank.
    uint32_t rank = 0;
    HostAllReduce *reduce = nullptr;
};

}  // namespace q3
