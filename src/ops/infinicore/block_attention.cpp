// Attention over KV blocks with InfiniCore's gemm, causal softmax and rearrange.
//
// A block holds, layer after layer, keys [nkvh, T, dh] and values [nkvh, T, dh] of T = kvBlockTokens() tokens. The
// query rows of a sequence are handled in ranges of at most query_rows_, cut so that their scores fit into scores_:
// memory grows with the context, not with its square. Scores are of type A, as the operators require.
#include <algorithm>
#include <cmath>

#include "ops/infinicore/infinicore_backend.h"

namespace q3::infinicore {

// Whole blocks, so that the gemm descriptors of full blocks change once per block and not with every token.
size_t InfinicoreBackend::scoreStride(uint32_t total) const {
    return (static_cast<size_t>(total) + block_tokens_ - 1) / block_tokens_ * block_tokens_;
}

// How many of the next `remaining` query rows, from position pos on, to handle at a time.
uint32_t InfinicoreBackend::fitRows(uint32_t pos, uint32_t remaining) const {
    const uint32_t rows = std::min(remaining, query_rows_);
    const size_t fit = score_elements_ / (config_.nh * scoreStride(pos + rows));
    return static_cast<uint32_t>(std::clamp<size_t>(fit, 1, rows));
}

// Keys of a layer in a block of the sequence; the values follow.
char *InfinicoreBackend::keys(const Sequence &sequence, uint32_t block, uint32_t layer) const {
    return static_cast<char *>(sequence.kv_blocks[block]) + layer * layerBlockBytes();
}

void InfinicoreBackend::qkNormRopeStore(Activation qkv, const PackedNorm &q_norm, const PackedNorm &k_norm,
                                        float epsilon, uint32_t layer) {
    if (replayed_) {
        return;
    }
    DeviceScope scope(*device_);
    runBranch();
    const uint32_t ntok = plan().ntok;
    const uint32_t dh = config_.dh;
    const uint32_t half = dh / 2;
    const Tensor positions = vector1d(positions_.data(), INFINI_DTYPE_I32, ntok);  // row i of the step's own tables
    const Tensor sin = matrix(rope_.data(), dtype_, ntok, half, half);
    const Tensor cos = matrix(rope_.data() + static_cast<size_t>(ntok) * half * size_, dtype_, ntok, half, half);
    const auto heads = [&](uint32_t first, uint32_t n) {
        return batch(at(qkv, 0, static_cast<size_t>(first) * dh), dtype_, ntok, n, dh, qkv.width, dh);
    };
    const Tensor q = heads(0, config_.nh);
    const Tensor k = heads(config_.nh, config_.nkvh);
    operators_->rmsNorm(q, q, norm(static_cast<const DeviceNorm &>(q_norm)), epsilon);
    operators_->rmsNorm(k, k, norm(static_cast<const DeviceNorm &>(k_norm)), epsilon);
    operators_->rope(heads(0, config_.nh + config_.nkvh), positions, sin, cos, routes_.rope_neox);
    step_.paged ? storePaged(at(qkv), layer) : storeKv(at(qkv), layer);
}

// One rearrange per sequence and block stores keys and values together, because values follow keys in a block as in
// qkv.
void InfinicoreBackend::storeKv(char *qkv, uint32_t layer) {
    const size_t width = config_.qkvWidth();
    const size_t dh = config_.dh;
    const size_t heads = 2 * static_cast<size_t>(config_.nkvh);
    for (const Sequence &sequence : plan().sequences) {
        for (uint32_t i = 0, n; i < sequence.ntok; i += n) {
            const uint32_t pos = sequence.pos + i;
            const uint32_t offset = pos % block_tokens_;
            n = std::min(sequence.ntok - i, block_tokens_ - offset);
            char *const src = qkv + ((sequence.row + i) * width + config_.nh * dh) * size_;
            char *const dst = keys(sequence, pos / block_tokens_, layer) + offset * dh * size_;
            operators_->rearrange(batch(dst, dtype_, heads, n, dh, block_tokens_ * dh, dh),
                                  batch(src, dtype_, heads, n, dh, dh, width));
        }
    }
}

void InfinicoreBackend::attention(Activation out, Activation qkv, uint32_t layer) {
    if (replayed_) {
        return;
    }
    DeviceScope scope(*device_);
    if (step_.paged) {
        attendPaged(at(out), at(qkv), layer);
        return;
    }
    attendSingles(out, qkv, layer);
    for (const Sequence &sequence : plan().sequences) {
        if (sequence.ntok == 1) {
            continue;
        }
        for (uint32_t first = 0, rows; first < sequence.ntok; first += rows) {
            rows = fitRows(sequence.pos + first, sequence.ntok - first);
            const uint32_t total = sequence.pos + first + rows;
            attendRows(at(out, sequence.row + first), at(qkv, sequence.row + first),
                       {sequence, first, rows, total, scoreStride(total), scores_.data()}, layer);
        }
    }
}

// Computes sequences of one row each. Those of equal length share a softmax, as far as their scores fit.
void InfinicoreBackend::attendSingles(Activation out, Activation qkv, uint32_t layer) {
    const size_t nh = config_.nh;
    const size_t nkvh = config_.nkvh;
    const size_t dh = config_.dh;
    const size_t group = config_.group();
    const auto heads = [&](char *data) { return batch(data, dtype_, nkvh, group, dh, group * dh, dh); };
    for (size_t first = 0, n; first < singles_.size(); first += n) {
        const uint32_t total = singles_[first]->pos + 1;
        const size_t ld = scoreStride(total);
        const size_t most = score_elements_ / (nh * ld);  // at least 1: the constructor makes room for one row
        const auto range = [&](size_t i) {
            char *const scores = scores_.data() + i * nh * ld * size_;
            return QueryRange{*singles_[first + i], 0, 1, total, ld, scores};
        };
        for (n = 0; n < most && first + n < singles_.size() && singles_[first + n]->pos + 1 == total; ++n) {
            scoreKeys(heads(at(qkv, singles_[first + n]->row)), range(n), layer);
        }
        operators_->causalSoftmax(batch(scores_.data(), dtype_, n * nh, 1, total, ld, ld));
        for (size_t i = 0; i < n; ++i) {
            sumValues(heads(at(out, singles_[first + i]->row)), range(i), layer);
        }
    }
}

// out and qkv point at the first row of the range.
void InfinicoreBackend::attendRows(char *out, char *qkv, const QueryRange &range, uint32_t layer) {
    const size_t rows = range.rows;
    const size_t nh = config_.nh;
    const size_t nkvh = config_.nkvh;
    const size_t dh = config_.dh;
    // Heads one after the other, [nkvh, group * rows, dh], so that one product per KV head serves its whole group.
    const Tensor q_heads = batch(q_.data(), dtype_, nh, rows, dh, rows * dh, dh);
    const Tensor o_heads = batch(o_.data(), dtype_, nh, rows, dh, rows * dh, dh);
    const size_t height = config_.group() * rows;
    operators_->rearrange(q_heads, batch(qkv, dtype_, nh, rows, dh, dh, config_.qkvWidth()));
    scoreKeys(batch(q_.data(), dtype_, nkvh, height, dh, height * dh, dh), range, layer);
    operators_->causalSoftmax(batch(range.scores, dtype_, nh, rows, range.total, rows * range.ld, range.ld));
    sumValues(batch(o_.data(), dtype_, nkvh, height, dh, height * dh, dh), range, layer);
    operators_->rearrange(batch(out, dtype_, nh, rows, dh, dh, nh * dh), o_heads);
}

// InfiniCore 0.1.0's causal softmax for CUDA-like devices masks by thread instead of by column and lets keys of the
// future through when the width exceeds the thread block (its issue #746). Keys that already score -infinity get
// probability 0 whatever the operator does, so on such devices the blocks that the causal edge crosses start from
// -infinity there. Returns the first key of these blocks; `total` means that there are none.
uint32_t InfinicoreBackend::maskedFrom(const QueryRange &range) const {
    if (!mask_ || range.rows == 1 || (range.total <= tuning_.mask_width && !tuning_.mask_on_cpu)) {
        return range.total;
    }
    return (range.total - range.rows) / block_tokens_ * block_tokens_;
}

// scores[nkvh, group * rows, total] = q K^T / sqrt(dh), a block's columns at a time.
void InfinicoreBackend::scoreKeys(const Tensor &q, const QueryRange &range, uint32_t layer) {
    const size_t dh = config_.dh;
    const size_t height = static_cast<size_t>(config_.group()) * range.rows;
    const float scale = 1.0F / std::sqrt(static_cast<float>(dh));
    const uint32_t masked = maskedFrom(range);
    if (masked < range.total) {  // the mask's key block_tokens is the first of the range's own keys
        const size_t edge = range.total - range.rows - masked;
        const size_t width = range.total - masked;
        operators_->rearrange(batch(range.scores + masked * size_, dtype_, config_.nh, range.rows, width,
                                    range.rows * range.ld, range.ld),
                              batch(mask_.data() + (block_tokens_ - edge) * query_rows_ * size_, dtype_, config_.nh,
                                    range.rows, width, 0, 1, query_rows_));
    }
    for (uint32_t first = 0; first < range.total; first += block_tokens_) {
        const size_t n = std::min(block_tokens_, range.total - first);
        const Tensor k = batch(keys(range.sequence, first / block_tokens_, layer), dtype_, config_.nkvh, dh, n,
                               block_tokens_ * dh, 1, dh);
        const Tensor scores =
            batch(range.scores + first * size_, dtype_, config_.nkvh, height, n, height * range.ld, range.ld);
        operators_->gemm(scores, q, k, scale, first < masked ? 0.0F : 1.0F);
    }
}

// out[nkvh, group * rows, dh] = scores V. Adding up block by block would round to type A after every block; 16-bit
// types therefore gather the values of many blocks first and round once per gather_blocks_.
void InfinicoreBackend::sumValues(const Tensor &out, const QueryRange &range, uint32_t layer) {
    const size_t dh = config_.dh;
    const size_t height = static_cast<size_t>(config_.group()) * range.rows;
    const size_t values_offset = layerBlockBytes() / 2;
    const size_t block_stride = block_tokens_ * dh;
    const bool gather = values_ && range.total > block_tokens_;
    const uint32_t step = gather ? gather_blocks_ * block_tokens_ : block_tokens_;
    const size_t gather_stride = static_cast<size_t>(step) * dh;
    for (uint32_t first = 0; first < range.total; first += step) {
        const uint32_t n = std::min(step, range.total - first);
        char *data = keys(range.sequence, first / block_tokens_, layer) + values_offset;
        if (gather) {
            for (uint32_t i = 0; i < n; i += block_tokens_) {
                const uint32_t part = std::min(block_tokens_, n - i);
                char *const src = keys(range.sequence, (first + i) / block_tokens_, layer) + values_offset;
                operators_->rearrange(
                    batch(values_.data() + i * dh * size_, dtype_, config_.nkvh, part, dh, gather_stride, dh),
                    batch(src, dtype_, config_.nkvh, part, dh, block_stride, dh));
            }
            data = values_.data();
        }
        const Tensor v = batch(data, dtype_, config_.nkvh, n, dh, gather ? gather_stride : block_stride, dh);
        const Tensor scores =
            batch(range.scores + first * size_, dtype_, config_.nkvh, height, n, height * range.ld, range.ld);
        operators_->gemm(out, scores, v, 1.0F, first == 0 ? 0.0F : 1.0F);
    }
}

}  // namespace q3::infinicore
