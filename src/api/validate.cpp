#include "api/validate.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "api/structs.h"
#include "runtime/error.h"
#include "runtime/thread_pool.h"

namespace q3 {
namespace {

constexpr uint32_t kMaxStepTokens = 65536;
constexpr uint32_t kCpuStepTokens = 512;
constexpr uint32_t kDeviceStepTokens = 1024;  // accelerators want longer products and fewer launches
constexpr uint32_t kMaxTopLogprobs = 128;
constexpr int32_t kMaxRanks = 1024;
constexpr size_t kMaxLayers = 65536;  // what describes a layer is allocated before anything says that it exists

// One factor of a tensor's size: bounded so that products of four of them fit 64 bits.
uint32_t readSize(size_t value, const char *name, size_t limit = size_t{1} << 24) {
    if (value == 0 || value > limit) {
        fail(QWEN3_STATUS_BAD_PARAM, "meta.%s is %zu, must be 1 to %zu", name, value, limit);
    }
    return static_cast<uint32_t>(value);
}

enum class Allowed { kFloats, kFloatsAndInt8, kFloatsAndPacked };

void requireDType(int32_t dtype, const char *name, bool allow_default, Allowed allowed = Allowed::kFloats) {
    const auto type = static_cast<DType>(dtype);
    const bool ok = isFloatDType(type) || (allow_default && type == DType::kDefault) ||
                    (allowed == Allowed::kFloatsAndInt8 && type == DType::kInt8) ||
                    (allowed == Allowed::kFloatsAndPacked && isPackedDType(type));
    if (!ok) {
        const char *more[] = {"", ", INT8 (101)", ", INT8 (101), INT4 (102), BF12 (103) or INT4_MIXED (104)"};
        fail(QWEN3_STATUS_BAD_TENSOR_DTYPE, "%s is %d, must be QWEN3_DTYPE_F16 (12), F32 (13) or BF16 (19)%s%s", name,
             dtype, more[static_cast<int>(allowed)], allow_default ? ", or 0 for the default" : "");
    }
}

void requirePositive(float value, const char *name) {
    if (!(std::isfinite(value) && value > 0.0F)) {
        fail(QWEN3_STATUS_BAD_PARAM, "%s is %g, must be finite and > 0", name, static_cast<double>(value));
    }
}

void requireRange(int64_t value, int64_t low, int64_t high, const char *name) {
    if (value < low || value > high) {
        fail(QWEN3_STATUS_BAD_PARAM, "%s is %lld, must be %lld to %lld", name, static_cast<long long>(value),
             static_cast<long long>(low), static_cast<long long>(high));
    }
}

void checkRope(const Qwen3ModelOptions &o) {
    requireRange(o.rope_type, QWEN3_ROPE_DEFAULT, QWEN3_ROPE_LLAMA3, "options.rope_type");
    if (o.rope_type == QWEN3_ROPE_DEFAULT) {
        return;
    }
    requirePositive(o.rope_factor, "options.rope_factor");
    if (o.rope_type == QWEN3_ROPE_LINEAR) {
        return;
    }
    requireRange(o.rope_original_ctx, 1, 1 << 30, "options.rope_original_ctx");
    if (o.rope_type == QWEN3_ROPE_LLAMA3) {
        requirePositive(o.rope_low_freq_factor, "options.rope_low_freq_factor");
        if (!(o.rope_high_freq_factor > o.rope_low_freq_factor)) {
            fail(QWEN3_STATUS_BAD_PARAM, "options.rope_high_freq_factor is %g, must exceed rope_low_freq_factor %g",
                 static_cast<double>(o.rope_high_freq_factor), static_cast<double>(o.rope_low_freq_factor));
        }
        return;
    }
    const float optional[] = {o.rope_attention_factor, o.rope_beta_fast, o.rope_beta_slow};
    const char *names[] = {"options.rope_attention_factor", "options.rope_beta_fast", "options.rope_beta_slow"};
    for (int i = 0; i < 3; ++i) {
        if (optional[i] != 0.0F) {
            requirePositive(optional[i], names[i]);
        }
    }
}

// Checks before any tensor is looked at: their number follows from these.
void readExperts(const Qwen3ModelOptions &o, ModelConfig &c) {
    constexpr uint32_t kMostExperts = 65536;
    requireRange(o.nexperts, 0, kMostExperts, "options.nexperts");
    if (o.nexperts == 0) {
        if (o.nexperts_used != 0 || o.dm != 0 || o.norm_topk_prob != 0) {
            fail(QWEN3_STATUS_BAD_PARAM,
                 "options.nexperts_used, dm and norm_topk_prob are %u, %u and %d, must be 0: options.nexperts is 0",
                 o.nexperts_used, o.dm, o.norm_topk_prob);
        }
        if (o.experts == QWEN3_EXPERTS_DISK) {
            fail(QWEN3_STATUS_BAD_PARAM, "options.experts is disk, but this model has no experts");
        }
        return;
    }
    if (o.experts == QWEN3_EXPERTS_DISK && o.cache_path == nullptr) {
        fail(QWEN3_STATUS_BAD_PARAM,
             "options.experts is disk, which needs options.cache_path: the file that they are read from");
    }
    if (o.nexperts_used == 0 || o.nexperts_used > o.nexperts) {
        fail(QWEN3_STATUS_BAD_PARAM, "options.nexperts_used is %u, must be 1 to options.nexperts, %u", o.nexperts_used,
             o.nexperts);
    }
    requireRange(o.dm, 1, 1 << 24, "options.dm");
    // Rows of all experts together are counted in 32 bits.
    constexpr uint64_t kMostRows = uint64_t{1} << 31;
    if (uint64_t{o.nexperts} * (2 * uint64_t{o.dm} + 32) > kMostRows || uint64_t{o.nexperts} * (c.d + 16) > kMostRows) {
        fail(QWEN3_STATUS_BAD_PARAM,
             "options.nexperts is %u: with dm %u and d %u, a layer of so many experts is too large", o.nexperts, o.dm,
             c.d);
    }
    c.nexperts = o.nexperts;
    c.nused = o.nexperts_used;
    c.dm = o.dm;
    c.norm_topk = o.norm_topk_prob != 0;
}

}  // namespace

void requireFloatDType(int32_t dtype, const char *name) {
    requireDType(dtype, name, false);
}

void requirePointer(const void *pointer, const char *name) {
    if (pointer == nullptr) {
        fail(QWEN3_STATUS_NULL_POINTER, "%s is NULL", name);
    }
}

Qwen3ModelOptions readOptions(const Qwen3ModelOptions *options, int32_t device) {
    Qwen3ModelOptions out{};
    out.struct_size = sizeof out;
    if (options != nullptr) {
        readStruct(options, "options", out);
    }
    requireRange(out.backend, QWEN3_BACKEND_AUTO, QWEN3_BACKEND_INFINICORE, "options.backend");
    requireRange(out.nthreads, 0, kMaxThreads, "options.nthreads");
    requireDType(out.dt_weight, "options.dt_weight", true, Allowed::kFloatsAndPacked);
    requireDType(out.dt_kv, "options.dt_kv", true, Allowed::kFloatsAndInt8);
    requireRange(out.activations, QWEN3_ACTIVATIONS_AUTO, QWEN3_ACTIVATIONS_INT8, "options.activations");
    requireRange(out.experts, QWEN3_EXPERTS_MEMORY, QWEN3_EXPERTS_DISK, "options.experts");
    requireRange(out.max_step_tokens, 0, kMaxStepTokens, "options.max_step_tokens");
    if (out.max_step_tokens == 0) {
        out.max_step_tokens = device == QWEN3_DEVICE_CPU ? kCpuStepTokens : kDeviceStepTokens;
    }
    checkRope(out);
    return out;
}

ModelConfig readMeta(const Qwen3Meta &meta, const Qwen3ModelOptions &options) {
    ModelConfig c{};
    c.nlayer = readSize(meta.nlayer, "nlayer", kMaxLayers);
    c.d = readSize(meta.d, "d");
    c.nh = readSize(meta.nh, "nh");
    c.nkvh = readSize(meta.nkvh, "nkvh");
    c.dh = readSize(meta.dh, "dh");
    c.di = readSize(meta.di, "di");
    c.dctx = readSize(meta.dctx, "dctx");
    c.dvoc = readSize(meta.dvoc, "dvoc");
    readExperts(options, c);
    if (c.nh % c.nkvh != 0) {
        fail(QWEN3_STATUS_BAD_PARAM, "meta.nh is %u, must be a multiple of meta.nkvh, %u", c.nh, c.nkvh);
    }
    if (c.dh % 2 != 0) {
        fail(QWEN3_STATUS_BAD_PARAM, "meta.dh is %u, must be even: rotary embedding turns pairs", c.dh);
    }
    if (uint64_t{c.nh} * c.dh > (1U << 24)) {
        fail(QWEN3_STATUS_BAD_PARAM, "meta.nh * meta.dh is %llu, must be at most %u",
             static_cast<unsigned long long>(uint64_t{c.nh} * c.dh), 1U << 24);
    }
    requireDType(meta.dt_logits, "meta.dt_logits", false);
    requirePositive(meta.epsilon, "meta.epsilon");
    requirePositive(meta.theta, "meta.theta");
    if (meta.end_token >= c.dvoc) {
        fail(QWEN3_STATUS_BAD_PARAM, "meta.end_token is %u, must be below dvoc, %u", meta.end_token, c.dvoc);
    }
    c.epsilon = meta.epsilon;
    c.dt_logits = static_cast<DType>(meta.dt_logits);
    c.max_step_tokens = std::min(options.max_step_tokens, c.dctx);
    return c;
}

std::vector<int32_t> checkDevices(int32_t device, int32_t ndev, const int32_t *dev_ids) {
    requireRange(device, QWEN3_DEVICE_CPU, QWEN3_DEVICE_ALI, "device");
    requireRange(ndev, 1, kMaxRanks, "ndev");
    std::vector<int32_t> ids;
    for (int32_t i = 0; i < ndev; ++i) {
        const int32_t id = dev_ids == nullptr ? i : dev_ids[i];
        if (id < 0) {
            fail(QWEN3_STATUS_BAD_PARAM, "dev_ids[%d] is %d, must be at least 0", i, id);
        }
        if (device == QWEN3_DEVICE_CPU && id != i) {
            fail(QWEN3_STATUS_DEVICE_NOT_FOUND,
                 "dev_ids[%d] is %d, must be %d: cpu devices are parts of one machine, "
                 "numbered in order",
                 i, id, i);
        }
        const auto same = std::find(ids.begin(), ids.end(), id);
        if (same != ids.end()) {
            fail(QWEN3_STATUS_BAD_PARAM, "dev_ids[%d] is %d, which dev_ids[%d] is too: devices must be distinct", i, id,
                 static_cast<int>(same - ids.begin()));
        }
        ids.push_back(id);
    }
    return ids;
}

BackendOptions backendOptions(const Qwen3ModelOptions &options, int32_t device, DType dt_mat) {
    BackendOptions out{};
    out.backend = static_cast<BackendKind>(options.backend);
    out.device = static_cast<DeviceType>(device);
    out.nthreads = options.nthreads;
    out.dt_weight = static_cast<DType>(options.dt_weight);
    out.dt_kv = static_cast<DType>(options.dt_kv);
    out.dt_mat = dt_mat;
    out.activations = static_cast<Activations>(options.activations);
    out.experts_in_file = options.experts == QWEN3_EXPERTS_DISK;
    out.kv_limit_bytes = options.kv_limit_bytes;
    return out;
}

void checkBatch(const ModelConfig &config, const BatchArgs &args) {
    requirePointer(args.tokens, "tokens");
    requirePointer(args.req_lens, "req_lens");
    requirePointer(args.req_pos, "req_pos");
    requirePointer(static_cast<const void *>(args.kv_caches), "kv_caches");
    if (args.ntok == 0 || args.nreq == 0) {
        fail(QWEN3_STATUS_BAD_PARAM, "%s is 0, must be at least 1", args.ntok == 0 ? "ntok" : "nreq");
    }
    uint64_t total = 0;
    for (uint32_t r = 0; r < args.nreq; ++r) {
        if (args.req_lens[r] == 0) {
            fail(QWEN3_STATUS_BAD_PARAM, "req_lens[%u] is 0, must be at least 1", r);
        }
        requirePointer(args.kv_caches[r], ("kv_caches[" + std::to_string(r) + "]").c_str());
        const uint64_t end = uint64_t{args.req_pos[r]} + args.req_lens[r];
        if (end > config.dctx) {
            fail(QWEN3_STATUS_CONTEXT_OVERFLOW,
                 "request %u ends at position %llu (req_pos %u + req_lens %u), the context length is %u", r,
                 static_cast<unsigned long long>(end), args.req_pos[r], args.req_lens[r], config.dctx);
        }
        total += args.req_lens[r];
    }
    if (total != args.ntok) {
        fail(QWEN3_STATUS_BAD_PARAM, "ntok is %u, the sum of req_lens is %llu", args.ntok,
             static_cast<unsigned long long>(total));
    }
    for (uint32_t i = 0; i < args.ntok; ++i) {
        if (args.tokens[i] >= config.dvoc) {
            fail(QWEN3_STATUS_BAD_PARAM, "tokens[%u] is %u, must be below the vocabulary size, %u", i, args.tokens[i],
                 config.dvoc);
        }
    }
}

std::vector<uint32_t> readRows(const BatchArgs &args, const uint32_t *rows, uint32_t nrows) {
    if (rows == nullptr) {
        if (nrows != args.nreq) {
            fail(QWEN3_STATUS_BAD_PARAM, "nrows is %u, must be nreq, %u, where rows is NULL", nrows, args.nreq);
        }
        std::vector<uint32_t> last(args.nreq);
        uint32_t end = 0;
        for (uint32_t r = 0; r < args.nreq; ++r) {
            end += args.req_lens[r];
            last[r] = end - 1;
        }
        return last;
    }
    if (nrows == 0) {
        fail(QWEN3_STATUS_BAD_PARAM, "nrows is 0, must be at least 1");
    }
    for (uint32_t i = 0; i < nrows; ++i) {
        if (rows[i] >= args.ntok) {
            fail(QWEN3_STATUS_BAD_PARAM, "rows[%u] is %u, must be below ntok, %u", i, rows[i], args.ntok);
        }
        if (i > 0 && rows[i] <= rows[i - 1]) {
            fail(QWEN3_STATUS_BAD_PARAM, "rows[%u] is %u, must be above rows[%u], %u", i, rows[i], i - 1, rows[i - 1]);
        }
    }
    return {rows, rows + nrows};
}

namespace {

class RequestChecker {
public:
    RequestChecker(const char *array, uint32_t index) : array_(array), index_(index) {}

