// The extern "C" functions: check, call the engine, turn exceptions into statuses. No logic of their own.
#include <cstring>
#include <memory>
#include <string>

#include "api/boundary.h"
#include "api/structs.h"
#include "api/tensors.h"
#include "api/validate.h"
#include "engine/engine.h"
#include "ops/factory.h"
#include "runtime/packed_file.h"
#include "runtime/process.h"

using namespace q3;

struct Qwen3Model {
    Engine engine;
    std::string build_info;
    HomeProcess process;
};

namespace {

// Handles are const in the signatures inherited from InfiniCore-Infer, although a cache changes the model's pool.
Engine &engineOf(const Qwen3Model *model) {
    requirePointer(model, "model");
    model->process.require();
    return const_cast<Qwen3Model *>(model)->engine;
}

}  // namespace

extern "C" {

Qwen3Model *createQwen3Model(const Qwen3Meta *meta, const Qwen3Weights *weights, int32_t device, int32_t ndev,
                             const int32_t *dev_ids) {
    return createQwen3ModelEx(meta, weights, device, ndev, dev_ids, nullptr);
}

Qwen3Model *createQwen3ModelEx(const Qwen3Meta *meta, const Qwen3Weights *weights, int32_t device, int32_t ndev,
                               const int32_t *dev_ids, const Qwen3ModelOptions *options) {
    Qwen3Model *created = nullptr;
    guard("createQwen3Model", [&] {
        requirePointer(meta, "meta");
        const Qwen3ModelOptions checked = readOptions(options, device);
        const ModelConfig config = readMeta(*meta, checked);
        const ModelTensors tensors = readTensors(config, weights, checked);
        const std::vector<int32_t> devices = checkDevices(device, ndev, dev_ids);
        BackendOptions backend = backendOptions(checked, device, tensors.mainDType());
        backend.coded = !tensors.stored.empty();
        std::unique_ptr<Qwen3Model> model(
            new Qwen3Model{{config, meta->theta, tensors, backend, devices, checked}, "", {}});
        model->build_info = libraryInfo() + " " + model->engine.description();
        created = model.release();
    });
    return created;
}

void destroyQwen3Model(Qwen3Model *model) {
    // In a forked process the threads to be joined do not exist; its copy of the memory goes when it ends.
    if (model != nullptr && !model->process.left()) {
        delete model;
    }
}

int32_t qwen3SaveWeights(const Qwen3Model *model, const char *path, const char *cache_key) {
    return guard("qwen3SaveWeights", [&] {
        const Engine &engine = engineOf(model);
        requirePointer(path, "path");
        engine.saveWeights(path, cache_key);
    });
}

KVCache *createKVCache(const Qwen3Model *model) {
    KVCache *cache = nullptr;
    guard("createKVCache", [&] { cache = engineOf(model).createCache(); });
    return cache;
}

KVCache *duplicateKVCache(const Qwen3Model *model, const KVCache *cache, uint32_t seq_len) {
    KVCache *copy = nullptr;
    guard("duplicateKVCache", [&] {
        requirePointer(cache, "cache");
        copy = engineOf(model).duplicateCache(cache, seq_len);
    });
    return copy;
}

void dropKVCache(const Qwen3Model *model, KVCache *cache) {
    if (model != nullptr && cache != nullptr) {
        guard("dropKVCache", [&] { engineOf(model).dropCache(cache); });
    }
}

int32_t qwen3KVCacheLength(const Qwen3Model *model, const KVCache *cache, uint32_t *length) {
    return guard("qwen3KVCacheLength", [&] {
        requirePointer(cache, "cache");
        requirePointer(length, "length");
        *length = engineOf(model).cacheLength(cache);
    });
}

int32_t qwen3SaveKVCache(const Qwen3Model *model, const KVCache *cache, const uint32_t *tokens, uint32_t seq_len,
                         const char *path) {
    return guard("qwen3SaveKVCache", [&] {
        Engine &engine = engineOf(model);
        requirePointer(cache, "cache");
        requirePointer(tokens, "tokens");
        requirePointer(path, "path");
        engine.saveCache(cache, tokens, seq_len, path);
    });
}

KVCache *qwen3LoadKVCache(const Qwen3Model *model, const char *path, uint32_t *tokens, uint32_t capacity,
                          uint32_t *seq_len) {
    KVCache *cache = nullptr;
    guard("qwen3LoadKVCache", [&] {
        Engine &engine = engineOf(model);
        requirePointer(path, "path");
        requirePointer(tokens, "tokens");
        requirePointer(seq_len, "seq_len");
        cache = engine.loadCache(path, tokens, capacity, seq_len);
    });
    return cache;
}

int32_t qwen3KVCacheFingerprint(const Qwen3Model *model, uint64_t *fingerprint) {
    return guard("qwen3KVCacheFingerprint", [&] {
        Engine &engine = engineOf(model);
        requirePointer(fingerprint, "fingerprint");
        const std::string &identity = engine.kvIdentity();
        *fingerprint = hashBytes(identity.data(), identity.size());
    });
}

int32_t inferBatch(Qwen3Model *model, const uint32_t *tokens, uint32_t ntok, const uint32_t *req_lens, uint32_t nreq,
                   const uint32_t *req_pos, KVCache **kv_caches, const float *temperature, const uint32_t *topk,
                   const float *topp, uint32_t *output) {
    return guard("inferBatch", [&] {
        Engine &engine = engineOf(model);
        const BatchArgs args{tokens, ntok, req_lens, nreq, req_pos, kv_caches};
        checkBatch(engine.config(), args);
        requirePointer(output, "output");
        std::vector<Qwen3SamplingParams> params = plainSampling(args, temperature, topk, topp);
        for (Qwen3SamplingParams &p : params) {
            p.seed = engine.nextSeed();
            p.no_logprob = 1;
        }
        std::vector<Qwen3SampleResult> results(nreq);
        engine.infer(args, params.data(), results.data());
        for (uint32_t r = 0; r < nreq; ++r) {
            output[r] = results[r].token;
        }
    });
}

int32_t inferBatchEx(Qwen3Model *model, const uint32_t *tokens, uint32_t ntok, const uint32_t *req_lens, uint32_t nreq,
                     const uint32_t *req_pos, KVCache **kv_caches, const Qwen3SamplingParams *params,
                     Qwen3SampleResult *results) {
    return guard("inferBatchEx", [&] {
        Engine &engine = engineOf(model);
        const BatchArgs args{tokens, ntok, req_lens, nreq, req_pos, kv_caches};
        checkBatch(engine.config(), args);
        Sampling sampling = readSampling(engine.config(), args, params, results);
        engine.infer(args, sampling.params.data(), sampling.results.data());
        writeResults(sampling, results);
    });
}

int32_t forwardBatch(Qwen3Model *model, const uint32_t *tokens, uint32_t ntok, const uint32_t *req_lens, uint32_t nreq,
                     const uint32_t *req_pos, KVCache **kv_caches, float *logits) {
    return guard("forwardBatch", [&] {
        Engine &engine = engineOf(model);
        const BatchArgs args{tokens, ntok, req_lens, nreq, req_pos, kv_caches};
        checkBatch(engine.config(), args);
        requirePointer(logits, "logits");
        engine.forward(args, logits);
    });
}

int32_t embedBatch(Qwen3Model *model, const uint32_t *tokens, uint32_t ntok, const uint32_t *req_lens, uint32_t nreq,
                   const uint32_t *req_pos, KVCache **kv_caches, const uint32_t *rows, uint32_t nrows, float *output) {
    return guard("embedBatch", [&] {
        Engine &engine = engineOf(model);
        const BatchArgs args{tokens, ntok, req_lens, nreq, req_pos, kv_caches};
        checkBatch(engine.config(), args);
        const std::vector<uint32_t> wanted = readRows(args, rows, nrows);
        requirePointer(output, "output");
        engine.embed(args, wanted, output);
    });
}

void qwen3Cancel(Qwen3Model *model) {
    if (model != nullptr) {
        model->engine.cancel();
    }
}

const char *qwen3LastError(void) {
    return lastErrorText();
}

int32_t qwen3LastStatus(void) {
    return lastErrorStatus();
}

const char *qwen3StatusName(int32_t status) {
    switch (status) {
#define QWEN3_STATUS_CASE(name)                                                                                        \
    case QWEN3_STATUS_##name:                                                                                          \
        return "QWEN3_STATUS_" #name
        QWEN3_STATUS_CASE(SUCCESS);
        QWEN3_STATUS_CASE(INTERNAL_ERROR);
        QWEN3_STATUS_CASE(NOT_IMPLEMENTED);
        QWEN3_STATUS_CASE(BAD_PARAM);
        QWEN3_STATUS_CASE(NULL_POINTER);
        QWEN3_STATUS_CASE(DEVICE_TYPE_NOT_SUPPORTED);
        QWEN3_STATUS_CASE(DEVICE_NOT_FOUND);
        QWEN3_STATUS_CASE(DEVICE_NOT_INITIALIZED);
        QWEN3_STATUS_CASE(DEVICE_ARCHITECTURE_NOT_SUPPORTED);
        QWEN3_STATUS_CASE(BAD_TENSOR_DTYPE);
        QWEN3_STATUS_CASE(BAD_TENSOR_SHAPE);
        QWEN3_STATUS_CASE(BAD_TENSOR_STRIDES);
        QWEN3_STATUS_CASE(INSUFFICIENT_WORKSPACE);
        QWEN3_STATUS_CASE(OUT_OF_MEMORY);
        QWEN3_STATUS_CASE(OUT_OF_KV);
        QWEN3_STATUS_CASE(CONTEXT_OVERFLOW);
        QWEN3_STATUS_CASE(CACHE_MISMATCH);
        QWEN3_STATUS_CASE(ABI_MISMATCH);
        QWEN3_STATUS_CASE(CANCELLED);
        QWEN3_STATUS_CASE(BAD_WEIGHTS);
        QWEN3_STATUS_CASE(IO_ERROR);
        QWEN3_STATUS_CASE(UNREADABLE);
#undef QWEN3_STATUS_CASE
    default:
        return "unknown status";
    }
}

const char *qwen3Version(void) {
    return QWEN3_VERSION_STRING;
}

uint32_t qwen3AbiVersion(void) {
    return QWEN3_ABI_VERSION;
}

size_t qwen3StructSize(int32_t kind) {
    switch (kind) {
    case QWEN3_STRUCT_META:
        return sizeof(Qwen3Meta);
    case QWEN3_STRUCT_WEIGHTS:
        return sizeof(Qwen3Weights);
    case QWEN3_STRUCT_MODEL_OPTIONS:
        return sizeof(Qwen3ModelOptions);
    case QWEN3_STRUCT_SAMPLING_PARAMS:
        return sizeof(Qwen3SamplingParams);
    case QWEN3_STRUCT_SAMPLE_RESULT:
        return sizeof(Qwen3SampleResult);
    case QWEN3_STRUCT_STATS:
        return sizeof(Qwen3Stats);
    case QWEN3_STRUCT_LOAD_STATE:
        return sizeof(Qwen3LoadState);
    case QWEN3_STRUCT_TENSOR:
        return sizeof(Qwen3Tensor);
    default:
        return 0;
    }
}

const char *qwen3BuildInfo(const Qwen3Model *model) {
    if (model != nullptr) {
        return model->build_info.c_str();
    }
    try {
        static const std::string info = libraryInfo();
        return info.c_str();
    } catch (...) {
        return "version=" QWEN3_VERSION_STRING;
    }
}

int32_t qwen3GetStats(const Qwen3Model *model, Qwen3Stats *stats) {
    return guard("qwen3GetStats", [&] {
        Engine &engine = engineOf(model);
        requirePointer(stats, "stats");
        structSizeOf(stats, "stats");
        writeStruct(engine.stats(), stats);
    });
}

}  // extern "C"
