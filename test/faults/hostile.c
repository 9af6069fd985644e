/*
 * Callers and systems that mean harm, or might as well: garbage in every field, many threads on one model with somebody
 * cancelling, timers that interrupt everything, forks amid create(), and limits on memory and descriptors.
 */
#define _GNU_SOURCE
#include "fault_driver.h"

#include <errno.h>
#include <float.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static uint32_t g_random = 12345;

static uint32_t draw(uint32_t below) {
    g_random = g_random * 1664525u + 1013904223u;
    return (g_random >> 8) % below;
}

static rlim_t limitMemory(rlim_t more, struct rlimit *old) {
    getrlimit(RLIMIT_AS, old);
    struct rlimit small = *old;
    small.rlim_cur = statusField("/proc/self/status", "VmSize:", 10) * 1024 + more;
    setrlimit(RLIMIT_AS, &small);
    return small.rlim_cur;
}

/* ------------------------------------------------------------------ garbage */

/* Zero, small, huge and negative integers; NaN, infinities, and floats that are huge, tiny or below zero. */
static uint32_t oddWord(void) {
    static const uint32_t odd[] = {0,          1,          2,          3,          16,         0x7fffffff, 0x80000000,
                                   0xffffffff, 0x7fc00000, 0x7f800000, 0xff800000, 0x7f7fffff, 0x00000001, 0xbf800000,
                                   0x3f800000, 0x10000,    0x01000000, 0x40000000, 65,         1025};
    const uint32_t which = draw(sizeof odd / sizeof *odd + 1);
    return which < sizeof odd / sizeof *odd ? odd[which] : draw(1u << 24) << 8 | draw(256);
}

static void spoil(void *data, size_t first, size_t end) {
    const uint32_t word = oddWord();
    memcpy((char *)data + first + draw((uint32_t)((end - first) / 4)) * 4, &word, 4);
}

/* garbage ROUNDS: a few fields are anything at all; an error that is named, or a model that works. */
void garbage(char **argv) {
    const int rounds = atoi(argv[0]);
    const Qwen3Meta meta = g_meta;
    const Qwen3ModelOptions options = g_options;
    struct rlimit old;
    learnExpected();
    Qwen3Model *good = create();
    limitMemory(256u << 20, &old);
    int made = 0, answered = 0;
    for (int i = 0; i < rounds; ++i) {
        g_meta = meta;
        g_options = options;
        for (uint32_t n = draw(3); n < 3; ++n) {
            if (draw(2) == 0) {
                spoil(&g_meta, 0, sizeof g_meta);
            } else { /* pointers apart, of which nothing can be known */
                spoil(&g_options, sizeof(size_t), offsetof(Qwen3ModelOptions, progress));
                spoil(&g_options, offsetof(Qwen3ModelOptions, ntensors), sizeof g_options);
            }
        }
        g_options.nthreads = draw(8) == 0 ? g_options.nthreads : 1;
        g_ndev = draw(16) == 0 ? (int32_t)oddWord() : 1;
        Qwen3Model *model = create();
        made += model != NULL;
        CHECK(model != NULL || (qwen3LastStatus() != QWEN3_STATUS_SUCCESS &&
                                qwen3LastStatus() != QWEN3_STATUS_INTERNAL_ERROR && qwen3LastError()[0] != '\0'),
              "round %d: %s: %s", i, qwen3StatusName(qwen3LastStatus()), qwen3LastError());
        destroyQwen3Model(model);

        const uint32_t pos = 0, ntok = 2 + draw(8);
        Qwen3SamplingParams params = QWEN3_SAMPLING_PARAMS_INIT;
        Qwen3SampleResult result = {sizeof result, 0, 0, 0.0f, 0, NULL, NULL};
        for (uint32_t n = draw(4); n < 4; ++n) {
            const size_t places[][2] = {
                {offsetof(Qwen3SamplingParams, temperature), offsetof(Qwen3SamplingParams, history)},
                {offsetof(Qwen3SamplingParams, nhistory), offsetof(Qwen3SamplingParams, bias_tokens)},
                {offsetof(Qwen3SamplingParams, nbias), offsetof(Qwen3SamplingParams, nbias) + 4},
                {offsetof(Qwen3SamplingParams, top_logprobs), sizeof params}};
            const uint32_t which = draw(4);
            spoil(&params, places[which][0], places[which][1]);
        }
        KVCache *cache = createKVCache(good);
        const int32_t status = inferBatchEx(good, g_prompt, ntok, &ntok, 1, &pos, &cache, &params, &result);
        answered += status == QWEN3_STATUS_SUCCESS;
        /* As the header says; comparisons with NaN are false. */
        const int legal = params.temperature >= 0 && params.temperature <= FLT_MAX && params.top_p > 0 &&
                          params.top_p <= 1 && params.min_p >= 0 && params.min_p < 1 && params.repetition_penalty > 0 &&
                          params.repetition_penalty <= FLT_MAX && params.presence_penalty >= -2 &&
                          params.presence_penalty <= 2 && params.frequency_penalty >= -2 &&
                          params.frequency_penalty <= 2 && params.top_logprobs <= 128 && params.ndraft < ntok;
        CHECK(status != QWEN3_STATUS_SUCCESS || legal, "round %d: illegal parameters were accepted", i);
        CHECK(status == QWEN3_STATUS_SUCCESS ? result.token < VOCABULARY
                                             : status == QWEN3_STATUS_BAD_PARAM || status == QWEN3_STATUS_NULL_POINTER,
              "round %d: %s: %s", i, qwen3StatusName(status), qwen3LastError());
        dropKVCache(good, cache);
    }
    setrlimit(RLIMIT_AS, &old);
    g_meta = meta;
    g_options = options;
    checkUsable(good, __LINE__);
    destroyQwen3Model(good);
    printf("%d models made, %d answers\n", made, answered);
    CHECK(made > 0 && made < rounds && answered > 0 && answered < rounds, "all alike");
}