    void range(float value, bool ok, const char *field, const char *allowed) const {
        if (!(ok && std::isfinite(value))) {
            fail(QWEN3_STATUS_BAD_PARAM, "%s is %g, must be %s", name(field).c_str(), static_cast<double>(value),
                 allowed);
        }
    }
    void temperature(float value, const char *field) const { range(value, value >= 0.0F, field, "finite and >= 0"); }
    void topP(float value, const char *field) const { range(value, value > 0.0F && value <= 1.0F, field, "in (0, 1]"); }
    void tokens(const uint32_t *ids, uint32_t count, uint32_t dvoc, const char *field) const {
        if (count > 0) {
            requirePointer(ids, name(field).c_str());
        }
        for (uint32_t i = 0; i < count; ++i) {
            if (ids[i] >= dvoc) {
                fail(QWEN3_STATUS_BAD_PARAM, "%s[%u] is %u, must be below the vocabulary size, %u", name(field).c_str(),
                     i, ids[i], dvoc);
            }
        }
    }
    std::string name(const char *field) const {
        const std::string element = std::string(array_) + "[" + std::to_string(index_) + "]";
        return *field == '\0' ? element : element + "." + field;
    }

private:
    const char *array_;
    uint32_t index_;
};

void checkSampling(const ModelConfig &config, const Qwen3SamplingParams &p, uint32_t r, uint32_t req_len) {
    const RequestChecker check("params", r);
    check.temperature(p.temperature, "temperature");
    check.topP(p.top_p, "top_p");
    check.range(p.min_p, p.min_p >= 0.0F && p.min_p < 1.0F, "min_p", "in [0, 1)");
    check.range(p.repetition_penalty, p.repetition_penalty > 0.0F, "repetition_penalty", "finite and > 0");
    const auto penalty = [&](float value, const char *field) {
        check.range(value, value >= -2.0F && value <= 2.0F, field, "in [-2, 2]");
    };
    penalty(p.presence_penalty, "presence_penalty");
    penalty(p.frequency_penalty, "frequency_penalty");
    check.tokens(p.history, p.nhistory, config.dvoc, "history");
    check.tokens(p.bias_tokens, p.nbias, config.dvoc, "bias_tokens");
    if (p.nbias > 0) {
        requirePointer(p.bias_values, check.name("bias_values").c_str());
    }
    for (uint32_t i = 0; i < p.nbias; ++i) {
        if (std::isnan(p.bias_values[i]) || p.bias_values[i] == INFINITY) {
            fail(QWEN3_STATUS_BAD_PARAM, "%s[%u] is %g, must be finite or -INFINITY", check.name("bias_values").c_str(),
                 i, static_cast<double>(p.bias_values[i]));
        }
    }
    if (p.ngenerated > p.nhistory) {
        fail(QWEN3_STATUS_BAD_PARAM, "%s is %u, must be at most nhistory, %u", check.name("ngenerated").c_str(),
             p.ngenerated, p.nhistory);
    }
    if (p.top_logprobs > kMaxTopLogprobs) {
        fail(QWEN3_STATUS_BAD_PARAM, "%s is %u, must be at most %u", check.name("top_logprobs").c_str(), p.top_logprobs,
             kMaxTopLogprobs);
    }
    if (p.ndraft >= req_len) {
        fail(QWEN3_STATUS_BAD_PARAM, "%s is %zu, must be below req_lens[%u], %u", check.name("ndraft").c_str(),
             p.ndraft, r, req_len);
    }
    if (p.ndraft > 0 && p.skip != 0) {
        fail(QWEN3_STATUS_BAD_PARAM, "%s is %zu, must be 0 when skip is set: nothing is chosen, so nothing is verified",
             check.name("ndraft").c_str(), p.ndraft);
    }
    if (p.reserved != 0) {
        fail(QWEN3_STATUS_BAD_PARAM, "%s is %d, must be 0", check.name("reserved").c_str(), p.reserved);
    }
}

}  // namespace

Sampling readSampling(const ModelConfig &config, const BatchArgs &args, const Qwen3SamplingParams *params,
                      Qwen3SampleResult *results) {
    requirePointer(params, "params");
    requirePointer(results, "results");
    const StructArray<const Qwen3SamplingParams> given(params, "params");
    const StructArray<Qwen3SampleResult> targets(results, "results");
    Sampling out;
    out.params.assign(args.nreq, Qwen3SamplingParams QWEN3_SAMPLING_PARAMS_INIT);
    out.results.resize(args.nreq);
    for (uint32_t r = 0; r < args.nreq; ++r) {
        readStruct(given.at(r), given.argument(r), out.params[r]);
        checkSampling(config, out.params[r], r, args.req_lens[r]);
        const Qwen3SampleResult *target = targets.at(r);
        if (out.params[r].top_logprobs > 0 && out.params[r].skip == 0) {
            const RequestChecker result("results", r);
            requirePointer(target->top_tokens, result.name("top_tokens").c_str());
            requirePointer(target->top_logprobs, result.name("top_logprobs").c_str());
        }
        out.results[r].top_tokens = target->top_tokens;
        out.results[r].top_logprobs = target->top_logprobs;
    }
    return out;
}

void writeResults(const Sampling &sampling, Qwen3SampleResult *results) {
    const StructArray<Qwen3SampleResult> targets(results, "results");
    for (size_t r = 0; r < sampling.results.size(); ++r) {
        writeStruct(sampling.results[r], targets.at(r));
    }
}

std::vector<Qwen3SamplingParams> plainSampling(const BatchArgs &args, const float *temperature, const uint32_t *topk,
                                               const float *topp) {
    requirePointer(temperature, "temperature");
    requirePointer(topk, "topk");
    requirePointer(topp, "topp");
    std::vector<Qwen3SamplingParams> out(args.nreq, Qwen3SamplingParams QWEN3_SAMPLING_PARAMS_INIT);
    for (uint32_t r = 0; r < args.nreq; ++r) {
        RequestChecker("temperature", r).temperature(temperature[r], "");
        RequestChecker("topp", r).topP(topp[r], "");
        out[r].temperature = temperature[r];
        out[r].top_k = topk[r];
        out[r].top_p = topp[r];
    }
    return out;
}

}  // namespace q3
