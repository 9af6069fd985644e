#include "engine/engine.h"

#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <numeric>

#include "runtime/cpu_info.h"
#include "runtime/error.h"
#include "runtime/numa.h"

namespace q3 {
namespace {

// Not std::random_device: linked into this library it would need a newer C library than all the rest.
uint64_t randomSeed() {
    uint64_t seed = 0;
    while (getrandom(&seed, sizeof seed, 0) < 0) {
        if (errno != EINTR) {  // a kernel or a sandbox without this call
            return static_cast<uint64_t>(std::chrono::system_clock::now().time_since_epoch().count());
        }
    }
    return seed;
}

uint64_t kvLimit(const Qwen3ModelOptions &options) {
    if (options.kv_limit_bytes != 0) {
        return options.kv_limit_bytes;
    }
    const uint64_t available = availableMemory();
    return available == 0 ? ~uint64_t{0} : available / 2;
}

std::vector<ModelConfig> configsOf(const std::vector<RankSlice> &slices) {
    std::vector<ModelConfig> configs;
    configs.reserve(slices.size());
    for (const RankSlice &slice : slices) {
        configs.push_back(slice.config);
    }
    return configs;
}

// Whether every thread of every rank has a CPU to itself. Then ranks may poll while they wait for each other: that
// takes no time away from anybody.
bool ranksMaySpin(const BackendOptions &options, size_t nranks) {
    return std::max<size_t>(nranks, static_cast<uint32_t>(options.nthreads)) <= availableCpus();
}

std::vector<std::vector<uint32_t>> ranksPlaces(const BackendOptions &options, size_t nranks) {
    return options.device == DeviceType::kCpu ? placeRanks(numaNodes(), static_cast<uint32_t>(nranks))
                                              : std::vector<std::vector<uint32_t>>{};
}

// Sets a flag for a scope.
class Running {
public:
    explicit Running(std::atomic<bool> &flag) : flag_(flag) { flag_.store(true); }
    ~Running() { flag_.store(false); }
    Running(const Running &) = delete;
    Running &operator=(const Running &) = delete;

private:
    std::atomic<bool> &flag_;
};

}  // namespace

Engine::Engine(const ModelConfig &config, float theta, const ModelTensors &tensors,
               const BackendOptions &backend_options, const std::vector<int32_t> &dev_ids,
               const Qwen3ModelOptions &options)
    : config_(config), rope_(config.dh, theta, options),
      slices_(splitModel(config, static_cast<uint32_t>(dev_ids.size()), tensors.innerUnit())),
      group_(static_cast<uint32_t>(slices_.size()), ranksMaySpin(backend_options, slices_.size()),
             ranksPlaces(backend_options, slices_.size()), !needsInfinicore(backend_options)),
      reduce_(group_.barrier(), group_.size()),
      backends_(makeBackends(configsOf(slices_), backend_options, dev_ids, group_, reduce_)), forward_(slices_.size()),
      chooser_(config.dvoc, backends_[0]->threads(),
               [this](uint32_t count, const auto &body) { backends_[0]->forEach(count, body); }),
      seed_(options.has_seed != 0 ? options.seed : randomSeed()) {
    std::vector<ModelWeights> packed = packWeights(config, slices_, tensors, options, backends_, group_);
    group_.run([&](uint32_t rank) {
        forward_[rank] =
            std::make_unique<Qwen3Forward>(slices_[rank].config, std::move(packed[rank]), *backends_[rank]);
    });
    std::vector<BlockMemory *> memories;
    memories.reserve(backends_.size());
    for (const auto &backend : backends_) {
        memories.push_back(&backend->kvMemory());
    }
    pool_ = std::make_unique<BlockPool>(std::move(memories), backends_[0]->kvBlockBytes(),
                                        backends_[0]->kvBlockTokens(), kvLimit(options));
    rope_cos_.resize(size_t{config.max_step_tokens} * (config.dh / 2));
    rope_sin_.resize(rope_cos_.size());
}

std::string Engine::description() const {
    const std::string first = backends_[0]->description() + " step_tokens=" + std::to_string(config_.max_step_tokens);
    return group_.size() == 1 ? first : first + " ndev=" + std::to_string(group_.size());
}

uint64_t Engine::nextSeed() {
    return seed_.fetch_add(1);
}

// ---------------------------------------------------------------- caches

KVCache *Engine::adopt(std::unique_ptr<KVCache> cache) {
    KVCache *handle = cache.get();
    caches_.emplace(handle, std::move(cache));
    return handle;
}

KVCache *Engine::createCache() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return adopt(std::make_unique<KVCache>(*pool_));
}

KVCache *Engine::duplicateCache(const KVCache *cache, uint32_t length) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const KVCache &source = owned(cache, "cache", 0);
    if (length > source.length()) {
        fail(QWEN3_STATUS_BAD_PARAM, "seq_len is %u, the cache holds %u tokens", length, source.length());
    }
    return adopt(source.duplicate(length));
}

