// Attention and the storing of keys and values for all sequences of a step at once, with newer InfiniCore's paged
// operators; and the step's indices on the device.
//
// The operators see the blocks of a layer as one tensor [blocks, nkvh, block tokens, dh] for keys and one for values:
// blocks have one distance because they come from one allocation, the arena of kv_memory_. A step with a block from
// outside of it goes sequence by sequence, as with 0.1.0.
#include <algorithm>
#include <cmath>

#include "ops/infinicore/infinicore_backend.h"

namespace q3::infinicore {
namespace {

constexpr uint64_t kArenaContexts = 4;  // full contexts that fit into an arena, unless the caller said otherwise

// Cuts a buffer into arrays, one after the other: the same places on the host and on the device.
class Cutter {
public:
    Cutter(const DeviceBuffer &host, const DeviceBuffer &device) : host_(host), device_(device) {}
    template <class T> T *next(size_t n, void *&on_device) {
        T *const array = reinterpret_cast<T *>(host_.data() + used_);
        on_device = device_.data() + used_;
        used_ += n * sizeof(T);
        return array;
    }
    size_t used() const { return used_; }

private:
    const DeviceBuffer &host_;
    const DeviceBuffer &device_;
    size_t used_ = 0;
};

}  // namespace

// Widest table of a step: the blocks of the longest sequence, rounded up so that descriptors serve many steps.
uint32_t InfinicoreBackend::tableWidth(uint32_t blocks) const {
    uint32_t width = 1;
    while (width < blocks) {
        width *= 2;
    }
    return width;
}

void InfinicoreBackend::makeIndices(uint64_t kv_limit_bytes) {
    if (!routes_.paged_attention && !routes_.embedding) {
        return;
    }
    const size_t max_tokens = config_.max_step_tokens;
    const size_t blocks = scoreStride(config_.dctx) / block_tokens_;
    const size_t tables = routes_.paged_attention ? max_tokens * tableWidth(static_cast<uint32_t>(blocks)) : 0;
    indices_ = DeviceBuffer(device_, max_tokens * sizeof(int64_t) + (tables + 3 * max_tokens + 1) * sizeof(int32_t));
    indices_host_ = DeviceBuffer(device_, indices_.bytes(), DeviceBuffer::Place::kHost);
    if (routes_.paged_attention) {
        const uint64_t usual = kArenaContexts * blocks * kvBlockBytes();
        kv_memory_.useArena(kvBlockBytes(), kv_limit_bytes != 0 ? kv_limit_bytes : usual);
    }
}

// The step's token ids, and where its sequences' blocks are, in one copy.
void InfinicoreBackend::uploadIndices(const StepPlan &plan) {
    step_ = {};
    if (!indices_) {
        return;
    }
    Cutter cutter(indices_host_, indices_);
    const size_t nseq = plan.sequences.size();
    uint32_t blocks = 1;
    step_.paged = routes_.paged_attention;
    step_.decode = plan.ntok == nseq;
    for (const Sequence &sequence : plan.sequences) {
        const uint32_t n = (sequence.pos + sequence.ntok + block_tokens_ - 1) / block_tokens_;
        blocks = std::max(blocks, n);
        for (uint32_t i = 0; step_.paged && i < n; ++i) {
            step_.paged = kv_memory_.index(sequence.kv_blocks[i]) >= 0;
        }
    }
    if (step_.paged) {
        step_.width = tableWidth(blocks);
        auto *const slots = cutter.next<int64_t>(plan.ntok, step_.slots);
        auto *const tables = cutter.next<int32_t>(nseq * step_.width, step_.tables);
        auto *const lengths = cutter.next<int32_t>(nseq, step_.lengths);
        auto *const starts = cutter.next<int32_t>(nseq + 1, step_.starts);
        std::fill_n(tables, nseq * step_.width, 0);
        for (size_t s = 0; s < nseq; ++s) {
            const Sequence &sequence = plan.sequences[s];
            lengths[s] = static_cast<int32_t>(sequence.pos + sequence.ntok);
            starts[s] = static_cast<int32_t>(sequence.row);
            for (uint32_t i = 0; i * block_tokens_ < static_cast<uint32_t>(lengths[s]); ++i) {
                tables[s * step_.width + i] = static_cast<int32_t>(kv_memory_.index(sequence.kv_blocks[i]));
            }
            for (uint32_t i = 0; i < sequence.ntok; ++i) {
                const uint32_t pos = sequence.pos + i;
                slots[sequence.row + i] =
                    static_cast<int64_t>(tables[s * step_.width + pos / block_tokens_]) * block_tokens_ +
                    pos % block_tokens_;
            }
        }
        starts[nseq] = static_cast<int32_t>(plan.ntok);
    }
    std::copy_n(plan.tokens, plan.ntok, cutter.next<uint32_t>(plan.ntok, step_.tokens));
    device_->uploadAsync(indices_.data(), indices_host_.data(), cutter.used());
}

// All keys of a layer, or all values.
Tensor InfinicoreBackend::arenaOf(uint32_t layer, bool values) const {
    const size_t dh = config_.dh;
    const size_t nkvh = config_.nkvh;
    const size_t offset = values ? layerBlockBytes() / 2 : 0;
    return tensor4d(kv_memory_.arena() + layer * layerBlockBytes() + offset, dtype_,
                    {kv_memory_.arenaBlocks(), nkvh, block_tokens_, dh},
                    {kvBlockBytes() / size_, block_tokens_ * dh, dh});
}

void InfinicoreBackend::storePaged(char *qkv, uint32_t layer) {
    const size_t width = config_.qkvWidth();
    const size_t dh = config_.dh;
    const size_t nkvh = config_.nkvh;
    const size_t ntok = plan().ntok;
    char *const k = qkv + config_.nh * dh * size_;
    operators_->pagedCaching(arenaOf(layer, false), arenaOf(layer, true), batch(k, dtype_, ntok, nkvh, dh, width, dh),
                             batch(k + nkvh * dh * size_, dtype_, ntok, nkvh, dh, width, dh),
                             vector1d(step_.slots, INFINI_DTYPE_I64, ntok));
}

void InfinicoreBackend::attendPaged(char *out, char *qkv, uint32_t layer) {
    const size_t ntok = plan().ntok;
    const size_t nseq = plan().sequences.size();
    const size_t nh = config_.nh;
    const size_t dh = config_.dh;
    const Tensor o = batch(out, dtype_, ntok, nh, dh, nh * dh, dh);
    const Tensor q = batch(qkv, dtype_, ntok, nh, dh, config_.qkvWidth(), dh);
    const Tensor k = arenaOf(layer, false);
    const Tensor v = arenaOf(layer, true);
    const Tensor tables = matrix(step_.tables, INFINI_DTYPE_I32, nseq, step_.width, step_.width);
    const Tensor lengths = vector1d(step_.lengths, INFINI_DTYPE_I32, nseq);
    const float scale = 1.0F / std::sqrt(static_cast<float>(dh));
    if (step_.decode) {
        operators_->pagedAttention(o, q, k, v, tables, lengths, scale);
    } else {
        const Tensor starts = vector1d(step_.starts, INFINI_DTYPE_I32, nseq + 1);
        operators_->pagedAttentionPrefill(o, q, k, v, tables, lengths, starts, scale);
    }
}

}  // namespace q3::infinicore
