#include "ops/infinicore/infinicore_ops.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "ops/infinicore/check.h"
#include "ops/infinicore/convert.h"
#include "ops/infinicore/devices.h"
#include "ops/infinicore/infinicore.h"
#include "ops/infinicore/selftest.h"
#include "runtime/error.h"

namespace q3::infinicore {

// InfiniCore has no call that tells, so the operators must.
const char *version() {
    return Q3_HAS_ADD_RMS_NORM != 0 ? "newer-than-0.1.0" : "0.1.0";
}

std::vector<std::unique_ptr<Ops>> makeInfinicoreOps(const std::vector<ModelConfig> &configs,
                                                    const std::vector<OpsOptions> &options, RankGroup &group) {
    std::vector<std::unique_ptr<InfinicoreOps>> ranks(configs.size());
    group.run([&](uint32_t rank) { ranks[rank] = std::make_unique<InfinicoreOps>(configs[rank], options[rank]); });
    if (ranks.size() > 1 && !ranks[0]->device()->isCpu()) {
        std::vector<std::shared_ptr<Device>> devices;
        devices.reserve(ranks.size());
        for (const auto &rank : ranks) {
            devices.push_back(rank->device());
        }
        std::vector<std::unique_ptr<Comm>> comms = Comm::connect(devices, group.barrier());
        for (size_t rank = 0; rank < ranks.size(); ++rank) {
            ranks[rank]->join(std::move(comms[rank]));
        }
    }
    return {std::make_move_iterator(ranks.begin()), std::make_move_iterator(ranks.end())};
}

// Every other dtype option must agree with dt_logits.
static infiniDtype_t activationType(const ModelConfig &config, const OpsOptions &options) {
    if (!isFloatDType(config.dt_logits)) {
        fail(QWEN3_STATUS_BAD_PARAM, "dt_logits is %d: the InfiniCore backend needs f16, bf16 or f32",
             int(config.dt_logits));
    }
    const auto same = [&](const char *name, int32_t dtype) {
        if (dtype != QWEN3_DTYPE_DEFAULT && dtype != config.dt_logits) {
            fail(QWEN3_STATUS_BAD_PARAM, "%s is %s: with InfiniCore it must equal dt_logits, %s", name,
                 dtypeName(dtype), dtypeName(config.dt_logits));
        }
    };
    same("dt_weight", options.dt_weight);
    same("dt_kv", options.dt_kv);
    return static_cast<infiniDtype_t>(config.dt_logits);
}

InfinicoreOps::InfinicoreOps(const ModelConfig &config, const OpsOptions &options, const Tuning &tuning)
    : config_(config), tuning_(tuning), dtype_(activationType(config, options)), size_(dtypeSize(config.dt_logits)),
      device_(Device::open(options.device, options.device_id, options.nthreads)), kv_memory_(device_),
      rank_(options.rank), reduce_(options.reduce) {
    DeviceScope scope(*device_);
    const size_t max_tokens = config.max_step_tokens;
    block_tokens_ = uint32_t(std::min<size_t>(tuning.block_tokens, (size_t(config.dctx) + 15) / 16 * 16));
    query_rows_ = uint32_t(std::min<size_t>(max_tokens, tuning.query_rows));
    const size_t row = config.nh * scoreStride(config.dctx);  // scores of one query row at most
    score_elements_ = std::min(row * query_rows_, std::max(row, tuning.score_bytes / size_));
    gather_blocks_ =
        std::clamp(tuning.gather_tokens / block_tokens_, 1u, uint32_t(scoreStride(config.dctx) / block_tokens_));
    const size_t logits_row = config.dvoc * size_;
    logits_rows_ = uint32_t(std::clamp<size_t>(tuning.logits_bytes / logits_row, 1, max_tokens));

    kernels_ = std::make_unique<Kernels>(device_);
    wide_ = Buffer(device_, max_tokens * std::max(2 * config.di, config.d) * size_);
    q_ = Buffer(device_, size_t(config.nh) * query_rows_ * config.dh * size_);
    o_ = Buffer(device_, q_.bytes());
    scores_ = Buffer(device_, score_elements_ * size_);
    if (size_ == 2) {
        values_ = Buffer(device_, size_t(config.nkvh) * gather_blocks_ * block_tokens_ * config.dh * size_);
    }
    rope_ = Buffer(device_, max_tokens * config.dh * size_);
    rope_host_ = Buffer(device_, rope_.bytes(), Buffer::Place::Host);
    embed_host_ = Buffer(device_, max_tokens * config.d * size_, Buffer::Place::Host);
    logits_ = Buffer(device_, logits_rows_ * logits_row);
    if (!device_->isCpu()) {
        logits_host_ = Buffer(device_, logits_.bytes(), Buffer::Place::Host);
    }

    std::vector<int32_t> iota(max_tokens);
    std::iota(iota.begin(), iota.end(), 0);
    positions_ = Buffer(device_, max_tokens * sizeof(int32_t));
    device_->upload(positions_.data(), iota.data(), positions_.bytes());

    if ((!device_->isCpu() && config.dctx > tuning.mask_width) || tuning.mask_on_cpu) {
        makeMask();
    }
    singles_.reserve(max_tokens);
    settleRoutes();
    makeIndices(options.kv_limit_bytes);
}

// Column by column, so that rearrange moves single values: 0.1.0's kernel for CUDA moves up to 32 bytes of a row at a
// time without looking whether the address allows it.
void InfinicoreOps::makeMask() {
    const size_t rows = query_rows_;
    std::vector<float> values((block_tokens_ + rows) * rows, 0.0f);
    for (size_t key = 1; key < rows; ++key) {
        std::fill_n(&values[(block_tokens_ + key) * rows], key, -std::numeric_limits<float>::infinity());
    }
    mask_ = Buffer(device_, values.size() * size_);
    upload(mask_.data(), values.data(), values.size());
}

// Decides which operators to use: those that the device has and computes rightly.
void InfinicoreOps::settleRoutes() {
    constexpr uint32_t kIdentityRows = 64;
    for (identity_rows_ = std::min(kIdentityRows, config_.d); config_.d % identity_rows_ != 0; --identity_rows_) {
    }
    routes_ = initialRoutes();
    self_tested_ = selfTestWanted();
    if (self_tested_) {
        routes_ =
            selfTest(device_, *kernels_, config_, {block_tokens_, identity_rows_, mask_ ? query_rows_ : 0}, routes_);
    } else if (!routes_.beta0) {
        kernels_->clearBeforeGemm();
    }
    if (!routes_.add) {
        std::vector<float> values(size_t(identity_rows_) * identity_rows_, 0.0f);
        for (uint32_t i = 0; i < identity_rows_; ++i) {
            values[size_t(i) * identity_rows_ + i] = 1.0f;
        }
        identity_ = Buffer(device_, values.size() * size_);
        upload(identity_.data(), values.data(), values.size());
    }
}

// ------------------------------------------------------------------ set-up

std::unique_ptr<Linear> InfinicoreOps::packLinear(const LinearSource &source) {
    return infinicore::packLinear(device_, source, config_.dt_logits, routes_.rope_neox ? 0 : config_.dh);
}

std::unique_ptr<Linear> InfinicoreOps::packGateUp(const LinearSource &gate_up) {
    return packLinear(gate_up);
}

std::unique_ptr<Vector> InfinicoreOps::packVector(const VectorSource &source) {
    return infinicore::packVector(device_, source, config_.dt_logits, routes_.rope_neox ? 0 : config_.dh);
}

std::shared_ptr<Linear> InfinicoreOps::packEmbedding(const LinearSource &source,
                                                     const std::vector<const Linear *> &heads, bool borrow) {
    // One of several heads holds a part of the rows only, and on a device that this one need not reach.
    const auto *head = heads.size() == 1 ? static_cast<const DeviceLinear *>(heads[0]) : nullptr;
    if (routes_.embedding) {
        auto embedding = std::make_unique<DeviceEmbedding>();
        embedding->head = head;
        if (head == nullptr || head->rows != source.parts[0].rows) {
            embedding->own = infinicore::packLinear(device_, source, config_.dt_logits, 0);
        }
        return embedding;
    }
    return infinicore::packEmbedding(*device_, source, config_.dt_logits, head, borrow);
}

Activation InfinicoreOps::allocate(uint32_t rows, uint32_t width) {
    activations_.emplace_back(device_, size_t(rows) * width * size_);
    return {activations_.back().data(), width};
}

// ------------------------------------------------------------------ one step

const StepPlan &InfinicoreOps::plan() const {
    if (plan_ == nullptr) {
        fail(QWEN3_STATUS_INTERNAL_ERROR, "InfiniCore backend: no step was begun");
    }
    return *plan_;
}

void InfinicoreOps::beginStep(const StepPlan &plan) {
    DeviceScope scope(*device_);
    plan_ = nullptr;
    if (staging_busy_) {  // the previous step gave no logits, or failed
        device_->synchronize();
        staging_busy_ = false;
    }
    if (plan.ntok == 0 || plan.ntok > config_.max_step_tokens) {
        fail(QWEN3_STATUS_INTERNAL_ERROR, "InfiniCore backend: a step of %u tokens, limit %u", plan.ntok,
             config_.max_step_tokens);
    }
    const size_t n = size_t(plan.ntok) * (config_.dh / 2);
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
    std::sort(singles_.begin(), singles_.end(), [](const Sequence *a, const Sequence *b) { return a->pos < b->pos; });
    plan_ = &plan;
}

void InfinicoreOps::checkToken(uint32_t index, uint32_t rows) const {
    if (plan().tokens[index] >= rows) {
        fail(QWEN3_STATUS_BAD_PARAM, "token %u at %u is not below the vocabulary size %u", plan().tokens[index], index,
             rows);
    }
}

void InfinicoreOps::embed(Activation x, const Linear &table) {
    DeviceScope scope(*device_);
    const uint32_t ntok = plan().ntok;
    if (routes_.embedding) {
        const DeviceLinear &rows = static_cast<const DeviceEmbedding &>(table).table();
        for (uint32_t i = 0; i < ntok; ++i) {
            checkToken(i, rows.rows);
        }
        kernels_->embedding(rowsOf(x, ntok), vector1d(step_.tokens, INFINI_DTYPE_I32, ntok),
                            matrix(rows.weight.data(), dtype_, rows.rows, rows.cols, rows.cols));
        return;
    }
    const auto &embedding = static_cast<const HostEmbedding &>(table);
    const size_t row_bytes = embedding.cols * size_;
    for (uint32_t i = 0; i < ntok; ++i) {
        checkToken(i, embedding.rows);
        embedding.readRow(embed_host_.data() + i * row_bytes, plan().tokens[i]);
    }
    device_->uploadAsync(x.data, embed_host_.data(), ntok * row_bytes);
}

Tensor InfinicoreOps::norm(const DeviceVector &weight) const {
    return vector1d(weight.data.data(), static_cast<infiniDtype_t>(weight.dtype), weight.size);
}

void InfinicoreOps::addRmsnorm(Activation h, Activation x, Activation delta, const Vector &weight, float epsilon) {
    DeviceScope scope(*device_);
    const uint32_t ntok = plan().ntok;
    const Tensor stream = rowsOf(x, ntok), scale = norm(static_cast<const DeviceVector &>(weight));
    if (delta.data != nullptr && routes_.add_rms_norm) {
        kernels_->addRmsNorm(rowsOf(h, ntok), stream, stream, rowsOf(delta, ntok), scale, epsilon);
        return;
    }
    if (delta.data != nullptr) {
        addInto(stream, rowsOf(delta, ntok));
    }
    kernels_->rmsNorm(rowsOf(h, ntok), stream, scale, epsilon);
}

// x += delta, both contiguous [rows, d]. Without add: products of short pieces of the rows with an identity, exact but
// for the rounding of the sum, which gemm does once, as add would.
void InfinicoreOps::addInto(const Tensor &x, const Tensor &delta) {
    if (routes_.add) {
        kernels_->add(x, x, delta);
        return;
    }
    const size_t n = identity_rows_, pieces = x.layout.shape[0] * x.layout.shape[1] / n;
    kernels_->gemm(matrix(x.data, dtype_, pieces, n, n), matrix(delta.data, dtype_, pieces, n, n),
                   matrix(identity_.data(), dtype_, n, n, n), 1.0f, 1.0f);
}

// out[rows, weight.rows] = in[rows, weight.cols] W^T + bias, both contiguous.
void InfinicoreOps::gemmRows(void *out, void *in, uint32_t rows, const DeviceLinear &weight) {
    const size_t nout = weight.rows, nin = weight.cols;
    const Tensor c = matrix(out, dtype_, rows, nout, nout);
    if (weight.bias) {
        kernels_->rearrange(c, matrix(weight.bias.data(), dtype_, rows, nout, 0));
    }
    kernels_->gemm(c, matrix(in, dtype_, rows, nin, nin), matrix(weight.weight.data(), dtype_, nin, nout, 1, nin), 1.0f,
                   weight.bias ? 1.0f : 0.0f);
}

void InfinicoreOps::linear(Activation out, Activation in, const Linear &weight) {
    DeviceScope scope(*device_);
    gemmRows(out.data, in.data, plan().ntok, static_cast<const DeviceLinear &>(weight));
}

void InfinicoreOps::linearSwiglu(Activation act, Activation h, const Linear &gate_up) {
    DeviceScope scope(*device_);
    const uint32_t ntok = plan().ntok;
    const Activation both{wide_.data(), 2 * act.width};
    gemmRows(both.data, h.data, ntok, static_cast<const DeviceLinear &>(gate_up));
    const Tensor gate = matrix(both.data, dtype_, ntok, act.width, both.width);
    const Tensor up = matrix(at(both, 0, act.width), dtype_, ntok, act.width, both.width);
    kernels_->swiglu(rowsOf(act, ntok), up, gate);
}

void InfinicoreOps::gatherRmsnorm(Activation out, Activation x, Activation delta, const uint32_t *rows, uint32_t nrows,
                                  const Vector &weight, float epsilon) {
    DeviceScope scope(*device_);
    if (nrows == 0) {
        return;
    }
    if (nrows > config_.max_step_tokens) {
        fail(QWEN3_STATUS_INTERNAL_ERROR, "InfiniCore backend: %u rows gathered, limit %u", nrows,
             config_.max_step_tokens);
    }
    const size_t row_bytes = x.width * size_;
    const Activation deltas{wide_.data(), x.width};
    for (uint32_t i = 0, n; i < nrows; i += n) {  // runs of adjacent rows
        n = 1;
        while (i + n < nrows && rows[i + n] == rows[i] + n) {
            ++n;
        }
        device_->copyAsync(at(out, i), at(x, rows[i]), n * row_bytes);
        if (delta.data != nullptr) {
            device_->copyAsync(at(deltas, i), at(delta, rows[i]), n * row_bytes);
        }
    }
    const Tensor result = rowsOf(out, nrows), scale = norm(static_cast<const DeviceVector &>(weight));
    if (delta.data != nullptr) {
        addInto(result, rowsOf(deltas, nrows));
    }
    kernels_->rmsNorm(result, result, scale, epsilon);
}

void InfinicoreOps::readLogits(float *logits, size_t ld, Activation in, uint32_t nrows, const Linear &head) {
    DeviceScope scope(*device_);
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
            device_->downloadAsync(logits_host_.data(), logits_.data(), size_t(n) * weight.rows * size_);
            host = logits_host_.data();
        }
        device_->synchronize();
        staging_busy_ = false;
        for (uint32_t i = 0; i < n; ++i) {
            toFloats(config_.dt_logits, logits + (row + i) * ld, host + size_t(i) * weight.rows * size_, weight.rows);
        }
    }
}