/* ------------------------------------------------------------------ many threads */

static Qwen3Model *g_models[2];
static volatile int g_over = 0;

static void *work(void *argument) {
    const int which = (int)(intptr_t)argument % 2;
    Qwen3Model *model = g_models[which];
    float logits[NPROMPT * VOCABULARY];
    for (int i = 0; i < 60; ++i) {
        KVCache *cache = createKVCache(model);
        uint32_t pos = 0, ntok = HALF, length = 0;
        int32_t status = forwardBatch(model, g_prompt, ntok, &ntok, 1, &pos, &cache, logits);
        if (status == QWEN3_STATUS_SUCCESS) {
            KVCache *copy = duplicateKVCache(model, cache, HALF);
            pos = HALF;
            ntok = NPROMPT - HALF;
            status = forwardBatch(model, g_prompt + HALF, ntok, &ntok, 1, &pos, &copy, logits + HALF * VOCABULARY);
            const size_t rows = status == QWEN3_STATUS_SUCCESS ? NPROMPT : HALF;
            CHECK(memcmp(logits, g_expected, rows * VOCABULARY * sizeof(float)) == 0, "other bits");
            dropKVCache(model, copy);
        }
        CHECK(status == QWEN3_STATUS_SUCCESS || status == QWEN3_STATUS_CANCELLED, "%s", qwen3LastError());
        /* A cache of one model is none of the other, and whoever asks for it hears so. */
        CHECK(qwen3KVCacheLength(g_models[1 - which], cache, &length) == QWEN3_STATUS_CACHE_MISMATCH, "%s",
              qwen3LastError());
        dropKVCache(g_models[1 - which], cache);
        CHECK(qwen3KVCacheLength(model, cache, &length) == QWEN3_STATUS_SUCCESS, "%s", qwen3LastError());
        dropKVCache(model, cache);
    }
    return NULL;
}

static void *disturb(void *argument) {
    Qwen3Stats stats;
    memset(&stats, 0, sizeof stats);
    stats.struct_size = sizeof stats;
    for (unsigned i = 0; !g_over; ++i) {
        Qwen3Model *model = g_models[i % 2];
        if (i % 8 == 0) {
            qwen3Cancel(model);
        }
        (void)qwen3GetStats(model, &stats);
        usleep(200);
    }
    return argument;
}

