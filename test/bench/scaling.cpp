// How the work of a step divides over many threads: forks, claims, and how evenly the claims can be shared out. Runs
// the real step with as many threads as asked for, more than there are cores if need be, and watches its forks. What a
// fork costs is left out; docs/scaling.md adds it.
//   scaling DTYPE D NLAYER NH NKVH DH DI DVOC CONTEXT TOKENS SEQUENCES THREADS...
// DTYPE is bf16, int8 or int4. A step computes TOKENS more tokens of each sequence after CONTEXT tokens. One line of
// JSON per number of threads. Models of one and of two layers are run, and what the second adds counts NLAYER times.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <queue>
#include <random>
#include <string>
#include <vector>

#include "infinicore_infer/models/qwen3.h"
#include "runtime/thread_pool.h"

namespace {

struct Totals {
    double forks = 0, alone = 0, claims = 0;
    double work = 0;     // thread-seconds of all forks
    double longest = 0;  // thread-seconds if all threads took as long as the last one of each fork

    Totals &add(const Totals &more, double times) {
        forks += times * more.forks;
        alone += times * more.alone;
        claims += times * more.claims;
        work += times * more.work;
        longest += times * more.longest;
        return *this;
    }
};

Totals seen;

// Counts the claims of a fork and returns when the last one ends, if each takes as long as its size says: threads claim
// as in a step, whoever is free first.
uint32_t shareOut(const q3::ThreadPool::Fork &fork) {
    q3::ThreadRanges ranges(fork.nthreads);
    ranges.divide(fork.count, fork.least, fork.most);
    std::vector<q3::ThreadRanges::Claims> claims;
    using Busy = std::pair<uint32_t, uint32_t>;  // until when, and which thread
    std::priority_queue<Busy, std::vector<Busy>, std::greater<>> threads;
    for (uint32_t i = 0; i < fork.nthreads; ++i) {
        claims.emplace_back(ranges, i);
        threads.push({0, i});
    }
    uint32_t last = 0, begin = 0, end = 0;
    while (!threads.empty()) {
        const auto [now, thread] = threads.top();
        threads.pop();
        if (fork.in_order) {
            begin = end;
            end = std::min(fork.count, begin + fork.least);
        } else if (!claims[thread].next(begin, end)) {
            begin = end;
        }
        if (begin < end) {
            seen.claims += 1;
            last = std::max(last, now + end - begin);
            threads.push({now + end - begin, thread});
        }
    }
    return last;
}

void watch(const q3::ThreadPool::Fork &fork) {
    uint32_t last = fork.count;
    if (fork.alone()) {
        seen.alone += 1;
        seen.claims += 1;
    } else {
        seen.forks += 1;
        last = shareOut(fork);
    }
    seen.work += fork.seconds;
    seen.longest += fork.seconds * last * fork.nthreads / fork.count;
}

[[noreturn]] void stop(const char *what) {
    std::fprintf(stderr, "scaling: %s: %s\n", what, qwen3LastError());
    std::exit(1);
}

struct Order {
    int32_t dtype;
    uint32_t context, tokens, sequences;
};

Totals run(Qwen3Meta meta, const Order &order, int32_t threads, const std::vector<uint16_t> &random,
           const std::vector<float> &ones) {
    std::vector<const void *> matrices(meta.nlayer, random.data());
    std::vector<const void *> norms(meta.nlayer, ones.data());
    Qwen3Weights weights{};
    weights.nlayer = meta.nlayer;
    weights.dt_norm = QWEN3_DTYPE_F32;
    weights.dt_mat = QWEN3_DTYPE_BF16;
    weights.input_embd = weights.output_embd = random.data();
    weights.output_norm = ones.data();
    weights.attn_norm = weights.attn_q_norm = weights.attn_k_norm = weights.ffn_norm = norms.data();
    weights.attn_qkv = weights.attn_o = weights.ffn_gate_up = weights.ffn_down = matrices.data();
    Qwen3ModelOptions options = QWEN3_MODEL_OPTIONS_INIT;
    options.nthreads = threads;
    options.dt_weight = order.dtype;
    options.borrow_weights = 1;
    Qwen3Model *model = createQwen3ModelEx(&meta, &weights, QWEN3_DEVICE_CPU, 1, nullptr, &options);
    if (model == nullptr) {
        stop("create");
    }
    std::vector<KVCache *> caches;
    const auto step = [&](uint32_t from, uint32_t count) {
        const auto n = static_cast<uint32_t>(caches.size());
        const std::vector<uint32_t> ids(size_t{n} * count, 1);
        const std::vector<uint32_t> lens(n, count);
        const std::vector<uint32_t> at(n, from);
        const std::vector<float> temperature(n, 0.0F);
        const std::vector<uint32_t> topk(n, 1);
        const std::vector<float> topp(n, 1.0F);
        std::vector<uint32_t> out(n);
        if (inferBatch(model, ids.data(), n * count, lens.data(), n, at.data(), caches.data(), temperature.data(),
                       topk.data(), topp.data(), out.data()) != QWEN3_STATUS_SUCCESS) {
            stop("step");
        }
    };
    for (uint32_t i = 0; i < order.sequences; ++i) {
        caches.push_back(createKVCache(model));
    }
    if (order.context > 0) {
        step(0, order.context);
    }
    step(order.context, order.tokens);  // warms up
    seen = {};
    q3::ThreadPool::observe(watch);
    step(order.context, order.tokens);
    q3::ThreadPool::observe(nullptr);
    const Totals totals = seen;
    for (KVCache *cache : caches) {
        dropKVCache(model, cache);
    }
    destroyQwen3Model(model);
    return totals;
}

int32_t dtypeNamed(const std::string &name) {
    return name == "bf16" ? QWEN3_DTYPE_BF16 : name == "int8" ? QWEN3_DTYPE_INT8 : QWEN3_DTYPE_INT4;
}

}  // namespace