void InfinicoreOps::allReduceSum(Activation x) {
    const size_t count = size_t(plan().ntok) * x.width;
    if (comm_) {
        DeviceScope scope(*device_);
        comm_->sum(x.data, count, dtype_);
    } else if (reduce_ != nullptr) {
        reduceOnHost(x.data, count);
    }
}

// On InfiniCore's CPU device, whose memory is the host's. Added up in float32 and rounded once.
void InfinicoreOps::reduceOnHost(void *data, size_t count) {
    {
        DeviceScope scope(*device_);
        device_->synchronize();
    }
    reduce_->run(rank_, data, count, [this](void *const *buffers, size_t begin, size_t end) {
        constexpr size_t kBlock = 1024;
        float total[kBlock], part[kBlock];
        for (size_t at = begin; at < end; at += kBlock) {
            const size_t n = std::min(kBlock, end - at);
            toFloats(config_.dt_logits, total, static_cast<const char *>(buffers[0]) + at * size_, n);
            for (uint32_t rank = 1; rank < reduce_->size(); ++rank) {
                toFloats(config_.dt_logits, part, static_cast<const char *>(buffers[rank]) + at * size_, n);
                std::transform(part, part + n, total, total, [](float p, float t) { return t + p; });
            }
            for (uint32_t rank = 0; rank < reduce_->size(); ++rank) {
                floatsTo(config_.dt_logits, static_cast<char *>(buffers[rank]) + at * size_, total, n);
            }
        }
    });
}

