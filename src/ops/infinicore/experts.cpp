// Layers with experts. Rows are chosen on the host, which waits for the router's products once a layer; then the rows
// of each expert are gathered, go through it as those of a dense layer do, and are put where a row's experts lie side
// by side, so that one product with their weights sums them up. Needs no operators that dense layers do not.
#include <algorithm>

#include "ops/infinicore/convert.h"
#include "ops/infinicore/infinicore_backend.h"
#include "runtime/error.h"

namespace q3::infinicore {

void InfinicoreBackend::makeExperts() {
    if (config_.nexperts == 0) {
        return;
    }
    const size_t rows = config_.max_step_tokens;
    routing_ = std::make_unique<Routing>(config_);
    router_logits_ = DeviceBuffer(device_, rows * config_.nexperts * size_);
    router_host_ = DeviceBuffer(device_, router_logits_.bytes(), DeviceBuffer::Place::kHost);
    expert_rows_ = DeviceBuffer(device_, rows * config_.d * size_);
    expert_act_ = DeviceBuffer(device_, 3 * rows * config_.dm * size_);
    expert_out_ = DeviceBuffer(device_, rows * config_.d * size_);
    terms_ = DeviceBuffer(device_, rows * config_.nused * config_.d * size_);
    shares_ = DeviceBuffer(device_, rows * config_.nused * size_);
    shares_host_ = DeviceBuffer(device_, shares_.bytes(), DeviceBuffer::Place::kHost);
}

// The host must know where rows go before it can launch anything for them.
void InfinicoreBackend::route(Activation h, const DeviceLinear &router) {
    const uint32_t ntok = plan().ntok;
    const size_t n = static_cast<size_t>(ntok) * config_.nexperts;
    gemmRows(router_logits_.data(), h.data, ntok, router);
    device_->downloadAsync(router_host_.data(), router_logits_.data(), n * size_);
    device_->synchronize();
    staging_busy_ = false;
    std::vector<float> logits(n);
    toFloats(config_.dt_logits, logits.data(), router_host_.data(), n);
    for (uint32_t row = 0; row < ntok; ++row) {
        routing_->choose(row, logits.data() + static_cast<size_t>(row) * config_.nexperts);
    }
    routing_->sort(ntok);
    const size_t slots = routing_->slots();
    floatsTo(config_.dt_logits, shares_host_.data(), routing_->weightsOf(0), slots);
    staging_busy_ = true;
    device_->uploadAsync(shares_.data(), shares_host_.data(), slots * size_);
}

void InfinicoreBackend::runExpert(const Routing::Share &share, Activation h, const DeviceLinear &gate_up,
                                  const DeviceLinear &down) {
    const uint32_t d = h.width;
    const uint32_t dm = config_.dm;
    const size_t row_bytes = d * size_;
    const uint32_t *row_of = routing_->rowOf() + share.first;
    for (uint32_t i = 0, n; i < share.rows; i += n) {  // runs of adjacent rows
        n = 1;
        while (i + n < share.rows && row_of[i + n] == row_of[i] + n) {
            ++n;
        }
        device_->copyAsync(expert_rows_.data() + i * row_bytes, at(h, row_of[i]), n * row_bytes);
    }
    const size_t act_bytes = static_cast<size_t>(share.rows) * dm * size_;
    char *const gate = expert_act_.data();
    char *const up = gate + act_bytes;
    char *const act = up + act_bytes;
    gemmRows(gate, expert_rows_.data(), share.rows, gate_up, {2 * share.expert * dm, dm});
    gemmRows(up, expert_rows_.data(), share.rows, gate_up, {(2 * share.expert + 1) * dm, dm});
    operators_->swiglu(matrix(act, dtype_, share.rows, dm, dm), matrix(up, dtype_, share.rows, dm, dm),
                       matrix(gate, dtype_, share.rows, dm, dm));
    gemmRows(expert_out_.data(), act, share.rows, down, {share.expert * d, d});
    for (uint32_t i = 0; i < share.rows; ++i) {
        const uint32_t *slots = routing_->slotsOf(row_of[i]);
        const auto place = static_cast<size_t>(std::find(slots, slots + routing_->nused(), share.first + i) - slots);
        const size_t term = static_cast<size_t>(row_of[i]) * routing_->nused() + place;
        device_->copyAsync(terms_.data() + term * row_bytes, expert_out_.data() + i * row_bytes, row_bytes);
    }
}

void InfinicoreBackend::experts(Activation out, Activation h, const PackedLinear &router, const PackedLinear &gate_up,
                                const PackedLinear &down) {
    if (replayed_) {
        return;
    }
    DeviceScope scope(*device_);
    startWriting(out);
    route(h, static_cast<const DeviceLinear &>(router));
    for (const Routing::Share &share : routing_->shares()) {
        runExpert(share, h, static_cast<const DeviceLinear &>(gate_up), static_cast<const DeviceLinear &>(down));
    }
    // out[row] = weights[row] [1, nused] times terms[row] [nused, d]
    const size_t ntok = plan().ntok;
    const size_t nused = routing_->nused();
    const size_t d = h.width;
    operators_->gemm(batch(out.data, dtype_, ntok, 1, d, d, d),
                     batch(shares_.data(), dtype_, ntok, 1, nused, nused, nused),
                     batch(terms_.data(), dtype_, ntok, nused, d, nused * d, d), 1.0F, 0.0F);
}

}  // namespace q3::infinicore