void Engine::dropCache(const KVCache *cache) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    caches_.erase(cache);
}

uint32_t Engine::cacheLength(const KVCache *cache) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return owned(cache, "cache", 0).length();
}

// The cache that a caller's handle stands for. It is looked up before it is dereferenced, so that a handle of a dropped
// cache or of another model is an error and not a crash.
KVCache &Engine::owned(const KVCache *cache, const char *what, uint32_t index) {
    const auto found = caches_.find(cache);
    if (found == caches_.end()) {
        fail(QWEN3_STATUS_CACHE_MISMATCH, "%s[%u] is not a live cache of this model (dropped, or of another model)",
             what, index);
    }
    return *found->second;
}

// ---------------------------------------------------------------- steps

void Engine::checkCaches(const BatchArgs &args) {
    std::vector<const KVCache *> sorted(args.kv_caches, args.kv_caches + args.nreq);
    std::sort(sorted.begin(), sorted.end());
    const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
    for (uint32_t r = 0; r < args.nreq; ++r) {
        const KVCache &cache = owned(args.kv_caches[r], "kv_caches", r);
        if (twice != sorted.end() && *twice == &cache) {
            fail(QWEN3_STATUS_CACHE_MISMATCH, "kv_caches[%u] is used more than once in this call", r);
        }
        if (args.req_pos[r] > cache.length()) {
            fail(QWEN3_STATUS_CACHE_MISMATCH, "req_pos[%u] is %u, but kv_caches[%u] holds only %u tokens", r,
                 args.req_pos[r], r, cache.length());
        }
    }
}

void Engine::requireBlocks(uint64_t count, const char *what) const {
    if (count > pool_->blocksLeft()) {
        fail(QWEN3_STATUS_OUT_OF_KV,
             "%s needs %llu more bytes of KV cache, but %llu of kv_limit_bytes=%llu are in use: drop caches or raise "
             "the limit",
             what, static_cast<unsigned long long>(count * pool_->blockBytes()),
             static_cast<unsigned long long>(pool_->usedBytes()), static_cast<unsigned long long>(pool_->limitBytes()));
    }
}

// Makes all blocks that the call writes to writable, or changes nothing.
void Engine::reserve(const BatchArgs &args) {
    uint64_t needed = 0;
    std::vector<const BlockPool::Block *> shared;
    for (uint32_t r = 0; r < args.nreq; ++r) {
        needed += args.kv_caches[r]->blocksNeeded(args.req_pos[r], args.req_lens[r], shared);
    }
    std::sort(shared.begin(), shared.end());
    // A cache that writes to a shared block needs a copy of it; when all its holders write, the last keeps the
    // original.
    for (auto first = shared.begin(); first != shared.end();) {
        const auto next = std::upper_bound(first, shared.end(), *first);
        const auto writers = static_cast<uint32_t>(next - first);
        needed += writers == (*first)->refs ? writers - 1 : writers;
        first = next;
    }
    requireBlocks(needed, "this call");
    uint32_t r = 0;
    try {
        for (; r < args.nreq; ++r) {
            args.kv_caches[r]->prepare(args.req_pos[r], args.req_lens[r]);
        }
    } catch (...) {
        while (r-- > 0) {
            args.kv_caches[r]->truncate(args.kv_caches[r]->length());
        }
        throw;
    }
}

void Engine::execute(const BatchArgs &args, const ChunkSink &sink) {
    checkCaches(args);
    reserve(args);
    cancel_.store(false);
    const Running running(running_);
    try {
        runChunks(args, sink);
    } catch (...) {
        // Positions from req_pos on may be half written.
        for (uint32_t r = 0; r < args.nreq; ++r) {
            args.kv_caches[r]->truncate(args.req_pos[r]);
        }
        throw;
    }
    for (uint32_t r = 0; r < args.nreq; ++r) {
        const uint32_t length = args.req_pos[r] + args.req_lens[r];
        args.kv_caches[r]->setLength(length);
        args.kv_caches[r]->truncate(length);
    }
}

void Engine::runChunks(const BatchArgs &args, const ChunkSink &sink) {
    for (const Chunk &chunk : cutIntoChunks(args, config_.max_step_tokens)) {
        const std::vector<StepPlan> plans = plansOf(chunk, args);
        group_.run([&](uint32_t rank) { forward_[rank]->run(plans[rank], cancel_); });
        sink(chunk);
        stopIfCancelled("after the logits");
    }
}

// With a large vocabulary logits take as long as layers do.
void Engine::stopIfCancelled(const char *where) const {
    if (cancel_.load(std::memory_order_relaxed)) {
        fail(QWEN3_STATUS_CANCELLED, "cancelled %s", where);
    }
}