// ------------------------------------------------------------------ information

size_t InfinicoreOps::scratchBytes() const {
    size_t bytes = kernels_->workspaceBytes();
    for (const Buffer &buffer : activations_) {
        bytes += buffer.bytes();
    }
    for (const Buffer *buffer : {&wide_, &q_, &o_, &scores_, &values_, &mask_, &identity_, &positions_, &rope_,
                                 &rope_host_, &embed_host_, &logits_, &logits_host_, &indices_, &indices_host_}) {
        bytes += buffer->bytes();
    }
    return bytes;
}

std::string InfinicoreOps::description() const {
    return std::string("backend=infinicore device=") + device_->name() + " threads=" + std::to_string(threads()) +
           " avoids=" + routesText(routes_) + " self_test=" + (self_tested_ ? "passed" : "skipped");
}

std::vector<float> InfinicoreOps::download(const void *data, size_t n) {
    DeviceScope scope(*device_);
    std::vector<char> raw(n * size_);
    device_->downloadAsync(raw.data(), data, raw.size());
    device_->synchronize();
    std::vector<float> values(n);
    toFloats(config_.dt_logits, values.data(), raw.data(), n);
    return values;
}

void InfinicoreOps::upload(void *data, const float *values, size_t n) {
    DeviceScope scope(*device_);
    std::vector<char> raw(n * size_);
    floatsTo(config_.dt_logits, raw.data(), values, n);
    device_->upload(data, raw.data(), raw.size());
}

}  // namespace q3::infinicore
