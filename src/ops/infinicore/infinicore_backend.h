// The InfiniCore backend: the nodes of ops.h composed from InfiniCore's operators. Activations, weights and KV are all
// of one type A = dt_logits (norm weights may be F32), because the gemm operator takes one type only. Which operators
// are used is settled at create, see routes.h.
#pragma once

#include <vector>

#include "ops/backend.h"
#include "ops/infinicore/comm.h"
#include "ops/infinicore/device/operators.h"
#include "ops/infinicore/routes.h"
#include "ops/infinicore/step_graphs.h"
#include "ops/infinicore/weights.h"
#include "ops/routing.h"

namespace q3::infinicore {

// Limits that tests make small.
struct Tuning {
    size_t score_bytes = size_t{64} << 20;   // attention scores at a time (at least one query row)
    size_t logits_bytes = size_t{32} << 20;  // logits at a time (at least one row)
    uint32_t block_tokens = 256;             // tokens of a KV block
    uint32_t query_rows = 512;               // query rows of a sequence at a time
    uint32_t gather_tokens = 4096;           // values gathered for one product, in whole KV blocks
    uint32_t swiglu_rows = 64;               // from so many rows on, gate and up are a product each; see linearSwiglu
    uint32_t mask_width = 512;               // mask wider scores beforehand, except on the CPU; see maskedFrom
    bool mask_on_cpu = false;                // on the CPU, mask always

    // For accelerators: launches cost more than scratch does (docs/devices.md, "Long prompts").
    static Tuning forDevice(DeviceType device) {
        Tuning tuning;
        if (device != DeviceType::kCpu) {
            tuning.score_bytes = size_t{256} << 20;
            tuning.query_rows = 1024;
        }
        return tuning;
    }
};

// Rows of a weight that a product is of.
struct WeightRows {
    uint32_t first = 0;
    uint32_t n = 0;  // 0: all
};

class InfinicoreBackend final : public Backend, public Ops {
public:
    InfinicoreBackend(const ModelConfig &config, const BackendOptions &options, const module::HostRanks &host = {},
                      const Tuning &tuning = {});

    Ops &ops() override { return *this; }

    Activation allocate(uint32_t rows, uint32_t width) override;
    std::unique_ptr<PackedLinear> makeLinear(const LinearSource &source, PackedReader *saved) override;
    std::unique_ptr<PackedNorm> makeNorm(const NormSource &source, PackedReader *saved) override;
    std::shared_ptr<PackedLinear> makeEmbedding(const EmbeddingSource &source, PackedReader *saved) override;
    bool sharesEmbedding() const override { return !routes_.embedding; }  // shared in host memory

    uint32_t kvBlockTokens() const override { return block_tokens_; }
    size_t kvBlockBytes() const override { return config_.nlayer * layerBlockBytes(); }
    BlockMemory &kvMemory() override { return kv_memory_; }

    void beginStep(const StepPlan &plan) override;
    void embed(Activation x, const PackedLinear &table) override;
    void addRmsnorm(Activation h, Activation x, Activation delta, const PackedNorm &weight, float epsilon) override;
    void linear(Activation out, Activation in, const PackedLinear &weight) override;
    void qkNormRopeStore(Activation qkv, const PackedNorm &q_norm, const PackedNorm &k_norm, float epsilon,
                         uint32_t layer) override;
    void attention(Activation out, Activation qkv, uint32_t layer) override;
    void linearSwiglu(Activation act, Activation h, const PackedLinear &gate_up) override;
    void experts(Activation out, Activation h, const PackedLinear &router, const PackedLinear &gate_up,
                 const PackedLinear &down) override;
    void gatherRmsnorm(Activation out, Activation x, Activation delta, const uint32_t *rows, uint32_t nrows,
                       const PackedNorm &weight, float epsilon) override;
    void readLogits(float *logits, size_t ld, Activation in, uint32_t nrows, const PackedLinear &head) override;
    void readRows(float *out, Activation in, uint32_t nrows) override;
    void allReduceSum(Activation x) override;

    size_t scratchBytes() const override;
    uint32_t threads() const override { return device_->threads(); }
    std::string description() const override;

    const std::shared_ptr<Device> &device() const { return device_; }
    const module::HostRanks &host() const { return host_; }
    void join(std::unique_ptr<Comm> comm) { comm_ = std::move(comm); }  // makes it one of several ranks

    // n values of type A between device memory and floats in host memory; for set-up and tests.
    void upload(void *data, const float *values, size_t n);
    std::vector<float> download(const void *data, size_t n);
    const Operators &operators() const { return *operators_; }

private:
    // Query rows [first, first + rows) of a sequence.
    struct QueryRange {
        const Sequence &sequence;
        uint32_t first;
        uint32_t rows;
        uint32_t total;  // keys visible to the last of the rows
        size_t ld;       // elements between rows of scores
        char *scores;    // [nh, rows, ld], in scores_
    };

