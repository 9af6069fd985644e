#include "ops/cpu/cpu_backend.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "ops/cpu/kernels/dispatch.h"
#include "ops/cpu/pack/affine.h"
#include "ops/cpu/pack/pack_store.h"
#include "runtime/error.h"
#include "runtime/readable.h"

namespace q3::cpu {
namespace {

const CpuLinear &asLinear(const PackedLinear &linear) {
    return static_cast<const CpuLinear &>(linear);
}
const CpuVector &asVector(const PackedNorm &vector) {
    return static_cast<const CpuVector &>(vector);
}
float *floats(Activation a) {
    return static_cast<float *>(a.data);
}

std::shared_ptr<PackedLinear> tiedTo(const std::vector<const PackedLinear *> &heads) {
    auto tied = std::make_shared<CpuTiedTable>();
    for (const PackedLinear *head : heads) {
        tied->heads.push_back(&asLinear(*head));
    }
    return tied;
}

// Elements of the KV cache unless the caller chooses: 16 bits where weights have no more, and those that attention
// multiplies.
DType defaultKv(DType weights, const Arithmetic &arithmetic) {
    if (arithmetic.attention == Activations::kBf16) {
        return DType::kBf16;
    }
    return weights == DType::kF32 ? DType::kF32 : DType::kF16;
}

// Rows of a cheap per-row node that are worth a fork.
constexpr uint32_t kRowGrain = 4;

}  // namespace

const char *isaName() noexcept {
    try {
        return selectKernels().name;
    } catch (...) {
        return "unsupported";
    }
}

std::unique_ptr<Backend> makeCpuBackend(const ModelConfig &config, const BackendOptions &options) {
    return std::make_unique<CpuBackend>(config, options);
}

CpuBackend::CpuBackend(const ModelConfig &config, const BackendOptions &options)
    : coded_(options.coded && options.dt_weight == DType::kDefault), as_given_(options.dt_weight == DType::kDefault),
      dt_weight_(options.dt_weight == DType::kDefault ? options.dt_mat : options.dt_weight), kernels_(selectKernels()),
      arithmetic_(resolveActivations(options.activations, dt_weight_, kernels_)),
      dt_kv_(options.dt_kv != DType::kDefault ? options.dt_kv : defaultKv(dt_weight_, arithmetic_)),
      rank_(options.rank), reduce_(options.reduce), pool_(static_cast<uint32_t>(options.nthreads)),
      experts_in_file_(options.experts_in_file),
      linears_(kernels_, pool_, roundUp(config.max_step_tokens, kMaxTileRows),
               std::max({config.d, config.nh * config.dh, config.di}), formatOf(dt_weight_), arithmetic_, coded_,
               {config.max_step_tokens * config.nused, std::max(config.d, config.dm), options.experts_in_file}),
      experts_(config.nexperts > 0 ? std::make_unique<Experts>(config, pool_, linears_) : nullptr),
      kv_(config, dt_kv_, kernels_, arithmetic_.attention),
      attention_(config, kernels_, kv_, pool_, arithmetic_.attention) {}

WeightFormat CpuBackend::formatFor(const LinearSource &source) const {
    if (source.precision == Precision::kExact) {
        return kF32;  // the one format that no activation is rounded for
    }
    if (as_given_) {
        return formatAsGiven(source);
    }
    const bool mixed = dt_weight_ == DType::kInt4Mixed;
    if (!mixed && dt_weight_ != DType::kInt4) {
        return formatOf(dt_weight_);
    }
    const bool high = source.precision == Precision::kHigh || source.precision == Precision::kInput;
    const bool more = high || (mixed && source.precision == Precision::kRaised);
    return more ? kQ8 : kQ4;
}

WeightFormat CpuBackend::floatFormat() const {
    return isFloatDType(dt_weight_) ? formatOf(dt_weight_) : kBf16;
}

std::unique_ptr<PackedLinear> CpuBackend::makeLinear(const LinearSource &source, PackedReader *saved) {
    std::unique_ptr<CpuLinear> first;
    std::unique_ptr<CpuLinear> *end = &first;
    for (const LinearSource &part : as_given_ ? splitByFormat(source) : std::vector<LinearSource>{source}) {
        const WeightFormat format = formatFor(part);
        formats_[format] = true;
        *end = saved != nullptr ? loadPanels(part, format, *saved, pool_, &arena_, experts_in_file_ && part.experts > 0)
                                : packPanels(part, format, pool_, &arena_);
        const bool takes = takesCodes(format) && kernels_.quantPanels(format, k16Bits) != nullptr;
        linears_.reserve(**end);
        (*end)->fine_codes = takes && arithmetic_.fine_input && part.precision == Precision::kInput;
        end = &(*end)->next;
    }
    return first;
}

std::unique_ptr<PackedNorm> CpuBackend::makeNorm(const NormSource &source, PackedReader *saved) {
    return saved != nullptr ? loadFloats(source, *saved, pool_) : packFloats(source);
}

std::shared_ptr<PackedLinear> CpuBackend::makeEmbedding(const EmbeddingSource &source, PackedReader *saved) {
    if (!source.heads.empty()) {
        return tiedTo(source.heads);
    }
    return saved != nullptr ? loadTable(source.table, source.borrow, *saved, pool_)
                            : packTable(source.table, source.borrow, pool_);
}

// The layout's fingerprint is the hash of small layers of every kind, packed and saved: a change of a format or of the
// rounding cannot forget to change it.
std::string CpuBackend::packedLayout() {
    constexpr uint32_t kRows = 40;
    constexpr uint32_t kColumns = 70;
    std::vector<float> values(size_t{kRows} * kColumns);
    uint32_t state = 1;
    for (float &value : values) {
        state = state * 1664525U + 1013904223U;
        value = std::ldexp(static_cast<float>(state >> 8) - 0x1p23F, -24 - static_cast<int>(state >> 4 & 15U));
    }
    HashWriter hash;
    for (const Precision precision : {Precision::kPlain, Precision::kRaised, Precision::kHigh}) {
        const HostMatrix matrix{values.data(), DType::kF32, kRows, kColumns, kColumns, 1, values.data(), DType::kF32};
        for (const bool gate_up : {false, true}) {
            const LinearSource source{"fingerprint", 0, {matrix}, 0, precision, gate_up};
            save(*packPanels(source, as_given_ ? floatFormat() : formatFor(source), pool_), hash);
        }
    }
    if (coded_) {
        forCodedSamples([&](const LinearSource &source) { save(*packPanels(source, formatFor(source), pool_), hash); });
    }
    char text[64];
    std::snprintf(text, sizeof text, "cpu weights=%s fingerprint=%016llx", dtypeName(dt_weight_),
                  static_cast<unsigned long long>(hash.hash()));
    return text;
}

void CpuBackend::save(const PackedLinear &linear, PackedWriter &out) const {
    saveLinear(linear, out);
}

void CpuBackend::save(const PackedNorm &norm, PackedWriter &out) const {
    saveVector(asVector(norm), out);
}

Activation CpuBackend::allocate(uint32_t rows, uint32_t width) {
    activations_.emplace_back(size_t{rows} * width * sizeof(float));
    return {activations_.back().data(), width};
}

void CpuBackend::embed(Activation x, const PackedLinear &table) {
    std::atomic<bool> readable{true};
    pool_.parallelFor(plan_->ntok, kRowGrain, [&](uint32_t begin, uint32_t end, uint32_t) {
        for (uint32_t i = begin; i < end; ++i) {
            if (!readRow(table, plan_->tokens[i], floats(x) + size_t{i} * x.width)) {
                readable.store(false, std::memory_order_relaxed);
            }
        }
    });
    if (!readable.load()) {
        failUnreadable("the borrowed input_embd");
    }
}

void CpuBackend::addRmsnorm(Activation h, Activation x, Activation delta, const PackedNorm &weight, float epsilon) {
    const uint32_t d = x.width;
    pool_.parallelFor(plan_->ntok, kRowGrain, [&](uint32_t begin, uint32_t end, uint32_t) {
        for (uint32_t i = begin; i < end; ++i) {
            float *row = floats(x) + size_t{i} * d;
            if (delta.data != nullptr) {
                kernels_.add(row, floats(delta) + size_t{i} * d, d);
            }
            kernels_.rmsnorm(floats(h) + size_t{i} * d, row, asVector(weight).data(), d, epsilon);
        }
    });
}

void CpuBackend::gatherRmsnorm(Activation out, Activation x, Activation delta, const uint32_t *rows, uint32_t nrows,
                               const PackedNorm &weight, float epsilon) {
    const uint32_t d = x.width;
    pool_.parallelFor(nrows, kRowGrain, [&](uint32_t begin, uint32_t end, uint32_t) {
        for (uint32_t i = begin; i < end; ++i) {
            float *row = floats(out) + size_t{i} * d;
            std::memcpy(row, floats(x) + size_t{rows[i]} * d, d * sizeof(float));
            if (delta.data != nullptr) {
                kernels_.add(row, floats(delta) + size_t{rows[i]} * d, d);
            }
            kernels_.rmsnorm(row, row, asVector(weight).data(), d, epsilon);
        }
    });
}

void CpuBackend::allReduceSum(Activation x) {
    if (reduce_ == nullptr) {
        return;
    }
    constexpr uint32_t kBlock = 4096;  // floats per work item: 16 KiB of each rank's buffer
    const uint32_t nranks = reduce_->size();
    reduce_->run(rank_, x.data, size_t{plan_->ntok} * x.width, [&](void *const *buffers, size_t begin, size_t end) {
        const auto blocks = static_cast<uint32_t>((end - begin + kBlock - 1) / kBlock);
        pool_.parallelFor(blocks, 1, [&](uint32_t first, uint32_t last, uint32_t) {
            for (uint32_t block = first; block < last; ++block) {
                const size_t at = begin + size_t{block} * kBlock;
                const auto n = static_cast<uint32_t>(std::min<size_t>(kBlock, end - at));
                float *sum = static_cast<float *>(buffers[0]) + at;
                for (uint32_t rank = 1; rank < nranks; ++rank) {
                    kernels_.add(sum, static_cast<const float *>(buffers[rank]) + at, n);
                }
                for (uint32_t rank = 1; rank < nranks; ++rank) {
                    std::memcpy(static_cast<float *>(buffers[rank]) + at, sum, n * sizeof(float));
                }
            }
        });
    });
}

void CpuBackend::linear(Activation out, Activation in, const PackedLinear &weight) {
    linears_.multiply(floats(out), out.width, floats(in), plan_->ntok, asLinear(weight));
}

void CpuBackend::linearSwiglu(Activation act, Activation h, const PackedLinear &gate_up) {
    linears_.multiplySwiglu(floats(act), act.width, floats(h), plan_->ntok, asLinear(gate_up));
}

void CpuBackend::experts(Activation out, Activation h, const PackedLinear &router, const PackedLinear &gate_up,
                         const PackedLinear &down) {
    experts_->run(floats(out), floats(h), plan_->ntok, asLinear(router), asLinear(gate_up), asLinear(down));
}

void CpuBackend::readLogits(float *logits, size_t ld, Activation in, uint32_t nrows, const PackedLinear &head) {
    linears_.multiply(logits, ld, floats(in), nrows, asLinear(head));
}

void CpuBackend::readRows(float *out, Activation in, uint32_t nrows) {
    std::copy_n(floats(in), size_t{nrows} * in.width, out);
}

void CpuBackend::qkNormRopeStore(Activation qkv, const PackedNorm &q_norm, const PackedNorm &k_norm, float epsilon,
                                 uint32_t layer) {
    attention_.prepareHeads(qkv, asVector(q_norm).data(), asVector(k_norm).data(), epsilon, layer);
}

void CpuBackend::attention(Activation out, Activation qkv, uint32_t layer) {
    attention_.attend(out, qkv, layer);
}

void CpuBackend::forEach(uint32_t count, const std::function<void(uint32_t i, uint32_t thread)> &body) {
    pool_.parallelFor(count, 1, [&](uint32_t begin, uint32_t end, uint32_t thread) {
        for (uint32_t i = begin; i < end; ++i) {
            body(i, thread);
        }
    });
}

size_t CpuBackend::scratchBytes() const {
    size_t total = linears_.scratchBytes() + attention_.scratchBytes() + (experts_ ? experts_->scratchBytes() : 0);
    for (const HostBuffer &buffer : activations_) {
        total += buffer.bytes();
    }
    return total;
}

std::string CpuBackend::description() const {
    return std::string("backend=cpu device=cpu:0 threads=") + std::to_string(pool_.size()) +
           " weights=" + dtypeName(dt_weight_) + " kv=" + dtypeName(dt_kv_) +
           " activations=" + activationsName(arithmetic_.of[formatOf(dt_weight_)]);
}

}  // namespace q3::cpu