/* crowd: two models, eight threads, and one that cancels whatever runs at odd moments. */
void crowd(char **argv) {
    (void)argv;
    learnExpected();
    g_models[0] = create();
    g_models[1] = create();
    pthread_t threads[8], disturber;
    pthread_create(&disturber, NULL, disturb, NULL);
    for (intptr_t i = 0; i < 8; ++i) {
        pthread_create(&threads[i], NULL, work, (void *)i);
    }
    for (int i = 0; i < 8; ++i) {
        pthread_join(threads[i], NULL);
    }
    g_over = 1;
    pthread_join(disturber, NULL);
    /* A cache outlives its model as a handle only. */
    KVCache *cache = createKVCache(g_models[0]);
    destroyQwen3Model(g_models[0]);
    uint32_t length = 0;
    CHECK(qwen3KVCacheLength(g_models[1], cache, &length) == QWEN3_STATUS_CACHE_MISMATCH, "%s", qwen3LastError());
    CHECK(duplicateKVCache(g_models[1], cache, 0) == NULL, "a copy of a cache that went with its model");
    dropKVCache(g_models[1], cache);
    checkUsable(g_models[1], __LINE__);
    destroyQwen3Model(g_models[1]);
}

/* ------------------------------------------------------------------ signals and forks */

static volatile sig_atomic_t g_ticks = 0;

static void tick(int number) {
    (void)number;
    ++g_ticks;
}

/* interrupted FOLDER: a timer without SA_RESTART, every 100 microseconds, fails and changes nothing. */
void interrupted(char **argv) {
    char caches[4096], weights[4096];
    snprintf(caches, sizeof caches, "%s/cache", argv[0]);
    snprintf(weights, sizeof weights, "%s/weights", argv[0]);
    learnExpected();
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = tick;
    sigaction(SIGALRM, &action, NULL);
    const struct itimerval often = {{0, 100}, {0, 100}}, never = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &often, NULL);
    for (int i = 0; i < 30 || (g_ticks < 200 && i < 3000); ++i) {
        g_options.cache_path = i % 2 == 0 ? NULL : weights;
        Qwen3Model *model = create();
        CHECK(model != NULL, "%s", qwen3LastError());
        CHECK(qwen3SaveWeights(model, weights, NULL) == QWEN3_STATUS_SUCCESS, "%s", qwen3LastError());
        KVCache *cache = createKVCache(model);
        float logits[HALF * VOCABULARY];
        uint32_t pos = 0, ntok = HALF, tokens[CONTEXT], length = 0;
        CHECK(forwardBatch(model, g_prompt, ntok, &ntok, 1, &pos, &cache, logits) == QWEN3_STATUS_SUCCESS, "%s",
              qwen3LastError());
        CHECK(memcmp(logits, g_expected, sizeof logits) == 0, "other bits");
        CHECK(qwen3SaveKVCache(model, cache, g_prompt, HALF, caches) == QWEN3_STATUS_SUCCESS, "%s", qwen3LastError());
        KVCache *loaded = qwen3LoadKVCache(model, caches, tokens, CONTEXT, &length);
        CHECK(loaded != NULL && length == HALF, "%s", qwen3LastError());
        destroyQwen3Model(model);
    }
    setitimer(ITIMER_REAL, &never, NULL);
    CHECK(g_ticks > 50, "only %d signals came", (int)g_ticks);
}

static void *createForEver(void *argument) {
    while (!g_over) {
        destroyQwen3Model(create());
    }
    return argument;
}

/* fork-create: a child that is forked while another thread creates a model can create one itself. */
void forkAmidCreate(char **argv) {
    (void)argv;
    learnExpected();
    for (g_ndev = 1; g_ndev <= 2; ++g_ndev) {
        learnExpected();
        pthread_t thread;
        g_over = 0;
        pthread_create(&thread, NULL, createForEver, NULL);
        for (int i = 0; i < 25; ++i) {
            usleep(draw(3000));
            fflush(NULL);
            const pid_t child = fork();
            if (child == 0) {
                within(20);
                g_checks = g_failures = 0;
                Qwen3Model *own = create();
                CHECK(own != NULL, "%s", qwen3LastError());
                (void)qwen3BuildInfo(NULL);
                checkUsable(own, __LINE__);
                destroyQwen3Model(own);
                fflush(NULL);
                _exit(g_failures == 0 ? 0 : 1);
            }
            int result = -1;
            waitpid(child, &result, 0);
            CHECK(result == 0, "the child ended with %d", result);
        }
        g_over = 1;
        pthread_join(thread, NULL);
    }
}

