#include "ops/cpu/cpu_backend.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "ops/cpu/kernels/dispatch.h"
#include "ops/cpu/pack/pack_store.h"
#include "runtime/error.h"

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
    : config_(config), dt_weight_(options.dt_weight == QWEN3_DTYPE_DEFAULT ? options.dt_mat : options.dt_weight),
      dt_kv_(options.dt_kv != QWEN3_DTYPE_DEFAULT
                 ? options.dt_kv
                 : (dt_weight_ == QWEN3_DTYPE_F32 ? QWEN3_DTYPE_F32 : QWEN3_DTYPE_F16)),
      kv_type_(formatOf(dt_kv_)), kv_codes_(dt_kv_ == QWEN3_DTYPE_INT8),
      query_rows_(std::max(kQueryRows, config.group())),
      value_width_(static_cast<uint32_t>(AttentionPart::valueWidth(config.dh))), kernels_(selectKernels()),
      max_rows_(roundUp(config.max_step_tokens, kMaxTileRows)), rank_(options.rank), reduce_(options.reduce),
      pool_(static_cast<uint32_t>(options.nthreads)),
      attention_plan_({config.nkvh, config.group(), query_rows_ / config.group(), config.dctx, pool_.size()}) {
    if (query_rows_ > kMaxQueryRows) {
        fail(QWEN3_STATUS_BAD_PARAM, "nh / nkvh is %u: the CPU backend supports at most %u query heads per KV head",
             config.group(), kMaxQueryRows);
    }
    const uint32_t widest = std::max({config.d, config.nh * config.dh, config.di});
    if (takesCodes(formatOf(dt_weight_))) {
        const size_t groups = roundUp(widest, kGroup) / kGroup;
        const size_t rows = paddedQuantRows(max_rows_);
        quant_codes_ = HostBuffer(rows * groups * kGroup * sizeof(int16_t));
        quant_scales_ = HostBuffer(rows * groups * sizeof(float));
        quant_offsets_ = HostBuffer(rows * groups * sizeof(int32_t));
        quant_rows_ = {quant_codes_.as<char>(), quant_scales_.as<float>(), quant_offsets_.as<int32_t>(), 1, rows};
    }
    for (uint32_t i = 0; i < pool_.size(); ++i) {
        product_scratch_.emplace_back(linearScratchFloats() * sizeof(float));
        attention_scratch_.emplace_back(AttentionScratch::floats(query_rows_, config.dh) * sizeof(float));
    }
    attention_parts_ = HostBuffer(AttentionPart::floats(attention_plan_.maxPartRows(), config.dh) * sizeof(float));
}

int32_t CpuBackend::dtypeOf(const LinearSource &source) const {
    const bool mixed = dt_weight_ == QWEN3_DTYPE_INT4_MIXED;
    if (!mixed && dt_weight_ != QWEN3_DTYPE_INT4) {
        return dt_weight_;
    }
    const bool more = source.precision == Precision::kHigh || (mixed && source.precision == Precision::kRaised);
    return more ? QWEN3_DTYPE_INT8 : QWEN3_DTYPE_INT4;
}

std::unique_ptr<PackedLinear> CpuBackend::makeLinear(const LinearSource &source, PackedReader *saved) {
    const int32_t dtype = dtypeOf(source);
    if (saved != nullptr) {
        return loadPanels(source, dtype, source.gate_up, *saved, pool_, &arena_);
    }
    return packPanels(source, dtype, source.gate_up, pool_, &arena_);
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
        const HostMatrix matrix{values.data(), kRows, kColumns, kColumns, 1, values.data()};
        const LinearSource source{"fingerprint", 0, QWEN3_DTYPE_F32, {matrix}, 0, precision};
        for (const bool interleave : {false, true}) {
            save(*packPanels(source, dtypeOf(source), interleave, pool_), hash);
        }
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

void *CpuBackend::KvMemory::allocate(size_t bytes) {
    if (free_.empty()) {
        constexpr size_t kSlab = size_t{8} << 20;
        const size_t size = (bytes + 63) / 64 * 64;
        const size_t count = std::max<size_t>(1, std::min<size_t>(kSlab / size, 64));
        free_.reserve(free_.capacity() + count);  // so that release() never allocates
        slabs_.emplace_back(size * count);        // zeroed; untouched pages take no memory
        for (size_t i = count; i-- > 0;) {
            free_.push_back(slabs_.back().as<char>() + i * size);
        }
    }
    void *block = free_.back();
    free_.pop_back();
    return block;
}

void CpuBackend::KvMemory::release(void *block) noexcept {
    free_.push_back(block);
}

void CpuBackend::KvMemory::copy(void *dst, const void *src, size_t bytes) {
    std::memcpy(dst, src, bytes);
}

void CpuBackend::embed(Activation x, const PackedLinear &table) {
    pool_.parallelFor(plan_->ntok, kRowGrain, [&](uint32_t begin, uint32_t end, uint32_t) {
        for (uint32_t i = begin; i < end; ++i) {
            readRow(table, plan_->tokens[i], floats(x) + size_t{i} * x.width);
        }
    });
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

size_t CpuBackend::scratchBytes() const {
    size_t total = quant_codes_.bytes() + quant_scales_.bytes() + quant_offsets_.bytes() + attention_parts_.bytes();
    for (const auto *group : {&activations_, &product_scratch_, &attention_scratch_}) {
        for (const HostBuffer &buffer : *group) {
            total += buffer.bytes();
        }
    }
    return total;
}

std::string CpuBackend::description() const {
    return std::string("backend=cpu device=cpu:0 threads=") + std::to_string(pool_.size()) +
           " weights=" + dtypeName(dt_weight_) + " kv=" + dtypeName(dt_kv_);
}

}  // namespace q3::cpu
