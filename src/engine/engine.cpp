#include "engine/engine.h"

#include <algorithm>
#include <random>

#include "runtime/cpu_info.h"
#include "runtime/error.h"
#include "runtime/numa.h"

namespace q3 {
namespace {

// Logit rows computed at a time: one pass over the head serves them all, at dvoc * 4 bytes each.
constexpr uint32_t kLogitRows = 64;

uint64_t randomSeed() {
    std::random_device device;
    return uint64_t{device()} << 32 | device();
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

// Whether the ranks' threads have CPUs of their own, so that polling for each other takes nobody's time.
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

Engine::Engine(const ModelConfig &config, float theta, const Qwen3Weights &weights,
               const BackendOptions &backend_options, const std::vector<int32_t> &dev_ids,
               const Qwen3ModelOptions &options)
    : config_(config), rope_(config.dh, theta, options),
      slices_(splitModel(config, static_cast<uint32_t>(dev_ids.size()))),
      group_(static_cast<uint32_t>(slices_.size()), ranksMaySpin(backend_options, slices_.size()),
             ranksPlaces(backend_options, slices_.size())),
      reduce_(group_.barrier(), group_.size()),
      backends_(makeBackends(configsOf(slices_), backend_options, dev_ids, group_, reduce_)), forward_(slices_.size()),
      sampler_(config.dvoc), seed_(options.has_seed != 0 ? options.seed : randomSeed()) {
    std::vector<ModelWeights> packed = packWeights(config, slices_, weights, options, backends_, group_);
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
    const std::string first = backends_[0]->description();
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

// Looks the handle up before it is dereferenced, so that a dropped or foreign one is an error and not a crash.
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

// Takes all blocks that the call will need, or changes nothing.
void Engine::reserve(const BatchArgs &args) {
    uint64_t needed = 0;
    std::vector<const BlockPool::Block *> shared;
    for (uint32_t r = 0; r < args.nreq; ++r) {
        needed += args.kv_caches[r]->blocksNeeded(args.req_pos[r], args.req_lens[r], shared);
    }
    std::sort(shared.begin(), shared.end());
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

// Cuts the call into steps of at most max_step_tokens, in the order of the tokens.
void Engine::runChunks(const BatchArgs &args, const ChunkSink &sink) {
    uint32_t request = 0;
    uint32_t done = 0;  // tokens of `request` already run
    for (uint32_t first = 0; first < args.ntok;) {
        Chunk chunk;
        chunk.first_token = first;
        chunk.plans.resize(group_.size());
        while (request < args.nreq && chunk.ntok < config_.max_step_tokens) {
            const uint32_t left = args.req_lens[request] - done;
            const uint32_t take = std::min(left, config_.max_step_tokens - chunk.ntok);
            addSequence(chunk, take, args.req_pos[request] + done, *args.kv_caches[request]);
            chunk.parts.push_back({request, done});
            done += take;
            if (take == left) {
                ++request;
                done = 0;
            }
        }
        fillRope(chunk);
        for (StepPlan &plan : chunk.plans) {
            plan.tokens = args.tokens + first;
            plan.ntok = chunk.ntok;
            plan.rope_cos = rope_cos_.data();
            plan.rope_sin = rope_sin_.data();
        }
        group_.run([&](uint32_t rank) { forward_[rank]->run(chunk.plans[rank], cancel_); });
        sink(chunk);
        first += chunk.ntok;
    }
}

void Engine::addSequence(Chunk &chunk, uint32_t ntok, uint32_t pos, const KVCache &cache) {
    for (uint32_t rank = 0; rank < group_.size(); ++rank) {
        chunk.plans[rank].sequences.push_back({chunk.ntok, ntok, pos, cache.blocks(rank)});
    }
    chunk.ntok += ntok;
}

void Engine::fillRope(Chunk &chunk) {
    const size_t half = config_.dh / 2;
    for (const Sequence &sequence : chunk.plans[0].sequences) {
        for (uint32_t i = 0; i < sequence.ntok; ++i) {
            const size_t row = sequence.row + i;
            rope_.fill(sequence.pos + i, rope_cos_.data() + row * half, rope_sin_.data() + row * half);
        }
    }
}

// Logits [nrows, dvoc] of rows of the step that ran last; each rank writes the columns of its part of the vocabulary.
void Engine::computeLogits(const uint32_t *rows, uint32_t nrows, float *logits) {
    group_.run(
        [&](uint32_t rank) { forward_[rank]->logits(rows, nrows, logits + slices_[rank].first_vocab, config_.dvoc); });
}

void Engine::forward(const BatchArgs &args, float *logits) {
    const std::lock_guard<std::mutex> lock(mutex_);
    execute(args, [&](const Chunk &chunk) {
        uint32_t rows[kLogitRows];
        for (uint32_t first = 0; first < chunk.ntok; first += kLogitRows) {
            const uint32_t count = std::min(kLogitRows, chunk.ntok - first);
            for (uint32_t i = 0; i < count; ++i) {
                rows[i] = first + i;
            }
            computeLogits(rows, count, logits + size_t{chunk.first_token + first} * config_.dvoc);
        }
    });
}

void Engine::infer(const BatchArgs &args, const Qwen3SamplingParams *params, Qwen3SampleResult *results) {
    const std::lock_guard<std::mutex> lock(mutex_);
    sampled_.resize(std::max<size_t>(sampled_.size(), args.nreq));
    for (uint32_t r = 0; r < args.nreq; ++r) {
        Sampled &s = sampled_[r];
        s.top_tokens.resize(params[r].top_logprobs);
        s.top_logprobs.resize(params[r].top_logprobs);
        s.history.clear();
        s.settled = params[r].skip != 0;
        s.result = {};
        s.result.top_tokens = s.top_tokens.data();
        s.result.top_logprobs = s.top_logprobs.data();
    }
    execute(args, [&](const Chunk &chunk) { sampleChunk(chunk, args, params); });
    for (uint32_t r = 0; r < args.nreq; ++r) {
        const Sampled &sampled = sampled_[r];
        results[r].token = sampled.result.token;
        results[r].logprob = sampled.result.logprob;
        results[r].ntop = sampled.result.ntop;
        results[r].naccepted = sampled.result.naccepted;
        std::copy_n(sampled.top_tokens.begin(), sampled.result.ntop, results[r].top_tokens);
        std::copy_n(sampled.top_logprobs.begin(), sampled.result.ntop, results[r].top_logprobs);
        const auto rejected = static_cast<uint32_t>(params[r].ndraft) - sampled.result.naccepted;
        args.kv_caches[r]->truncate(args.req_pos[r] + args.req_lens[r] - rejected);
    }
}

// Chooses after the last token of each request that ends here, and after drafts as long as they are right.
void Engine::sampleChunk(const Chunk &chunk, const BatchArgs &args, const Qwen3SamplingParams *params) {
    std::vector<SampledRow> rows;
    for (size_t i = 0; i < chunk.parts.size(); ++i) {
        const Sequence &sequence = chunk.plans[0].sequences[i];
        const uint32_t r = chunk.parts[i].request;
        const uint32_t first = chunk.parts[i].first;
        const uint32_t choose = args.req_lens[r] - 1 - static_cast<uint32_t>(params[r].ndraft);
        for (uint32_t index = std::max(first, choose); index < first + sequence.ntok; ++index) {
            rows.push_back({sequence.row + index - first, r, index});
        }
    }
    for (size_t next = 0; next < rows.size();) {
        SampledRow batch[kLogitRows];
        uint32_t indices[kLogitRows];
        uint32_t count = 0;
        for (; next < rows.size() && count < kLogitRows; ++next) {
            if (!sampled_[rows[next].request].settled) {
                batch[count] = rows[next];
                indices[count++] = rows[next].row;
            }
        }
        if (count == 0) {
            break;
        }
        logits_.resize(std::max(logits_.size(), size_t{count} * config_.dvoc));
        computeLogits(indices, count, logits_.data());
        for (uint32_t j = 0; j < count; ++j) {
            sampleRow(batch[j], logits_.data() + size_t{j} * config_.dvoc, chunk, args, params);
        }
    }
}

void Engine::sampleRow(const SampledRow &row, float *logits, const Chunk &chunk, const BatchArgs &args,
                       const Qwen3SamplingParams *params) {
    Sampled &s = sampled_[row.request];
    if (s.settled) {
        return;
    }
    Qwen3SamplingParams p = params[row.request];
    if (s.result.naccepted > 0) {
        p.history = s.history.data();
        p.nhistory += s.result.naccepted;
        p.ngenerated += s.result.naccepted;
    }
    sampler_.sample(logits, p, args.req_pos[row.request] + row.index, s.result);
    s.settled =
        row.index + 1 == args.req_lens[row.request] || args.tokens[chunk.first_token + row.row + 1] != s.result.token;
    if (!s.settled) {
        if (s.result.naccepted == 0) {
            s.history.assign(p.history, p.history + p.nhistory);
        }
        s.history.push_back(s.result.token);
        ++s.result.naccepted;
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
