// The nodes of a step but attention, which is in block_attention.cpp and paged_attention.cpp.
#include "ops/infinicore/infinicore_backend.h"

#include <algorithm>
#include <utility>

#include "ops/infinicore/convert.h"
#include "runtime/error.h"

namespace q3::infinicore {

const StepPlan &InfinicoreBackend::plan() const {
    if (plan_ == nullptr) {
        fail(QWEN3_STATUS_INTERNAL_ERROR, "InfiniCore backend: no step was begun");
    }
    return *plan_;
}

void InfinicoreBackend::beginStep(const StepPlan &plan) {
    DeviceScope scope(*device_);
    plan_ = nullptr;
    branch_ = {};  // the last product of a step that gave no logits: nobody needs it
    added_ = nullptr;
    if (staging_busy_) {  // the previous step gave no logits, or failed
        device_->synchronize();
        staging_busy_ = false;
    }
    if (plan.ntok == 0 || plan.ntok > config_.max_step_tokens) {
        fail(QWEN3_STATUS_INTERNAL_ERROR, "InfiniCore backend: a step of %u tokens, limit %u", plan.ntok,
             config_.max_step_tokens);
    }
    const size_t n = static_cast<size_t>(plan.ntok) * (config_.dh / 2);
    floatsTo(config_.dt_logits, rope_host_.data(), plan.rope_sin, n);
    floatsTo(config_.dt_logits, rope_host_.data() + n * size_, plan.rope_cos, n);
    staging_busy_ = true;
    device_->uploadAsync(rope_.data(), rope_host_.data(), 2 * n * size_);
    uploadIndices(plan);
    singles_.clear();
    for (const Sequence &sequence : plan.sequences) {
        if (sequence.ntok == 1) {
            singles_.push_back(&sequence);
        }
    }
    replayed_ = replay(plan);
    std::sort(singles_.begin(), singles_.end(), [](const Sequence *a, const Sequence *b) { return a->pos < b->pos; });
    plan_ = &plan;
}

void InfinicoreBackend::checkToken(const StepPlan &plan, uint32_t index, uint32_t rows) {
    if (plan.tokens[index] >= rows) {
        fail(QWEN3_STATUS_BAD_PARAM, "token %u at %u is not below the vocabulary size %u", plan.tokens[index], index,
             rows);
    }
}

void InfinicoreBackend::embed(Activation x, const PackedLinear &table) {
    if (replayed_) {
        return;
    }
    DeviceScope scope(*device_);
    const uint32_t ntok = plan().ntok;
    if (routes_.embedding) {
        const DeviceLinear &rows = static_cast<const DeviceEmbedding &>(table).table();
        for (uint32_t i = 0; i < ntok; ++i) {
            checkToken(plan(), i, rows.rows);
        }
        operators_->embedding(rowsOf(x, ntok), vector1d(step_.tokens, INFINI_DTYPE_I32, ntok),
                              matrix(rows.weight.data(), dtype_, rows.rows, rows.cols, rows.cols));
        return;
    }
    const auto &embedding = static_cast<const HostEmbedding &>(table);
    const size_t row_bytes = embedding.cols * size_;
    for (uint32_t i = 0; i < ntok; ++i) {
        checkToken(plan(), i, embedding.rows);
        embedding.readRow(embed_host_.data() + i * row_bytes, plan().tokens[i]);
    }
    device_->uploadAsync(x.data, embed_host_.data(), ntok * row_bytes);
}

Tensor InfinicoreBackend::norm(const DeviceNorm &weight) const {
    return vector1d(weight.data.data(), static_cast<infiniDtype_t>(weight.dtype), weight.size);
}

void InfinicoreBackend::addRmsnorm(Activation h, Activation x, Activation delta, const PackedNorm &weight,
                                   float epsilon) {
    if (replayed_) {
        return;
    }
    DeviceScope scope(*device_);
    const uint32_t ntok = plan().ntok;
    const Tensor stream = rowsOf(x, ntok);
    const Tensor scale = norm(static_cast<const DeviceNorm &>(weight));
    if (branch_.weight != nullptr && branch_.out.data == delta.data) {
        addBranch(x);
    }
    runBranch();
    if (!isAdded(delta) && routes_.add_rms_norm) {
        operators_->addRmsNorm(rowsOf(h, ntok), stream, stream, rowsOf(delta, ntok), scale, epsilon);
        return;
    }
    if (!isAdded(delta)) {
        addInto(stream, rowsOf(delta, ntok));
    }
    operators_->rmsNorm(rowsOf(h, ntok), stream, scale, epsilon);
}

// x += delta, both contiguous [rows, d]. Without the add operator, gemm adds the products of short pieces of the rows
// with an identity. These are exact, and gemm rounds the sum once, as add would.
void InfinicoreBackend::addInto(const Tensor &x, const Tensor &delta) {
    if (routes_.add) {
        operators_->add(x, x, delta);
        return;
    }
    const size_t n = identity_rows_;
    const size_t pieces = x.layout.shape[0] * x.layout.shape[1] / n;
    operators_->gemm(matrix(x.data, dtype_, pieces, n, n), matrix(delta.data, dtype_, pieces, n, n),
                     matrix(identity_.data(), dtype_, n, n, n), 1.0F, 1.0F);
}

// out[rows, n] = in[rows, weight.cols] W^T + bias, or with `add` this more, both contiguous; W is n rows of the weight.
void InfinicoreBackend::gemmRows(void *out, void *in, uint32_t rows, const DeviceLinear &weight, WeightRows of,
                                 bool add) {
    const size_t nout = of.n == 0 ? weight.rows : of.n;
    const size_t nin = weight.cols;
    const Tensor c = matrix(out, dtype_, rows, nout, nout);
    if (weight.bias) {
        operators_->rearrange(c, matrix(weight.bias.data() + of.first * size_, dtype_, rows, nout, 0));
    }
    operators_->gemm(c, matrix(in, dtype_, rows, nin, nin),
                     matrix(weight.weight.data() + of.first * nin * size_, dtype_, nin, nout, 1, nin), 1.0F,
                     weight.bias || add ? 1.0F : 0.0F);
}

void InfinicoreBackend::linear(Activation out, Activation in, const PackedLinear &weight) {
    if (replayed_) {
        return;
    }
    DeviceScope scope(*device_);
    startWriting(out);
    branch_ = {out, in, &static_cast<const DeviceLinear &>(weight)};
    // With other ranks the results are added up first.
    if (!routes_.gemm_add || !alone() || branch_.weight->bias) {
        runBranch();
    }
}

// Does what linear() put off.
void InfinicoreBackend::runBranch() {
    if (branch_.weight != nullptr) {
        const Branch branch = std::exchange(branch_, {});
        gemmRows(branch.out.data, branch.in.data, plan().ntok, *branch.weight);
    }
}

// Before a product or experts write `out`: does what was put off, and `out` is no longer what addBranch added.
void InfinicoreBackend::startWriting(Activation out) {
    runBranch();
    if (out.data == added_) {
        added_ = nullptr;
    }
}

// Adds what linear() put off to the residual stream: no sum afterwards, and one rounding instead of two.
void InfinicoreBackend::addBranch(Activation x) {
    const Branch branch = std::exchange(branch_, {});
    gemmRows(x.data, branch.in.data, plan().ntok, *branch.weight, {}, true);
    added_ = branch.out.data;
}

// Whether a graph has launched all nodes of the step before gatherRmsnorm. A step that may be repeated later is
// recorded meanwhile.
bool InfinicoreBackend::replay(const StepPlan &plan) {
    if (!graphs_) {
        return false;
    }
    if (!step_.paged || !step_.decode || !alone()) {
        graphs_->drop();
        return false;
    }
    for (uint32_t i = 0; i < plan.ntok; ++i) {  // embed() does that otherwise
        checkToken(plan, i, config_.dvoc);
    }
    return graphs_->begin(plan.ntok, step_.width);
}

// The nodes before gatherRmsnorm are over: does what waits, and ends the recording of the step.
void InfinicoreBackend::endBody(Activation x, Activation delta) {
    if (replayed_) {
        added_ = delta.data;
        return;
    }
    if (branch_.weight != nullptr && branch_.out.data == delta.data) {
        addBranch(x);
    }
    runBranch();
    if (graphs_) {
        added_ == delta.data ? graphs_->end() : graphs_->drop();
    }
}

// InfiniCore's elementwise operators for CUDA compute the place of every element of a strided tensor with 64-bit
// divisions. A single row is contiguous, if it is said to be; of many rows, gate and up are a product each.
void InfinicoreBackend::linearSwiglu(Activation act, Activation h, const PackedLinear &gate_up) {
    if (replayed_) {
        return;
    }
    DeviceScope scope(*device_);
    runBranch();
    const uint32_t ntok = plan().ntok;
    const uint32_t di = act.width;
    const auto &weight = static_cast<const DeviceLinear &>(gate_up);
    if (routes_.silu_and_mul) {
        gemmRows(wide_.data(), h.data, ntok, weight);
        operators_->siluAndMul(rowsOf(act, ntok), matrix(wide_.data(), dtype_, ntok, 2 * di, 2 * di));
        return;
    }
    if (ntok >= tuning_.swiglu_rows) {
        char *const up = wide_.data() + static_cast<size_t>(ntok) * di * size_;
        gemmRows(wide_.data(), h.data, ntok, weight, {0, di});
        gemmRows(up, h.data, ntok, weight, {di, di});
        operators_->swiglu(rowsOf(act, ntok), matrix(up, dtype_, ntok, di, di),
                           matrix(wide_.data(), dtype_, ntok, di, di));
        return;
    }
    const Activation both{wide_.data(), 2 * di};
    gemmRows(both.data, h.data, ntok, weight);
    const size_t ld = ntok == 1 ? di : both.width;
    operators_->swiglu(rowsOf(act, ntok), matrix(at(both, 0, di), dtype_, ntok, di, ld),
                       matrix(both.data, dtype_, ntok, di, ld));
}

void InfinicoreBackend::gatherRmsnorm(Activation out, Activation x, Activation delta, const uint32_t *rows,
                                      uint32_t nrows, const PackedNorm &weight, float epsilon) {
    DeviceScope scope(*device_);
    if (nrows == 0) {
        return;
    }
    if (nrows > config_.max_step_tokens) {
        fail(QWEN3_STATUS_INTERNAL_ERROR, "InfiniCore backend: %u rows gathered, limit %u", nrows,
             config_.max_step_tokens);
    }
    endBody(x, delta);
    const bool add = !isAdded(delta);
    const size_t row_bytes = x.width * size_;
    const Activation deltas{wide_.data(), x.width};
    for (uint32_t i = 0, n; i < nrows; i += n) {  // runs of adjacent rows
        n = 1;
        while (i + n < nrows && rows[i + n] == rows[i] + n) {
            ++n;
        }
        device_->copyAsync(at(out, i), at(x, rows[i]), n * row_bytes);
        if (add) {
            device_->copyAsync(at(deltas, i), at(delta, rows[i]), n * row_bytes);
        }
    }
    const Tensor result = rowsOf(out, nrows);
    const Tensor scale = norm(static_cast<const DeviceNorm &>(weight));
    if (add) {
        addInto(result, rowsOf(deltas, nrows));
    }
    operators_->rmsNorm(result, result, scale, epsilon);
}

void InfinicoreBackend::readLogits(float *logits, size_t ld, Activation in, uint32_t nrows, const PackedLinear &head) {
    DeviceScope scope(*device_);
    runBranch();
    const auto &weight = static_cast<const DeviceLinear &>(head);
    if (weight.rows > config_.dvoc) {
        fail(QWEN3_STATUS_INTERNAL_ERROR, "InfiniCore backend: a head of %u rows, vocabulary size %u", weight.rows,
             config_.dvoc);
    }
    for (uint32_t row = 0; row < nrows; row += logits_rows_) {
        const uint32_t n = std::min(logits_rows_, nrows - row);
        gemmRows(logits_.data(), at(in, row), n, weight);
        const char *host = logits_.data();
        if (!device_->isCpu()) {
            device_->downloadAsync(logits_host_.data(), logits_.data(), static_cast<size_t>(n) * weight.rows * size_);
            host = logits_host_.data();
        }
        device_->synchronize();
        staging_busy_ = false;
        for (uint32_t i = 0; i < n; ++i) {
            toFloats(config_.dt_logits, logits + (row + i) * ld, host + static_cast<size_t>(i) * weight.rows * size_,
                     weight.rows);
        }
    }
}

void InfinicoreBackend::readRows(float *out, Activation in, uint32_t nrows) {
    DeviceScope scope(*device_);
    runBranch();
    const size_t count = static_cast<size_t>(nrows) * in.width;
    if (in.width > config_.d || nrows > config_.max_step_tokens) {
        fail(QWEN3_STATUS_INTERNAL_ERROR, "InfiniCore backend: %u rows of %u are read, limits %u and %u", nrows,
             in.width, config_.max_step_tokens, config_.d);
    }
    // What waits in the staging memory for the stream must be gone before something else comes there.
    device_->synchronize();
    staging_busy_ = false;
    const void *host = in.data;
    if (!device_->isCpu()) {
        device_->downloadAsync(embed_host_.data(), in.data, count * size_);
        device_->synchronize();
        host = embed_host_.data();
    }
    toFloats(config_.dt_logits, out, host, count);
}

void InfinicoreBackend::allReduceSum(Activation x) {
    const size_t count = static_cast<size_t>(plan().ntok) * x.width;
    if (comm_) {
        DeviceScope scope(*device_);
        comm_->sum(x.data, count, dtype_);
    } else if (host_.size > 1) {
        reduceOnHost(x.data, count);
    }
}

// Sums over ranks on InfiniCore's CPU device, whose memory is the host's: added up in float32 and rounded once.
void InfinicoreBackend::reduceOnHost(void *data, size_t count) {
    {
        DeviceScope scope(*device_);
        device_->synchronize();
    }
    const module::SumFunction sum = [](void *self, void *const *buffers, size_t begin, size_t end) {
        static_cast<const InfinicoreBackend *>(self)->addBuffers(buffers, begin, end);
    };
    module::rethrow(host_.sum(host_.context, rank_, data, count, sum, this), host_.error);
}

// Elements [begin, end) of every rank's buffer become their sum. Calls nothing that may throw.
void InfinicoreBackend::addBuffers(void *const *buffers, size_t begin, size_t end) const {
    constexpr size_t kBlock = 1024;
    float total[kBlock];
    float part[kBlock];
    for (size_t at = begin; at < end; at += kBlock) {
        const size_t n = std::min(kBlock, end - at);
        toFloats(config_.dt_logits, total, static_cast<const char *>(buffers[0]) + at * size_, n);
        for (uint32_t rank = 1; rank < host_.size; ++rank) {
            toFloats(config_.dt_logits, part, static_cast<const char *>(buffers[rank]) + at * size_, n);
            std::transform(part, part + n, total, total, [](float p, float t) { return t + p; });
        }
        for (uint32_t rank = 0; rank < host_.size; ++rank) {
            floatsTo(config_.dt_logits, static_cast<char *>(buffers[rank]) + at * size_, total, n);
        }
    }
}

}  // namespace q3::infinicore
