// Making the InfiniCore backend: sizes and memory, the choice of operators, weights; and what it says of itself.
#include <algorithm>
#include <limits>
#include <numeric>

#include "ops/devices.h"
#include "ops/infinicore/convert.h"
#include "ops/infinicore/device/check.h"
#include "ops/infinicore/infinicore.h"
#include "ops/infinicore/infinicore_backend.h"
#include "ops/infinicore/selftest/selftest.h"
#include "runtime/error.h"

namespace q3::infinicore {
namespace {

// Every other dtype option must agree with dt_logits.
infiniDtype_t activationType(const ModelConfig &config, const BackendOptions &options) {
    if (!isFloatDType(config.dt_logits)) {
        fail(QWEN3_STATUS_BAD_PARAM, "dt_logits is %d: the InfiniCore backend needs f16, bf16 or f32",
             static_cast<int>(config.dt_logits));
    }
    const auto same = [&](const char *name, DType dtype) {
        if (dtype != DType::kDefault && dtype != config.dt_logits) {
            fail(QWEN3_STATUS_BAD_PARAM, "%s is %s: with InfiniCore it must equal dt_logits, %s", name,
                 dtypeName(dtype), dtypeName(config.dt_logits));
        }
    };
    same("dt_weight", options.dt_weight);
    same("dt_kv", options.dt_kv);
    return static_cast<infiniDtype_t>(config.dt_logits);
}

}  // namespace

// InfiniCore has no call that tells its version, so the operators that it has must tell.
const char *version() {
    return Q3_HAS_ADD_RMS_NORM != 0 ? "newer-than-0.1.0" : "0.1.0";
}

InfinicoreBackend::InfinicoreBackend(const ModelConfig &config, const BackendOptions &options,
                                     const module::HostRanks &host, const Tuning &tuning)
    : config_(config), tuning_(tuning), dtype_(activationType(config, options)), size_(dtypeSize(config.dt_logits)),
      device_(Device::open(static_cast<int32_t>(options.device), options.device_id, options.nthreads)),
      kv_memory_(device_), rank_(options.rank), host_(host) {
    DeviceScope scope(*device_);
    const size_t max_tokens = config.max_step_tokens;
    block_tokens_ =
        static_cast<uint32_t>(std::min<size_t>(tuning.block_tokens, (static_cast<size_t>(config.dctx) + 15) / 16 * 16));
    query_rows_ = static_cast<uint32_t>(std::min<size_t>(max_tokens, tuning.query_rows));
    const size_t row = config.nh * scoreStride(config.dctx);  // scores of one query row at most
    score_elements_ = std::min(row * query_rows_, std::max(row, tuning.score_bytes / size_));
    gather_blocks_ = std::clamp(tuning.gather_tokens / block_tokens_, 1U,
                                static_cast<uint32_t>(scoreStride(config.dctx) / block_tokens_));
    const size_t logits_row = config.dvoc * size_;
    logits_rows_ = static_cast<uint32_t>(std::clamp<size_t>(tuning.logits_bytes / logits_row, 1, max_tokens));

    operators_ = std::make_unique<Operators>(device_);
    wide_ = DeviceBuffer(device_, max_tokens * std::max(2 * config.di, config.d) * size_);
    q_ = DeviceBuffer(device_, static_cast<size_t>(config.nh) * query_rows_ * config.dh * size_);
    o_ = DeviceBuffer(device_, q_.bytes());
    scores_ = DeviceBuffer(device_, score_elements_ * size_);
    if (size_ == 2) {
        values_ = DeviceBuffer(device_,
                               static_cast<size_t>(config.nkvh) * gather_blocks_ * block_tokens_ * config.dh * size_);
    }
    rope_ = DeviceBuffer(device_, max_tokens * config.dh * size_);
    rope_host_ = DeviceBuffer(device_, rope_.bytes(), DeviceBuffer::Place::kHost);
    embed_host_ = DeviceBuffer(device_, max_tokens * config.d * size_, DeviceBuffer::Place::kHost);
    logits_ = DeviceBuffer(device_, logits_rows_ * logits_row);
    if (!device_->isCpu()) {
        logits_host_ = DeviceBuffer(device_, logits_.bytes(), DeviceBuffer::Place::kHost);
    }

    std::vector<int32_t> iota(max_tokens);
    std::iota(iota.begin(), iota.end(), 0);
    positions_ = DeviceBuffer(device_, max_tokens * sizeof(int32_t));
    device_->upload(positions_.data(), iota.data(), positions_.bytes());

    singles_.reserve(max_tokens);
    settleRoutes();
    if (!routes_.causal) {
        makeMask();
    }
    makeIndices(options.kv_limit_bytes);
    makeExperts();
    // Where rows go is the host's to know, so steps with experts differ.
    routes_.graphs = routes_.graphs && routes_.paged_attention && routes_.embedding && config.nexperts == 0;
    if (routes_.graphs) {
        graphs_ = std::make_unique<StepGraphs>(device_, *operators_);
    }
}

// Column by column, so that rearrange moves single values: 0.1.0's kernel for CUDA moves up to 32 bytes of a row at a
// time without looking whether the address allows it.
void InfinicoreBackend::makeMask() {
    const size_t rows = query_rows_;
    std::vector<float> values((block_tokens_ + rows) * rows, 0.0F);
    for (size_t key = 1; key < rows; ++key) {
        std::fill_n(&values[(block_tokens_ + key) * rows], key, -std::numeric_limits<float>::infinity());
    }
    mask_ = DeviceBuffer(device_, values.size() * size_);
    upload(mask_.data(), values.data(), values.size());
}

// Decides which operators to use: those that the device has and computes rightly.
void InfinicoreBackend::settleRoutes() {
    constexpr uint32_t kIdentityRows = 64;
    for (identity_rows_ = std::min(kIdentityRows, config_.d); config_.d % identity_rows_ != 0; --identity_rows_) {
    }
    routes_ = initialRoutes();
    self_tested_ = selfTestWanted();
    const bool wide = (!device_->isCpu() && config_.dctx > tuning_.mask_width) || tuning_.mask_on_cpu;
    routes_.causal = !wide || (routes_.causal && self_tested_ && !tuning_.mask_on_cpu);  // nobody else would notice
    if (self_tested_) {
        routes_ =
            selfTest(device_, *operators_, config_, {block_tokens_, identity_rows_, wide ? query_rows_ : 0}, routes_);
    } else if (!routes_.beta0) {
        operators_->clearBeforeGemm();
    }
    if (!routes_.add) {
        std::vector<float> values(static_cast<size_t>(identity_rows_) * identity_rows_, 0.0F);
        for (uint32_t i = 0; i < identity_rows_; ++i) {
            values[static_cast<size_t>(i) * identity_rows_ + i] = 1.0F;
        }
        identity_ = DeviceBuffer(device_, values.size() * size_);
        upload(identity_.data(), values.data(), values.size());
    }
}

// ------------------------------------------------------------------ weights

// Nothing was saved by this backend, so `saved` is always null.
std::unique_ptr<PackedLinear> InfinicoreBackend::makeLinear(const LinearSource &source, PackedReader *) {
    return packLinear(device_, source, config_.dt_logits, routes_.rope_neox ? 0 : config_.dh);
}

std::unique_ptr<PackedNorm> InfinicoreBackend::makeNorm(const NormSource &source, PackedReader *) {
    return packNorm(device_, source, config_.dt_logits, routes_.rope_neox ? 0 : config_.dh);
}

std::shared_ptr<PackedLinear> InfinicoreBackend::makeEmbedding(const EmbeddingSource &source, PackedReader *) {
    // With several heads, each holds only a part of the rows, on a device that this backend's device may not reach.
    const auto *head = source.heads.size() == 1 ? static_cast<const DeviceLinear *>(source.heads[0]) : nullptr;
    if (routes_.embedding) {
        auto embedding = std::make_unique<DeviceEmbedding>();
        embedding->head = head;
        if (head == nullptr || head->rows != source.table.parts[0].rows) {
            embedding->own = packLinear(device_, source.table, config_.dt_logits, 0);
        }
        return embedding;
    }
    return packEmbedding(*device_, source.table, config_.dt_logits, head, source.borrow);
}

Activation InfinicoreBackend::allocate(uint32_t rows, uint32_t width) {
    activations_.emplace_back(device_, static_cast<size_t>(rows) * width * size_);
    return {activations_.back().data(), width};
}

// ------------------------------------------------------------------ information

size_t InfinicoreBackend::scratchBytes() const {
    size_t bytes = operators_->workspaceBytes();
    for (const DeviceBuffer &buffer : activations_) {
        bytes += buffer.bytes();
    }
    for (const DeviceBuffer *buffer : {&wide_,          &q_,           &o_,           &scores_,     &values_,
                                       &mask_,          &identity_,    &positions_,   &rope_,       &rope_host_,
                                       &embed_host_,    &logits_,      &logits_host_, &indices_,    &indices_host_,
                                       &router_logits_, &router_host_, &expert_rows_, &expert_act_, &expert_out_,
                                       &terms_,         &shares_,      &shares_host_}) {
        bytes += buffer->bytes();
    }
    return bytes;
}

std::string InfinicoreBackend::description() const {
    return std::string("backend=infinicore device=") + device_->name() + " threads=" + std::to_string(threads()) +
           " avoids=" + routesText(routes_) + " self_test=" + (self_tested_ ? "passed" : "skipped");
}

std::vector<float> InfinicoreBackend::download(const void *data, size_t n) {
    DeviceScope scope(*device_);
    runBranch();
    std::vector<char> raw(n * size_);
    device_->downloadAsync(raw.data(), data, raw.size());
    device_->synchronize();
    std::vector<float> values(n);
    toFloats(config_.dt_logits, values.data(), raw.data(), n);
    return values;
}

void InfinicoreBackend::upload(void *data, const float *values, size_t n) {
    DeviceScope scope(*device_);
    std::vector<char> raw(n * size_);
    floatsTo(config_.dt_logits, raw.data(), values, n);
    device_->upload(data, raw.data(), raw.size());
}

}  // namespace q3::infinicore