/* ------------------------------------------------------------------ limits of the process */

/* process-limits FOLDER: too little address space, too few descriptors. */
void processLimits(char **argv) {
    char weights[4096], caches[4096];
    struct rlimit old;
    snprintf(weights, sizeof weights, "%s/weights", argv[0]);
    snprintf(caches, sizeof caches, "%s/cache", argv[0]);
    learnExpected();
    int failed = 0, made = 0;
    for (rlim_t more = 0; more <= 512u << 20; more += (256u << 10) + more / 16) {
        limitMemory(more, &old);
        Qwen3Model *model = create();
        setrlimit(RLIMIT_AS, &old);
        failed += model == NULL;
        made += model != NULL;
        CHECK(model != NULL || qwen3LastStatus() == QWEN3_STATUS_OUT_OF_MEMORY, "%s: %s",
              qwen3StatusName(qwen3LastStatus()), qwen3LastError());
        if (model != NULL) {
            checkUsable(model, __LINE__);
        }
        destroyQwen3Model(model);
    }
    CHECK(failed > 0 && made > 0, "%d failed, %d did not", failed, made);

    Qwen3Model *model = create();
    KVCache *cache = createKVCache(model);
    float logits[HALF * VOCABULARY];
    uint32_t pos = 0, ntok = HALF, tokens[CONTEXT], length = 0;
    CHECK(forwardBatch(model, g_prompt, ntok, &ntok, 1, &pos, &cache, logits) == QWEN3_STATUS_SUCCESS, "%s",
          qwen3LastError());
    CHECK(qwen3SaveWeights(model, weights, NULL) == QWEN3_STATUS_SUCCESS, "%s", qwen3LastError());
    CHECK(qwen3SaveKVCache(model, cache, g_prompt, HALF, caches) == QWEN3_STATUS_SUCCESS, "%s", qwen3LastError());
    g_options.cache_path = weights;
    getrlimit(RLIMIT_NOFILE, &old);
    struct rlimit none = old;
    none.rlim_cur = 0;
    setrlimit(RLIMIT_NOFILE, &none);
    Qwen3Model *other = create();
    const int32_t status = qwen3LastStatus();
    const int32_t saved = qwen3SaveWeights(model, weights, NULL);
    const int32_t kept = qwen3SaveKVCache(model, cache, g_prompt, HALF, caches);
    KVCache *loaded = qwen3LoadKVCache(model, caches, tokens, CONTEXT, &length);
    const int32_t unread = qwen3LastStatus();
    setrlimit(RLIMIT_NOFILE, &old);
    CHECK(other != NULL, "%s", qwen3StatusName(status));
    Qwen3Stats stats;
    memset(&stats, 0, sizeof stats);
    stats.struct_size = sizeof stats;
    CHECK(qwen3GetStats(other, &stats) == QWEN3_STATUS_SUCCESS && stats.weight_cache == QWEN3_CACHE_UNREADABLE,
          "the weights are in state %d", stats.weight_cache);
    checkUsable(other, __LINE__);
    CHECK(saved == QWEN3_STATUS_IO_ERROR && kept == QWEN3_STATUS_IO_ERROR, "%s, %s", qwen3StatusName(saved),
          qwen3StatusName(kept));
    CHECK(loaded == NULL && unread == QWEN3_STATUS_UNREADABLE, "%s", qwen3StatusName(unread));
    loaded = qwen3LoadKVCache(model, caches, tokens, CONTEXT, &length);
    CHECK(loaded != NULL && length == HALF, "the file is lost: %s", qwen3LastError());
    destroyQwen3Model(other);
    destroyQwen3Model(model);
}
