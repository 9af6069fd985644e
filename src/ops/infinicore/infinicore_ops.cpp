#include "ops/infinicore/infinicore_ops.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "ops/infinicore/check.h"
#include "ops/infinicore/convert.h"
#include "ops/infinicore/devices.h"
#include "ops/infinicore/infinicore.h"
#include "runtime/error.h"

#ifndef Q3_INFINICORE_VERSION
#define Q3_INFINICORE_VERSION "0.1.0"  // InfiniCore itself has no call that tells
#endif

namespace q3::infinicore {

const char *version() {
    return Q3_INFINICORE_VERSION;
}

std::unique_ptr<Ops> makeInfinicoreOps(const ModelConfig &config, const OpsOptions &options) {
    return std::make_unique<InfinicoreOps>(config, options);
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
      device_(Device::open(options.device, options.device_id, options.nthreads)), kv_memory_(device_) {
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
        std::vector<float> values(size_t(query_rows_) * query_rows_, 0.0f);
        for (size_t i = 0; i < query_rows_; ++i) {
            std::fill_n(&values[i * query_rows_ + i] + 1, query_rows_ - i - 1, -std::numeric_limits<float>::infinity());
        }
        mask_ = Buffer(device_, values.size() * size_);
        upload(mask_.data(), values.data(), values.size());
    }
    probe();
}

// Some devices lack an operator (0.1.0: add on Ascend and Moore, NeoX rope on Ascend, Cambricon and Kunlun): say so
// at once instead of in the first step.
void InfinicoreOps::probe() {
    try {
        const Tensor row = matrix(wide_.data(), dtype_, 1, config_.d, config_.d);
        kernels_->add(row, row, row);
        const size_t half = config_.dh / 2;
        const Tensor table = matrix(rope_.data(), dtype_, 1, half, half);
        kernels_->rope(batch(q_.data(), dtype_, 1, 1, config_.dh, config_.dh, config_.dh),
                       vector1d(positions_.data(), INFINI_DTYPE_I32, 1), table, table);
        device_->synchronize();
    } catch (const Error &error) {
        if (error.status() == QWEN3_STATUS_OUT_OF_MEMORY || error.status() == QWEN3_STATUS_INTERNAL_ERROR) {
            throw;  // the device has a problem, but not that one
        }
        fail(QWEN3_STATUS_DEVICE_TYPE_NOT_SUPPORTED, "InfiniCore %s lacks an operator that Qwen3 needs on %s: %s",
             version(), deviceName(device_->type()), error.what());
    }
}

// ------------------------------------------------------------------ set-up

std::unique_ptr<Linear> InfinicoreOps::packLinear(const LinearSource &source) {
    return infinicore::packLinear(device_, source, config_.dt_logits);
}

std::unique_ptr<Linear> InfinicoreOps::packGateUp(const LinearSource &gate_up) {
    return packLinear(gate_up);
}

std::unique_ptr<Vector> InfinicoreOps::packVector(const VectorSource &source) {
    return infinicore::packVector(device_, source, config_.dt_logits);
}

std::unique_ptr<Linear> InfinicoreOps::packEmbedding(const LinearSource &source, const Linear *head, bool borrow) {
    return infinicore::packEmbedding(*device_, source, config_.dt_logits, static_cast<const DeviceLinear *>(head),
                                     borrow);
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
    device_->synchronize();  // host buffers of the previous step are free now, also when it failed
    embed_host_busy_ = false;
    if (plan.ntok == 0 || plan.ntok > config_.max_step_tokens) {
        fail(QWEN3_STATUS_INTERNAL_ERROR, "InfiniCore backend: a step of %u tokens, limit %u", plan.ntok,
             config_.max_step_tokens);
    }
    const size_t n = size_t(plan.ntok) * (config_.dh / 2);
    floatsTo(config_.dt_logits, rope_host_.data(), plan.rope_sin, n);
    floatsTo(config_.dt_logits, rope_host_.data() + n * size_, plan.rope_cos, n);
    device_->uploadAsync(rope_.data(), rope_host_.data(), 2 * n * size_);
    plan_ = &plan;
}

void InfinicoreOps::embed(Activation x, const Linear &table) {
    DeviceScope scope(*device_);
    const auto &embedding = static_cast<const HostEmbedding &>(table);
    if (embed_host_busy_) {
        device_->synchronize();
    }
    const size_t row_bytes = embedding.cols * size_;
    const uint32_t ntok = plan().ntok;
    for (uint32_t i = 0; i < ntok; ++i) {
        const uint32_t token = plan().tokens[i];
        if (token >= embedding.rows) {
            fail(QWEN3_STATUS_BAD_PARAM, "token %u at %u is not below the vocabulary size %u", token, i,
                 embedding.rows);
        }
        embedding.readRow(embed_host_.data() + i * row_bytes, token);
    }
    device_->uploadAsync(x.data, embed_host_.data(), ntok * row_bytes);
    embed_host_busy_ = true;
}

Tensor InfinicoreOps::norm(const DeviceVector &weight) const {
    return vector1d(weight.data.data(), static_cast<infiniDtype_t>(weight.dtype), weight.size);
}

void InfinicoreOps::addRmsnorm(Activation h, Activation x, Activation delta, const Vector &weight, float epsilon) {
    DeviceScope scope(*device_);
    const uint32_t ntok = plan().ntok;
    const Tensor stream = rowsOf(x, ntok);
    if (delta.data != nullptr) {
        kernels_->add(stream, stream, rowsOf(delta, ntok));
    }
    kernels_->rmsNorm(rowsOf(h, ntok), stream, norm(static_cast<const DeviceVector &>(weight)), epsilon);
}

// out[rows, weight.rows] = in[rows, weight.cols] W^T + bias, both contiguous.
void InfinicoreOps::gemmRows(void *out, void *in, uint32_t rows, const DeviceLinear &weight) {
    const size_t nout = weight.rows, nin = weight.cols;
    const Tensor c = matrix(out, dtype_, rows, nout, nout);
    kernels_->gemm(c, matrix(in, dtype_, rows, nin, nin), matrix(weight.weight.data(), dtype_, nin, nout, 1, nin), 1.0f,
                   0.0f);
    if (weight.bias) {
        kernels_->add(c, c, matrix(weight.bias.data(), dtype_, rows, nout, 0));
    }
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
    const Tensor result = rowsOf(out, nrows);
    if (delta.data != nullptr) {
        kernels_->add(result, result, rowsOf(deltas, nrows));
    }
    kernels_->rmsNorm(result, result, norm(static_cast<const DeviceVector &>(weight)), epsilon);
}

void InfinicoreOps::readLogits(float *logits, Activation in, uint32_t nrows, const Linear &head) {
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
        toFloats(config_.dt_logits, logits + size_t(row) * weight.rows, host, size_t(n) * weight.rows);
    }
}

// ------------------------------------------------------------------ information

size_t InfinicoreOps::scratchBytes() const {
    size_t bytes = kernels_->workspaceBytes();
    for (const Buffer &buffer : activations_) {
        bytes += buffer.bytes();
    }
    for (const Buffer *buffer : {&wide_, &q_, &o_, &scores_, &values_, &mask_, &positions_, &rope_, &rope_host_,
                                 &embed_host_, &logits_, &logits_host_}) {
        bytes += buffer->bytes();
    }
    return bytes;
}

std::string InfinicoreOps::description() const {
    return std::string("backend=infinicore device=") + device_->name() + " threads=" + std::to_string(threads());
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