    void settleRoutes();
    uint32_t tableWidth(uint32_t blocks) const;
    void makeIndices(uint64_t kv_limit_bytes);
    void uploadIndices(const StepPlan &plan);
    Tensor arenaOf(uint32_t layer, bool values) const;
    void storePaged(char *qkv, uint32_t layer);
    void attendPaged(char *out, char *qkv, uint32_t layer);
    static void checkToken(const StepPlan &plan, uint32_t index, uint32_t rows);
    void makeMask();
    void addInto(const Tensor &x, const Tensor &delta);
    bool alone() const { return !comm_ && host_.size <= 1; }  // no other ranks
    bool replay(const StepPlan &plan);
    void endBody(Activation x, Activation delta);
    void runBranch();
    void startWriting(Activation out);
    void addBranch(Activation x);
    bool isAdded(Activation delta) const { return delta.data == nullptr || delta.data == added_; }
    size_t layerBlockBytes() const { return size_t{2} * config_.nkvh * block_tokens_ * config_.dh * size_; }
    size_t scoreStride(uint32_t total) const;
    uint32_t fitRows(uint32_t pos, uint32_t remaining) const;
    char *keys(const Sequence &sequence, uint32_t block, uint32_t layer) const;
    void storeKv(char *qkv, uint32_t layer);
    void attendRows(char *out, char *qkv, const QueryRange &range, uint32_t layer);
    void attendSingles(Activation out, Activation qkv, uint32_t layer);
    void scoreKeys(const Tensor &q, const QueryRange &range, uint32_t layer);
    uint32_t maskedFrom(const QueryRange &range) const;
    void sumValues(const Tensor &out, const QueryRange &range, uint32_t layer);
    void reduceOnHost(void *data, size_t count);
    void addBuffers(void *const *buffers, size_t begin, size_t end) const;
    void gemmRows(void *out, void *in, uint32_t rows, const DeviceLinear &weight, WeightRows of = {}, bool add = false);
    Tensor norm(const DeviceNorm &weight) const;
    void makeExperts();
    void route(Activation h, const DeviceLinear &router);
    void runExpert(const Routing::Share &share, Activation h, const DeviceLinear &gate_up, const DeviceLinear &down);

    char *at(Activation a, size_t row = 0, size_t col = 0) const {
        return static_cast<char *>(a.data) + (row * a.width + col) * size_;
    }
    Tensor rowsOf(Activation a, uint32_t rows) const { return matrix(a.data, dtype_, rows, a.width, a.width); }
    const StepPlan &plan() const;

    const ModelConfig config_;
    const Tuning tuning_;
    const infiniDtype_t dtype_;  // A
    const size_t size_;          // bytes of A
    std::shared_ptr<Device> device_;
    DeviceBlockMemory kv_memory_;
    uint32_t block_tokens_ = 0;
    size_t score_elements_ = 0;
    uint32_t query_rows_ = 0;
    uint32_t gather_blocks_ = 0;
    uint32_t logits_rows_ = 0;
    uint32_t identity_rows_ = 0;
    Routes routes_;
    bool self_tested_ = false;

    const uint32_t rank_;
    const module::HostRanks host_;  // sums over ranks on the CPU
    std::unique_ptr<Comm> comm_;    // sums over ranks on other devices
    std::unique_ptr<Operators> operators_;
    std::unique_ptr<StepGraphs> graphs_;  // null without
    bool replayed_ = false;               // a graph has done the step's nodes up to the last norm
    std::vector<DeviceBuffer> activations_;
    DeviceBuffer wide_;  // [max_step_tokens, max(2 di, d)]: gate and up; gathered deltas
    DeviceBuffer q_;     // [nh, query_rows, dh]: queries and outputs, head by head
    DeviceBuffer o_;
    DeviceBuffer scores_;     // [nh, query_rows, keys]
    DeviceBuffer values_;     // [nkvh, gather_blocks * block_tokens, dh], 16-bit types only
    DeviceBuffer mask_;       // [block_tokens + query_rows keys, query_rows]: 0, and -infinity in the future
    DeviceBuffer identity_;   // [identity_rows, identity_rows], without the add operator
    DeviceBuffer positions_;  // int32 0, 1, 2, ... [max_step_tokens]
    DeviceBuffer rope_;       // [2, max_step_tokens, dh / 2]: sin, cos
    DeviceBuffer rope_host_;
    DeviceBuffer embed_host_;  // [max_step_tokens, d]
    DeviceBuffer logits_;      // [logits_rows_, dvoc]; the CPU needs no copy on the host
    DeviceBuffer logits_host_;
    bool staging_busy_ = false;  // the stream may still read rope_host_ and embed_host_
    DeviceBuffer indices_;       // where newer operators read token ids and the places of blocks
    DeviceBuffer indices_host_;
    const StepPlan *plan_ = nullptr;
    // Of layers with experts; see experts.cpp.
    std::unique_ptr<Routing> routing_;          // null in a dense model
    DeviceBuffer router_logits_, router_host_;  // [max_step_tokens, nexperts]
    DeviceBuffer expert_rows_;                  // [max_step_tokens, d]: the rows of one expert
    DeviceBuffer expert_act_;                   // [3, max_step_tokens, dm]: their gate, up and act
    DeviceBuffer expert_out_;                   // [max_step_tokens, d]
    DeviceBuffer terms_;                        // [max_step_tokens, nused, d]: what a row's experts came to, in order
    DeviceBuffer shares_, shares_host_;         // [max_step_tokens, nused]: their weights
    std::vector<const Sequence *> singles_;     // the step's sequences of one row, by position

    // The product that linear() was asked for last, as long as nobody needs its result: the next node may be the one
    // that adds it to the residual stream, and then gemm does that itself.
    struct Branch {
        Activation out;
        Activation in;
        const DeviceLinear *weight = nullptr;
    } branch_;
    const void *added_ = nullptr;  // the delta that gemm has added to the stream already

    // A step's indices on the device; see uploadIndices.
    struct StepIndices {
        bool paged = false;
        bool decode = false;  // one row per sequence
        uint32_t width = 0;   // of the table of blocks
        void *slots = nullptr;
        void *tables = nullptr;
        void *lengths = nullptr;
        void *starts = nullptr;
        void *tokens = nullptr;
    } step_;
};

}  // namespace q3::infinicore