// The plans of all ranks, which differ in the KV blocks only.
std::vector<StepPlan> Engine::plansOf(const Chunk &chunk, const BatchArgs &args) {
    const size_t half = config_.dh / 2;
    for (const Piece &piece : chunk.pieces) {
        const uint32_t pos = args.req_pos[piece.request] + piece.first;
        for (uint32_t i = 0; i < piece.ntok; ++i) {
            const size_t row = piece.row + i;
            rope_.fill(pos + i, rope_cos_.data() + row * half, rope_sin_.data() + row * half);
        }
    }
    std::vector<StepPlan> plans(group_.size());
    for (uint32_t rank = 0; rank < group_.size(); ++rank) {
        StepPlan &plan = plans[rank];
        plan.tokens = args.tokens + chunk.first_token;
        plan.ntok = chunk.ntok;
        plan.rope_cos = rope_cos_.data();
        plan.rope_sin = rope_sin_.data();
        plan.sequences.reserve(chunk.pieces.size());
        for (const Piece &piece : chunk.pieces) {
            plan.sequences.push_back({piece.row, piece.ntok, args.req_pos[piece.request] + piece.first,
                                      args.kv_caches[piece.request]->blocks(rank)});
        }
    }
    return plans;
}

// Logits [nrows, dvoc] of rows of the step that ran last; each rank writes the columns of its part of the vocabulary.
void Engine::readLogits(const uint32_t *rows, uint32_t nrows, float *logits) {
    stopIfCancelled("before logits");
    group_.run(
        [&](uint32_t rank) { forward_[rank]->logits(rows, nrows, logits + slices_[rank].first_vocab, config_.dvoc); });
}

void Engine::forward(const BatchArgs &args, float *logits) {
    const std::lock_guard<std::mutex> lock(mutex_);
    execute(args, [&](const Chunk &chunk) {
        uint32_t rows[kLogitRows];
        for (uint32_t first = 0; first < chunk.ntok; first += kLogitRows) {
            const uint32_t count = std::min(kLogitRows, chunk.ntok - first);
            std::iota(rows, rows + count, first);
            readLogits(rows, count, logits + size_t{chunk.first_token + first} * config_.dvoc);
        }
    });
}

void Engine::embed(const BatchArgs &args, const std::vector<uint32_t> &rows, float *states) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto next = rows.begin();
    execute(args, [&](const Chunk &chunk) {
        std::vector<uint32_t> here;  // rows of the step
        for (; next != rows.end() && *next < chunk.first_token + chunk.ntok; ++next) {
            here.push_back(*next - chunk.first_token);
        }
        if (here.empty()) {
            return;
        }
        group_.run([&](uint32_t rank) {
            if (rank == 0) {  // all ranks have the whole residual stream
                forward_[rank]->hidden(here.data(), static_cast<uint32_t>(here.size()), states);
            }
        });
        states += here.size() * config_.d;
    });
}

void Engine::infer(const BatchArgs &args, const Qwen3SamplingParams *params, Qwen3SampleResult *results) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Chooser::ReadLogits read_logits = [this](const uint32_t *rows, uint32_t nrows, float *logits) {
        readLogits(rows, nrows, logits);
    };
    chooser_.begin(args, params);
    execute(args, [&](const Chunk &chunk) { chooser_.choose(chunk, read_logits); });
    chooser_.finish(results);
    for (uint32_t r = 0; r < args.nreq; ++r) {
        args.kv_caches[r]->truncate(args.req_pos[r] + args.req_lens[r] - chooser_.rejected(r));
    }
}

void Engine::cancel() noexcept {
    if (running_.load()) {
        cancel_.store(true);
    }
}

Qwen3Stats Engine::stats() {
    const std::lock_guard<std::mutex> lock(mutex_);
    Qwen3Stats stats{};
    const PackedLinear *counted = nullptr;  // an embedding that ranks share is counted once
    for (uint32_t rank = 0; rank < group_.size(); ++rank) {
        const ModelWeights &weights = forward_[rank]->weights();
        stats.weight_bytes += weights.bytes();
        stats.expert_file_bytes += weights.fileBytes();
        stats.weight_bytes += weights.embedding.get() == counted ? 0 : weights.embedding->bytes();
        counted = weights.embedding.get();
        stats.scratch_bytes += backends_[rank]->scratchBytes();
        stats.nthreads += backends_[rank]->threads();
    }
    stats.kv_used_bytes = pool_->usedBytes();
    stats.kv_limit_bytes = pool_->limitBytes();
    stats.kv_block_bytes = pool_->blockBytes();
    stats.kv_block_tokens = pool_->blockTokens();
    stats.ncaches = static_cast<uint32_t>(caches_.size());
    stats.weight_cache = forward_[0]->weights().cache;
    return stats;
}

}  // namespace q3