int main(int argc, char **argv) {
    if (argc < 13) {
        std::fprintf(stderr, "usage: scaling DTYPE D NLAYER NH NKVH DH DI DVOC CONTEXT TOKENS SEQUENCES THREADS...\n");
        return 2;
    }
    const auto number = [&](int i) { return static_cast<uint32_t>(std::strtoul(argv[i], nullptr, 10)); };
    Qwen3Meta meta{};
    meta.dt_logits = QWEN3_DTYPE_BF16;
    meta.d = number(2);
    const double layers = number(3);
    meta.nh = number(4);
    meta.nkvh = number(5);
    meta.dh = number(6);
    meta.di = number(7);
    meta.dvoc = number(8);
    const Order order{dtypeNamed(argv[1]), number(9), number(10), number(11)};
    meta.dctx = order.context + 2 * order.tokens;
    meta.epsilon = 1e-6F;
    meta.theta = 1e6F;

    const size_t widest = std::max<size_t>({meta.dvoc, meta.di * 2, (meta.nh + 2 * meta.nkvh) * meta.dh});
    std::vector<uint16_t> random(widest * std::max<size_t>({meta.d, meta.di, meta.nh * meta.dh}));
    std::mt19937 generator(1);
    for (uint16_t &value : random) {
        value = static_cast<uint16_t>(0x3c00 | (generator() & 0x80ff));  // bf16, about +-0.01
    }
    const std::vector<float> ones(std::max<size_t>(meta.d, meta.dh), 1.0F);
    for (int i = 12; i < argc; ++i) {
        const auto threads = static_cast<int32_t>(number(i));
        meta.nlayer = 1;
        Totals one = run(meta, order, threads, random, ones);
        meta.nlayer = 2;
        Totals layer = run(meta, order, threads, random, ones);
        layer.add(one, -1);
        one.add(layer, layers - 1);
        std::printf("{\"threads\": %d, \"forks\": %.0f, \"alone\": %.0f, \"claims\": %.0f, \"layer_forks\": %.0f, "
                    "\"balance\": %.4f}\n",
                    threads, one.forks, one.alone, one.claims, layer.forks, one.work / one.longest);
        std::fflush(stdout);
    }
    return 0;
}
