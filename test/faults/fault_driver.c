/*
 * A small model of the C API and what is done to it: faults injected by inject.c, forks, signals, odd floating-point
 * environments and locales. A shared library, so that programs load it as they load bindings: with dlopen, see
 * test_faults.py, which calls fault_main(argc, argv).
 *
 * Every command prints what failed and a summary; its result is the number of failures.
 */
#define _GNU_SOURCE
#include "fault_driver.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fenv.h>
#include <limits.h>
#include <locale.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int g_checks = 0, g_failures = 0;

void report(int passed, int line, const char *format, ...) {
    ++g_checks;
    if (!passed && ++g_failures <= 20) {
        va_list args;
        va_start(args, format);
        fprintf(stderr, "line %d: ", line);
        vfprintf(stderr, format, args);
        fputc('\n', stderr);
        va_end(args);
    }
}

/* ------------------------------------------------------------------ a small random model */

typedef struct {
    const void *layers[NLAYER];
} PerLayer;

static PerLayer g_tensors[11];
Qwen3Meta g_meta = {QWEN3_DTYPE_F32, NLAYER,  WIDTH,      HEADS, KV_HEADS, HEAD,
                    INNER,           CONTEXT, VOCABULARY, 1e-6f, 10000.0f, 1};
Qwen3Weights g_weights;
uint32_t g_prompt[NPROMPT];
float g_expected[NPROMPT * VOCABULARY];
static float g_logits[NPROMPT * VOCABULARY];

/* All tensors lie in one piece of memory, as in a file. */
static size_t tensorFloats(void) {
    const size_t layer =
        2 * WIDTH + 2 * HEAD + (HEADS + 2 * KV_HEADS) * HEAD * WIDTH + HEADS * HEAD * WIDTH + 3 * (size_t)INNER * WIDTH;
    return NLAYER * layer + 2 * (size_t)VOCABULARY * WIDTH + WIDTH;
}

static void fillTensors(float *at) {
    uint32_t state = 7;
    for (size_t i = 0; i < tensorFloats(); ++i) {
        state = state * 1664525u + 1013904223u;
        at[i] = ((float)(state >> 8) - 8388608.0f) / 33554432.0f;
    }
}

/* Cuts the tensors from `at`: the embedding last, so that a file cut short loses it first. */
static void placeTensors(const float *at) {
    const size_t sizes[11] = {WIDTH,
                              HEAD,
                              HEAD,
                              (size_t)HEADS * HEAD * WIDTH,
                              (size_t)KV_HEADS * HEAD * WIDTH,
                              (size_t)KV_HEADS * HEAD * WIDTH,
                              (size_t)HEADS * HEAD * WIDTH,
                              WIDTH,
                              (size_t)INNER * WIDTH,
                              (size_t)INNER * WIDTH,
                              (size_t)INNER * WIDTH};
    const void *const **fields[11] = {&g_weights.attn_norm, &g_weights.attn_q_norm, &g_weights.attn_k_norm,
                                      &g_weights.attn_q,    &g_weights.attn_k,      &g_weights.attn_v,
                                      &g_weights.attn_o,    &g_weights.ffn_norm,    &g_weights.ffn_gate,
                                      &g_weights.ffn_up,    &g_weights.ffn_down};
    memset(&g_weights, 0, sizeof g_weights);
    g_weights.nlayer = NLAYER;
    g_weights.dt_norm = g_weights.dt_mat = QWEN3_DTYPE_F32;
    g_weights.transpose_linear_weights = 1;
    for (int tensor = 0; tensor < 11; ++tensor) {
        for (int layer = 0; layer < NLAYER; ++layer) {
            g_tensors[tensor].layers[layer] = at;
            at += sizes[tensor];
        }
        *fields[tensor] = g_tensors[tensor].layers;
    }
    g_weights.output_norm = at;
    g_weights.output_embd = at + WIDTH;
    g_weights.input_embd = at + WIDTH + (size_t)VOCABULARY * WIDTH;
}

Qwen3ModelOptions g_options = QWEN3_MODEL_OPTIONS_INIT;
int32_t g_ndev = 1;

Qwen3Model *create(void) {
    return createQwen3ModelEx(&g_meta, &g_weights, QWEN3_DEVICE_CPU, g_ndev, NULL, &g_options);
}

static int32_t forward(Qwen3Model *model, KVCache *cache, uint32_t pos, uint32_t ntok) {
    return forwardBatch(model, g_prompt + pos, ntok, &ntok, 1, &pos, &cache, g_logits + (size_t)pos * VOCABULARY);
}

static int sameLogits(uint32_t pos, uint32_t ntok) {
    const size_t first = (size_t)pos * VOCABULARY;
    return memcmp(g_logits + first, g_expected + first, (size_t)ntok * VOCABULARY * sizeof(float)) == 0;
}

/* Whether the model still computes what it did, in a cache of its own. */
void checkUsable(Qwen3Model *model, int line) {
    KVCache *cache = createKVCache(model);
    report(cache != NULL, line, "no cache: %s", qwen3LastError());
    memset(g_logits, 0, sizeof g_logits);
    const int32_t status = forward(model, cache, 0, NPROMPT);
    report(status == QWEN3_STATUS_SUCCESS, line, "forward: %s", qwen3LastError());
    report(sameLogits(0, NPROMPT), line, "logits changed");
    dropKVCache(model, cache);
}

static Qwen3Stats statsOf(Qwen3Model *model) {
    Qwen3Stats stats;
    memset(&stats, 0, sizeof stats);
    stats.struct_size = sizeof stats;
    CHECK(qwen3GetStats(model, &stats) == QWEN3_STATUS_SUCCESS, "stats: %s", qwen3LastError());
    return stats;
}

static void setUp(void) {
    float *weights = malloc(tensorFloats() * sizeof(float));
    fillTensors(weights);
    placeTensors(weights);
    for (uint32_t i = 0; i < NPROMPT; ++i) {
        g_prompt[i] = (i * 37 + 5) % VOCABULARY;
    }
    g_options.nthreads = 2;
    g_options.max_step_tokens = 8;
    g_options.kv_limit_bytes = 1 << 24;
}

void learnExpected(void) {
    Qwen3Model *model = create();
    KVCache *cache = createKVCache(model);
    CHECK(forward(model, cache, 0, NPROMPT) == QWEN3_STATUS_SUCCESS, "%s", qwen3LastError());
    memcpy(g_expected, g_logits, sizeof g_expected);
    dropKVCache(model, cache);
    destroyQwen3Model(model);
}

static void setBackend(const char *name) {
    g_options.backend = QWEN3_BACKEND_CPU;
    if (strcmp(name, "infinicore") == 0) {
        g_options.backend = QWEN3_BACKEND_INFINICORE;
        g_meta.dt_logits = g_options.dt_weight;
    }
}

static int32_t formatNamed(const char *name) {
    const char *names[] = {"f32", "bf16", "int8", "int4", "bf12"};
    const int32_t formats[] = {QWEN3_DTYPE_F32, QWEN3_DTYPE_BF16, QWEN3_DTYPE_INT8, QWEN3_DTYPE_INT4, QWEN3_DTYPE_BF12};
    for (int i = 0; i < 5; ++i) {
        if (strcmp(names[i], name) == 0) {
            return formats[i];
        }
    }
    abort();
}

/* ------------------------------------------------------------------ sweeps: every call of a kind fails once */

enum { FAULT_MEMORY = 1, FAULT_FILES = 2, FAULT_SHORT = 4 };
static void (*fault_arm)(int kind, long nth, int error, int all);
static int (*fault_disarm)(void);
static long (*fault_live_blocks)(void);
static long (*fault_left)(void);
static void (*fault_after_read)(void (*hook)(void), long nth);
static void (*fault_forbid_reads)(int forbidden);

/* What an operation works on. */
typedef struct {
    Qwen3Model *model;
    KVCache *cache; /* holds the first half of the prompt */
    char *path;     /* to write to, or to read from */
} Subject;

/* Operations return a status; success includes that results are right. */
static int32_t statusOf(int passed) {
    return passed ? QWEN3_STATUS_SUCCESS : qwen3LastStatus();
}

static int32_t doCreate(Subject *s) {
    s->model = create();
    return statusOf(s->model != NULL);
}
static int32_t doForward(Subject *s) {
    const int32_t status = forward(s->model, s->cache, HALF, NPROMPT - HALF);
    if (status == QWEN3_STATUS_SUCCESS) {
        CHECK(sameLogits(HALF, NPROMPT - HALF), "wrong logits");
    }
    return status;
}
static int32_t doInfer(Subject *s) {
    const uint32_t pos = HALF, ntok = NPROMPT - HALF;
    uint32_t top[3];
    float logprobs[3];
    Qwen3SamplingParams params = QWEN3_SAMPLING_PARAMS_INIT;
    Qwen3SampleResult result = {sizeof result, 0, 0, 0.0f, 0, top, logprobs};
    params.top_logprobs = 3;
    params.temperature = 0.8f;
    params.history = g_prompt;
    params.nhistory = NPROMPT;
    params.ngenerated = 5;
    params.repetition_penalty = 1.1f;
    params.ndraft = 3;
    return inferBatchEx(s->model, g_prompt + pos, ntok, &ntok, 1, &pos, &s->cache, &params, &result);
}
static int32_t doDuplicate(Subject *s) {
    KVCache *copy = duplicateKVCache(s->model, s->cache, HALF - 1);
    const int32_t status = statusOf(copy != NULL);
    dropKVCache(s->model, copy);
    return status;
}
static int32_t doCache(Subject *s) {
    KVCache *cache = createKVCache(s->model);
    const int32_t status = statusOf(cache != NULL);
    dropKVCache(s->model, cache);
    return status;
}
static int32_t doFingerprint(Subject *s) {
    uint64_t fingerprint = 0;
    return qwen3KVCacheFingerprint(s->model, &fingerprint);
}
static int32_t doSaveCache(Subject *s) {
    return qwen3SaveKVCache(s->model, s->cache, g_prompt, HALF, s->path);
}
static int32_t doLoadCache(Subject *s) {
    uint32_t tokens[CONTEXT], length = 77;
    KVCache *cache = qwen3LoadKVCache(s->model, s->path, tokens, CONTEXT, &length);
    if (cache == NULL) {
        CHECK(length == 77, "a failed load wrote its length");
        return qwen3LastStatus();
    }
    CHECK(length == HALF && memcmp(tokens, g_prompt, sizeof(uint32_t) * HALF) == 0, "wrong tokens");
    const int32_t status = forward(s->model, cache, HALF, NPROMPT - HALF);
    CHECK(status != QWEN3_STATUS_SUCCESS || sameLogits(HALF, NPROMPT - HALF), "wrong logits after loading");
    dropKVCache(s->model, cache);
    return status;
}
static int32_t doSaveWeights(Subject *s) {
    return qwen3SaveWeights(s->model, s->path, "key");
}

typedef struct {
    const char *name;
    int32_t (*run)(Subject *);
    int has_model, fresh; /* the model exists before; a new one for every fault */
} Operation;

static const Operation kOperations[] = {
    {"create", doCreate, 0, 1},           {"load-weights", doCreate, 0, 1},
    {"forward", doForward, 1, 0},         {"infer", doInfer, 1, 0},
    {"duplicate", doDuplicate, 1, 0},     {"cache", doCache, 1, 0},
    {"fingerprint", doFingerprint, 1, 1}, {"save-cache", doSaveCache, 1, 1},
    {"load-cache", doLoadCache, 1, 1},    {"save-weights", doSaveWeights, 1, 0},
};

static void openSubject(Subject *s, const Operation *operation) {
    s->model = NULL;
    s->cache = NULL;
    if (operation->has_model) {
        s->model = create();
        CHECK(s->model != NULL, "%s", qwen3LastError());
        s->cache = createKVCache(s->model);
        CHECK(forward(s->model, s->cache, 0, HALF) == QWEN3_STATUS_SUCCESS, "%s", qwen3LastError());
    }
}

static void closeSubject(Subject *s) {
    dropKVCache(s->model, s->cache);
    destroyQwen3Model(s->model);
    s->model = NULL;
    s->cache = NULL;
}

static int countEntries(const char *folder) {
    DIR *entries = opendir(folder);
    int count = 0;
    while (entries != NULL && readdir(entries) != NULL) {
        ++count;
    }
    closedir(entries);
    return count - 2;
}

/* One call, and what its thread says of it. */
typedef struct {
    const Operation *operation;
    Subject *subject;
    int kind, error, all;
    long nth;
    int fired;
    int32_t status, last_status;
    char message[1024];
} Attempt;

static void *attempt(void *argument) {
    Attempt *a = argument;
    fault_arm(a->kind, a->nth, a->error, a->all);
    a->status = a->operation->run(a->subject);
    a->fired = fault_disarm();
    a->last_status = qwen3LastStatus();
    snprintf(a->message, sizeof a->message, "%s", qwen3LastError());
    return NULL;
}

/* On a thread that has never called anything, nor thrown. */
static void attemptAnew(Attempt *a) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, attempt, a) == 0, "no thread");
    pthread_join(thread, NULL);
}

/* sweep OPERATION memory|files|short ERRNO once|all FOLDER FORMAT NDEV STRIDE */
static void sweep(char **argv) {
    const Operation *operation = kOperations;
    while (strcmp(operation->name, argv[0]) != 0) {
        ++operation;
    }
    const int kind = argv[1][0] == 'm' ? FAULT_MEMORY : argv[1][0] == 'f' ? FAULT_FILES : FAULT_SHORT;
    const int error = atoi(argv[2]), all = argv[3][0] == 'a';
    const char *folder = argv[4];
    const long stride = atol(argv[7]);
    const int harmless = kind == FAULT_SHORT || error == EINTR;
    const int loads_weights = strcmp(operation->name, "load-weights") == 0;
    char path[4096];
    Subject s = {NULL, NULL, path};
    snprintf(path, sizeof path, "%s/file", folder);
    g_options.dt_weight = formatNamed(argv[5]);
    g_ndev = atoi(argv[6]);
    learnExpected();
    if (loads_weights || strcmp(operation->name, "load-cache") == 0) {
        openSubject(&s, &kOperations[2]);
        CHECK((loads_weights ? doSaveWeights : doSaveCache)(&s) == QWEN3_STATUS_SUCCESS, "%s", qwen3LastError());
        closeSubject(&s);
    }
    if (loads_weights) {
        g_options.cache_path = path;
        g_options.cache_key = "key";
    }
    /* How many calls there are. What the C library keeps for the next threads is there from now on, too. */
    openSubject(&s, operation);
    Attempt first = {operation, &s, kind, error, 0, LONG_MAX, 0, 0, 0, ""};
    attemptAnew(&first);
    const long last = LONG_MAX - fault_left() - 64;
    closeSubject(&s);
    openSubject(&s, operation);
    long faults = 0, failed = 0;
    int fired = 1;
    /* The first 64, the last 64, and every few between them. */
    for (long nth = 1; fired; nth += nth < 64 || nth >= last ? 1 : last - nth < stride ? last - nth : stride) {
        if (operation->fresh) {
            closeSubject(&s);
            openSubject(&s, operation);
        }
        const int entries = countEntries(folder);
        const long live = fault_live_blocks();
        Attempt a = {operation, &s, kind, error, all, nth, 0, 0, 0, ""};
        attemptAnew(&a);
        const int32_t status = a.status;
        fired = a.fired;
        faults += fired;
        CHECK((status == QWEN3_STATUS_SUCCESS) == (a.last_status == QWEN3_STATUS_SUCCESS),
              "%s, fault %ld: %s, and an error: %s", argv[0], nth, qwen3StatusName(status), a.message);
        if (status != QWEN3_STATUS_SUCCESS) {
            ++failed;
            const int32_t expected = kind == FAULT_MEMORY                         ? QWEN3_STATUS_OUT_OF_MEMORY
                                     : strcmp(operation->name, "load-cache") == 0 ? QWEN3_STATUS_UNREADABLE
                                                                                  : QWEN3_STATUS_IO_ERROR;
            CHECK(fired && !harmless, "%s, fault %ld: failed without reason: %s", argv[0], nth, a.message);
            CHECK(status == expected, "%s, fault %ld: %s: %s", argv[0], nth, qwen3StatusName(status), a.message);
            CHECK(status == a.last_status, "%s, fault %ld: status is not the last one", argv[0], nth);
            CHECK(a.message[0] != '\0' && strchr(a.message, '\n') == NULL, "%s, fault %ld: message: %s", argv[0], nth,
                  a.message);
            CHECK(countEntries(folder) == entries, "%s, fault %ld: a file is left", argv[0], nth);
            if (operation->has_model) {
                uint32_t length = 0;
                CHECK(qwen3KVCacheLength(s.model, s.cache, &length) == QWEN3_STATUS_SUCCESS && length == HALF,
                      "%s, fault %ld: the cache holds %u tokens", argv[0], nth, length);
                CHECK(statsOf(s.model).ncaches == 1, "%s, fault %ld: %u caches", argv[0], nth,
                      statsOf(s.model).ncaches);
            } else {
                CHECK(s.model == NULL, "%s, fault %ld: a model and an error", argv[0], nth);
                CHECK(fault_live_blocks() == live, "%s, fault %ld: %ld blocks leaked", argv[0], nth,
                      fault_live_blocks() - live);
            }
        }
        if (operation->has_model || status != QWEN3_STATUS_SUCCESS) {
            /* As if nothing had happened. */
            CHECK(status == QWEN3_STATUS_SUCCESS || operation->run(&s) == QWEN3_STATUS_SUCCESS,
                  "%s, after fault %ld: %s", argv[0], nth, qwen3LastError());
        }
        if (s.model != NULL) {
            checkUsable(s.model, __LINE__);
        }
        if (s.cache != NULL) { /* back to where it was */
            KVCache *half = duplicateKVCache(s.model, s.cache, HALF);
            dropKVCache(s.model, s.cache);
            s.cache = half;
        }
    }
    closeSubject(&s);
    printf("%ld faults, %ld of them failed the call\n", faults, failed);
    CHECK(faults > 0, "no fault was injected");
}

/* fingerprint-without-memory: every allocation fails, on a thread whose first call it is. */
static void *firstFingerprint(void *model) {
    uint64_t fingerprint = 0;
    (void)qwen3KVCacheLength(model, NULL, NULL); /* what a thread needs once */
    fault_arm(FAULT_MEMORY, 1, ENOMEM, 1);
    const int32_t status = qwen3KVCacheFingerprint(model, &fingerprint);
    fault_disarm();
    CHECK(status == QWEN3_STATUS_OUT_OF_MEMORY, "%s: %s", qwen3StatusName(status), qwen3LastError());
    CHECK(qwen3KVCacheFingerprint(model, &fingerprint) == QWEN3_STATUS_SUCCESS, "%s", qwen3LastError());
    return NULL;
}

static void fingerprintWithoutMemory(char **argv) {
    (void)argv;
    Qwen3Model *model = create();
    pthread_t thread;
    pthread_create(&thread, NULL, firstFingerprint, model);
    pthread_join(thread, NULL);
    destroyQwen3Model(model);
}

/* ------------------------------------------------------------------ the process */

/* Ends the process when a call hangs. */
void within(unsigned seconds) {
    signal(SIGALRM, SIG_DFL);
    alarm(seconds);
}

static void forkedCalls(Qwen3Model *model, KVCache *cache, const char *path) {
    uint32_t number = 0;
    uint64_t fingerprint = 0;
    Qwen3Stats stats;
    stats.struct_size = sizeof stats;
    const int32_t statuses[] = {forward(model, cache, 0, HALF),
                                qwen3KVCacheLength(model, cache, &number),
                                qwen3SaveKVCache(model, cache, g_prompt, 1, path),
                                qwen3SaveWeights(model, path, "key"),
                                qwen3KVCacheFingerprint(model, &fingerprint),
                                qwen3GetStats(model, &stats)};
    for (size_t i = 0; i < sizeof statuses / sizeof *statuses; ++i) {
        CHECK(statuses[i] != QWEN3_STATUS_SUCCESS, "call %zu succeeds in a fork", i);
    }
    CHECK(strstr(qwen3LastError(), "fork") != NULL, "message: %s", qwen3LastError());
    CHECK(createKVCache(model) == NULL && strstr(qwen3LastError(), "fork") != NULL, "message: %s", qwen3LastError());
    CHECK(duplicateKVCache(model, cache, 1) == NULL, "a cache in a fork");
    qwen3Cancel(model);
    dropKVCache(model, cache);
    destroyQwen3Model(model);
    /* A model of the child's own works. */
    Qwen3Model *own = create();
    CHECK(own != NULL, "%s", qwen3LastError());
    checkUsable(own, __LINE__);
    destroyQwen3Model(own);
}

static volatile int g_stop = 0;

static void *keepBusy(void *model) {
    while (!g_stop) {
        KVCache *cache = createKVCache(model);
        float logits[HALF * VOCABULARY];
        const uint32_t pos = 0, ntok = HALF;
        (void)forwardBatch(model, g_prompt, ntok, &ntok, 1, &pos, &cache, logits);
        dropKVCache(model, cache);
    }
    return NULL;
}

/* fork FOLDER: also while other threads hold the model's lock. */
static void forks(char **argv) {
    char path[4096];
    snprintf(path, sizeof path, "%s/file", argv[0]);
    learnExpected();
    for (g_ndev = 1; g_ndev <= 2; ++g_ndev) {
        learnExpected();
        Qwen3Model *model = create();
        KVCache *cache = createKVCache(model);
        pthread_t thread;
        g_stop = 0;
        pthread_create(&thread, NULL, keepBusy, model);
        for (int i = 0; i < 20; ++i) {
            fflush(NULL);
            const pid_t child = fork();
            if (child == 0) {
                within(20);
                g_checks = g_failures = 0;
                forkedCalls(model, cache, path);
                fflush(NULL);
                _exit(g_failures == 0 ? 0 : 1);
            }
            int result = -1;
            waitpid(child, &result, 0);
            CHECK(result == 0, "the child %s %d", WIFSIGNALED(result) ? "was killed by signal" : "returned",
                  WIFSIGNALED(result) ? WTERMSIG(result) : WEXITSTATUS(result));
        }
        g_stop = 1;
        pthread_join(thread, NULL);
        checkUsable(model, __LINE__);
        dropKVCache(model, cache);
        destroyQwen3Model(model);
    }
}

/* The number behind a name in a file of /proc. */
unsigned long long statusField(const char *path, const char *name, int base) {
    char line[256];
    unsigned long long value = 0;
    FILE *file = fopen(path, "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, name, strlen(name)) == 0) {
            value = strtoull(line + strlen(name), NULL, base);
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    return value;
}

/* signals BACKEND: threads of the library take none, nor do those that InfiniCore starts for it; a blocked signal waits
 * for who waits for it. */
static void signals(char **argv) {
    g_options.dt_weight = QWEN3_DTYPE_F32;
    setBackend(argv[0]);
    for (g_ndev = 1; g_ndev <= 2; ++g_ndev) {
        g_options.nthreads = 4;
        learnExpected();
        Qwen3Model *model = create();
        checkUsable(model, __LINE__); /* by now every thread runs */
        DIR *tasks = opendir("/proc/self/task");
        int others = 0;
        for (struct dirent *entry; (entry = readdir(tasks)) != NULL;) {
            const int id = atoi(entry->d_name);
            if (id == 0 || id == (int)gettid()) {
                continue;
            }
            char path[300];
            snprintf(path, sizeof path, "/proc/self/task/%d/status", id);
            const unsigned long long blocked = statusField(path, "SigBlk:", 16);
            ++others;
            for (int number = 1; number < 32; ++number) {
                const int fault = number == SIGBUS || number == SIGFPE || number == SIGILL || number == SIGSEGV ||
                                  number == SIGSYS || number == SIGTRAP;
                if (number != SIGKILL && number != SIGSTOP) {
                    CHECK((blocked >> (number - 1) & 1) == !fault, "signal %d in thread %d", number, id);
                }
            }
        }
        closedir(tasks);
        CHECK(others >= 3, "only %d threads", others);

        sigset_t set, old;
        sigemptyset(&set);
        sigaddset(&set, SIGTERM);
        pthread_sigmask(SIG_BLOCK, &set, &old);
        kill(getpid(), SIGTERM);
        int taken = 0;
        within(10);
        CHECK(sigwait(&set, &taken) == 0 && taken == SIGTERM, "SIGTERM went elsewhere");
        alarm(0);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
        destroyQwen3Model(model);
    }
}

#if defined(__x86_64__)
#include <xmmintrin.h>
static void setOddFloats(void) {
    /* Rounds upwards, flushes subnormal numbers, traps everything, the inexact result and subnormal operands too. */
    fesetround(FE_UPWARD);
    feenableexcept(FE_ALL_EXCEPT);
    _mm_setcsr((_mm_getcsr() | 0x8040u) & ~0x1f80u);
}
static unsigned floatState(void) {
    return _mm_getcsr() & ~0x3fu;
}
#else
static void setOddFloats(void) {
    fesetround(FE_UPWARD);
    feenableexcept(FE_ALL_EXCEPT);
}
static unsigned floatState(void) {
    return (unsigned)fegetround();
}
#endif

/* floats FOLDER FORMAT NDEV: a caller's floating-point environment changes no bit, and is the caller's afterwards. */
static void floats(char **argv) {
    char path[4096], again[4096];
    snprintf(path, sizeof path, "%s/plain", argv[0]);
    snprintf(again, sizeof again, "%s/odd", argv[0]);
    g_options.dt_weight = formatNamed(argv[1]);
    g_ndev = atoi(argv[2]);
    learnExpected();
    uint64_t plain_identity = 0, odd_identity = 0;
    Qwen3Model *plain = create();
    CHECK(qwen3SaveWeights(plain, path, "key") == QWEN3_STATUS_SUCCESS, "%s", qwen3LastError());
    qwen3KVCacheFingerprint(plain, &plain_identity);
    destroyQwen3Model(plain);

    fenv_t normal;
    fegetenv(&normal);
    setOddFloats();
    const unsigned state = floatState();
    Qwen3Model *odd = create();
    const int made = odd != NULL;
    KVCache *cache = createKVCache(odd);
    memset(g_logits, 0, sizeof g_logits);
    const int32_t first = forward(odd, cache, 0, HALF);
    const int32_t rest = forward(odd, cache, HALF, NPROMPT - HALF);
    qwen3KVCacheFingerprint(odd, &odd_identity);
    const int32_t saved = qwen3SaveWeights(odd, again, "key");
    const int32_t refused = forward(odd, NULL, 0, 1);
    const unsigned after = floatState();
    fesetenv(&normal);
    CHECK(made && first == QWEN3_STATUS_SUCCESS && rest == first && saved == first, "%s", qwen3LastError());
    CHECK(refused == QWEN3_STATUS_NULL_POINTER, "%s", qwen3StatusName(refused));
    CHECK(sameLogits(0, NPROMPT), "other bits in an odd floating-point environment");
    CHECK(plain_identity == odd_identity, "another fingerprint");
    CHECK(state == after, "the caller's environment was %x and is %x", state, after);
    dropKVCache(odd, cache);
    destroyQwen3Model(odd);
}

/* locale NAME FOLDER: numbers with a decimal comma change neither identities nor messages. */
static void locales(char **argv) {
    char path[4096], text[16];
    snprintf(path, sizeof path, "%s/file", argv[1]);
    Subject s = {NULL, NULL, path};
    learnExpected();
    openSubject(&s, &kOperations[2]);
    CHECK(doSaveCache(&s) == QWEN3_STATUS_SUCCESS, "%s", qwen3LastError());
    closeSubject(&s);
    CHECK(setlocale(LC_NUMERIC, argv[0]) != NULL, "there is no locale %s", argv[0]);
    snprintf(text, sizeof text, "%.1f", 0.5);
    CHECK(strcmp(text, "0,5") == 0, "the locale has no comma: %s", text);
    openSubject(&s, &kOperations[2]);
    CHECK(doLoadCache(&s) == QWEN3_STATUS_SUCCESS, "%s", qwen3LastError());
    const uint32_t pos = 0, ntok = 1, topk = 0;
    const float temperature = -0.5f, topp = 1.0f;
    uint32_t token = 0;
    KVCache *cache = createKVCache(s.model);
    CHECK(inferBatch(s.model, g_prompt, 1, &ntok, 1, &pos, &cache, &temperature, &topk, &topp, &token) ==
              QWEN3_STATUS_BAD_PARAM,
          "%s", qwen3LastError());
    CHECK(strstr(qwen3LastError(), "-0.5") != NULL, "message: %s", qwen3LastError());
    snprintf(text, sizeof text, "%.1f", 0.5);
    CHECK(strcmp(text, "0,5") == 0, "the caller's locale was changed: %s", text);
    dropKVCache(s.model, cache);
    closeSubject(&s);
}

/* ------------------------------------------------------------------ files */

/* write FOLDER: saves a cache and weights again and again, until killed. */
static void writeForEver(char **argv) {
    char weights[4096], caches[4096];
    Subject s = {NULL, NULL, NULL};
    snprintf(weights, sizeof weights, "%s/weights", argv[0]);
    snprintf(caches, sizeof caches, "%s/cache", argv[0]);
    openSubject(&s, &kOperations[2]);
    printf("ready\n");
    fflush(stdout);
    while (1) {
        s.path = weights;
        doSaveWeights(&s);
        s.path = caches;
        doSaveCache(&s);
    }
}

/* after-kill FOLDER: files are whole or absent, and the next writer leaves nothing of the killed one's. */
static void afterKill(char **argv) {
    char weights[4096], caches[4096];
    Subject s = {NULL, NULL, caches};
    snprintf(weights, sizeof weights, "%s/weights", argv[0]);
    snprintf(caches, sizeof caches, "%s/cache", argv[0]);
    learnExpected();
    g_options.cache_path = weights;
    g_options.cache_key = "key";
    openSubject(&s, &kOperations[2]);
    const int32_t state = statsOf(s.model).weight_cache;
    CHECK(state == QWEN3_CACHE_LOADED || (state == QWEN3_CACHE_ABSENT && access(weights, F_OK) != 0),
          "the weights are in state %d", state);
    CHECK(doLoadCache(&s) == QWEN3_STATUS_SUCCESS || access(caches, F_OK) != 0, "%s", qwen3LastError());
    CHECK(doSaveCache(&s) == QWEN3_STATUS_SUCCESS, "%s", qwen3LastError());
    s.path = weights;
    CHECK(doSaveWeights(&s) == QWEN3_STATUS_SUCCESS, "%s", qwen3LastError());
    CHECK(countEntries(argv[0]) == 2, "%d files are left", countEntries(argv[0]));
    closeSubject(&s);
}

/* damage FOLDER STRIDE SEED: no changed bit and no cut changes a result. */
static void damage(char **argv) {
    char weights[4096], caches[4096];
    const long stride = atol(argv[1]);
    unsigned state = (unsigned)atoi(argv[2]);
    Subject s = {NULL, NULL, caches};
    snprintf(weights, sizeof weights, "%s/weights", argv[0]);
    snprintf(caches, sizeof caches, "%s/cache", argv[0]);
    g_options.dt_weight = QWEN3_DTYPE_INT8;
    g_options.nthreads = 1;
    learnExpected();
    openSubject(&s, &kOperations[2]);
    doSaveCache(&s);
    s.path = weights;
    doSaveWeights(&s);
    g_options.cache_key = "key";
    for (int which = 0; which < 2; ++which) {
        const char *path = which == 0 ? caches : weights;
        FILE *file = fopen(path, "rb");
        static char good[1 << 22], bad[1 << 22];
        const size_t bytes = fread(good, 1, sizeof good, file);
        fclose(file);
        long tried = 0, noticed = 0;
        /* Every byte of what describes the content, and some of the content. */
        for (size_t at = 0; at < bytes; at += at < 80 || at + 2000 > bytes ? 1 : (size_t)stride) {
            state = state * 1664525u + 1013904223u;
            size_t length = bytes;
            memcpy(bad, good, bytes);
            if (state >> 28 == 0) {
                length = at;
            } else {
                bad[at] = (char)(bad[at] ^ 1 << (state >> 16) % 8);
            }
            file = fopen(path, "wb");
            fwrite(bad, 1, length, file);
            fclose(file);
            ++tried;
            if (which == 0) {
                s.path = caches;
                noticed += doLoadCache(&s) != QWEN3_STATUS_SUCCESS;
                CHECK(statsOf(s.model).ncaches == 1, "a cache is left");
            } else {
                g_options.cache_path = weights;
                Qwen3Model *model = create();
                CHECK(model != NULL, "damaged weights fail create: %s", qwen3LastError());
                noticed += statsOf(model).weight_cache != QWEN3_CACHE_LOADED;
                checkUsable(model, __LINE__);
                destroyQwen3Model(model);
            }
        }
        printf("%ld changes, %ld noticed\n", tried, noticed);
        CHECK(noticed > tried * 8 / 10, "only %ld of %ld changes were noticed", noticed, tried);
    }
    g_options.cache_path = NULL;
    checkUsable(s.model, __LINE__);
    closeSubject(&s);
}

/* limits FOLDER: a limit on file sizes, with its signal at the default; the longest names. */
static void limits(char **argv) {
    char path[5000];
    Subject s = {NULL, NULL, path};
    struct rlimit old, small;
    learnExpected();
    openSubject(&s, &kOperations[2]);
    snprintf(path, sizeof path, "%s/limited", argv[0]);
    signal(SIGXFSZ, SIG_DFL);
    getrlimit(RLIMIT_FSIZE, &old);
    for (unsigned long bytes = 0; bytes < 12000; bytes += 1500) {
        small = old;
        small.rlim_cur = bytes;
        setrlimit(RLIMIT_FSIZE, &small);
        const int32_t status = doSaveWeights(&s);
        setrlimit(RLIMIT_FSIZE, &old);
        CHECK(status == QWEN3_STATUS_IO_ERROR && strstr(qwen3LastError(), "File too large") != NULL, "%s: %s",
              qwen3StatusName(status), qwen3LastError());
    }
    sigset_t pending;
    sigpending(&pending);
    CHECK(!sigismember(&pending, SIGXFSZ), "the signal is still to come");
    CHECK(countEntries(argv[0]) == 0, "%d files are left", countEntries(argv[0]));
    for (int length = 240; length <= 255; ++length) {
        int end = snprintf(path, sizeof path, "%s/", argv[0]);
        for (int i = 0; i < length; ++i) {
            path[end++] = (char)('a' + i % 26);
        }
        path[end] = '\0';
        CHECK(doSaveCache(&s) == QWEN3_STATUS_SUCCESS, "a name of %d characters: %s", length, qwen3LastError());
        CHECK(doLoadCache(&s) == QWEN3_STATUS_SUCCESS, "a name of %d characters: %s", length, qwen3LastError());
        unlink(path);
    }
    CHECK(countEntries(argv[0]) == 0, "%d files are left", countEntries(argv[0]));
    closeSubject(&s);
}

/* forged FOLDER: a small file that says to hold a long cache must not make anybody take memory for it. */
static uint64_t hashWords(const void *data, size_t bytes); /* hashBytes of src/runtime */

static void forged(char **argv) {
    /* A cache of many tokens whose file keeps its tokens but has lost its blocks, all hashes right. */
    char path[4096];
    snprintf(path, sizeof path, "%s/file", argv[0]);
    enum { LONG = 60000 };
    g_meta.dctx = 1 << 17;
    g_options.kv_limit_bytes = (uint64_t)1 << 40;
    Subject s = {NULL, NULL, path};
    learnExpected();
    openSubject(&s, &kOperations[2]);
    CHECK(doSaveCache(&s) == QWEN3_STATUS_SUCCESS, "%s", qwen3LastError());
    static char file[1 << 20];
    FILE *in = fopen(path, "rb");
    const size_t bytes = fread(file, 1, sizeof file, in);
    fclose(in);
    /* header: magic 8, version 4, unused 4, identity_bytes, index_offset, index_words, index_hash, file_bytes, hash */
    uint64_t header[8];
    memcpy(header, file, sizeof header);
    const uint64_t identity_bytes = header[2], index_offset = header[3];
    CHECK(bytes == header[6], "the header is another one");
    static char identity[4096];
    memcpy(identity, file + index_offset, identity_bytes);
    static uint32_t tokens[LONG];
    const uint64_t end = 4096 + sizeof tokens;
    const uint64_t index[3] = {4096, sizeof tokens, hashWords(tokens, sizeof tokens)};
    const uint64_t both[2] = {hashWords(identity, identity_bytes), hashWords(index, sizeof index)};
    header[3] = end;
    header[4] = 3;
    header[5] = hashWords(both, sizeof both);
    header[6] = end + identity_bytes + sizeof index;
    header[7] = hashWords(header, 7 * sizeof(uint64_t));
    FILE *out = fopen(path, "wb");
    fwrite(header, 1, sizeof header, out);
    fseek(out, 4096, SEEK_SET);
    fwrite(tokens, 1, sizeof tokens, out);
    fwrite(identity, 1, identity_bytes, out);
    fwrite(index, 1, sizeof index, out);
    fclose(out);
    static uint32_t read[LONG];
    uint32_t length = 0;
    struct rlimit old, small;
    getrlimit(RLIMIT_AS, &old);
    small = old;
    small.rlim_cur = statusField("/proc/self/status", "VmSize:", 10) * 1024 + (16u << 20);
    setrlimit(RLIMIT_AS, &small);
    CHECK(qwen3LoadKVCache(s.model, path, read, LONG, &length) == NULL, "a forged cache was loaded");
    setrlimit(RLIMIT_AS, &old);
    CHECK(qwen3LastStatus() == QWEN3_STATUS_IO_ERROR && strstr(qwen3LastError(), "damaged") != NULL, "%s",
          qwen3LastError());
    CHECK(statsOf(s.model).ncaches == 1, "a cache is left");
    closeSubject(&s);
}

static uint64_t hashWords(const void *data, size_t bytes) {
    const uint64_t odd = 0x9e3779b97f4a7c15u;
    uint64_t lanes[8], hash = bytes;
    for (size_t i = 0; i < 8; ++i) {
        lanes[i] = odd * (2 * i + 1);
    }
    for (size_t at = 0; at < bytes; at += 64) {
        uint64_t words[8] = {0};
        memcpy(words, (const char *)data + at, bytes - at < 64 ? bytes - at : 64);
        for (size_t i = 0; i < 8; ++i) {
            const uint64_t product = (lanes[i] ^ words[i]) * odd;
            lanes[i] = product << 29 | product >> 35;
        }
    }
    for (size_t i = 0; i < 8; ++i) {
        hash = (hash ^ lanes[i]) * odd;
        hash ^= hash >> 32;
    }
    return hash;
}

/* save PATH and load PATH: for machines with other kernels; prints whether it was loaded, and a hash of the logits. */
static void exchange(char *path, int load) {
    Subject s = {NULL, NULL, path};
    Qwen3Model *model = create();
    if (model == NULL) { /* a CPU without these kernels */
        exit(2);
    }
    destroyQwen3Model(model);
    learnExpected();
    openSubject(&s, &kOperations[2]);
    const int32_t status = (load ? doLoadCache : doSaveCache)(&s);
    CHECK(status == QWEN3_STATUS_SUCCESS || (load && status == QWEN3_STATUS_CACHE_MISMATCH), "%s", qwen3LastError());
    CHECK(status == QWEN3_STATUS_SUCCESS || strstr(qwen3LastError(), "kernels") != NULL, "%s", qwen3LastError());
    printf("%s %016llx\n", status == QWEN3_STATUS_SUCCESS ? "done" : "refused",
           (unsigned long long)hashWords(g_expected, sizeof g_expected));
    closeSubject(&s);
}
static void saveFor(char **argv) {
    exchange(argv[0], 0);
}
static void loadFrom(char **argv) {
    exchange(argv[0], 1);
}

/* A mapping of a file that holds the tensors. */
static float *mapTensors(const char *path, int *fd) {
    const size_t bytes = tensorFloats() * sizeof(float);
    float *values = malloc(bytes);
    fillTensors(values);
    *fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(write(*fd, values, bytes) == (ssize_t)bytes, "the tensors cannot be written");
    free(values);
    void *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, *fd, 0);
    placeTensors(map);
    return map;
}

typedef struct {
    int fd;
    long microseconds;
} Cut;

static void *cutLater(void *argument) {
    const Cut *cut = argument;
    const struct timespec pause = {0, cut->microseconds * 1000};
    nanosleep(&pause, NULL);
    CHECK(ftruncate(cut->fd, 0) == 0, "the file cannot be cut");
    return NULL;
}

/* How the tensors lie in the file, whose values are random anyway. "strided": with biases, elements of rows apart. */
static void setLayout(const char *layout) {
    static const void *biases[5][NLAYER];
    static Qwen3Tensor tensors[3];
    g_weights.transpose_linear_weights = strcmp(layout, "columns") != 0;
    if (strcmp(layout, "strided") != 0) {
        return;
    }
    for (int layer = 0; layer < NLAYER; ++layer) {
        for (int bias = 0; bias < 4; ++bias) {
            biases[bias][layer] = g_weights.input_embd;
        }
    }
    g_weights.attn_q_b = biases[0];
    g_weights.attn_k_b = biases[1];
    g_weights.attn_v_b = biases[2];
    g_weights.attn_o_b = biases[3];
    const int32_t roles[3] = {QWEN3_TENSOR_FFN_DOWN, QWEN3_TENSOR_FFN_GATE, QWEN3_TENSOR_FFN_UP};
    const size_t strides[3][2] = {{2 * INNER, 2}, {17 * WIDTH, 17}, {1, INNER}};
    for (int i = 0; i < 3; ++i) {
        const Qwen3Tensor plain = QWEN3_TENSOR_INIT;
        tensors[i] = plain;
        tensors[i].role = roles[i];
        tensors[i].dtype = QWEN3_DTYPE_F32;
        tensors[i].rows = i == 0 ? WIDTH : INNER;
        tensors[i].cols = i == 0 ? INNER : WIDTH;
        tensors[i].row_stride = strides[i][0];
        tensors[i].col_stride = strides[i][1];
        tensors[i].data = g_weights.attn_norm[0]; /* where the file begins */
    }
    g_options.tensors = tensors;
    g_options.ntensors = 3;
}

/* A model of which the file was cut amid create(), or none: an error, or one that computes; nothing dies. */
static int afterCut(Qwen3Model *model) {
    if (model == NULL) {
        CHECK(qwen3LastStatus() == QWEN3_STATUS_IO_ERROR, "%s: %s", qwen3StatusName(qwen3LastStatus()),
              qwen3LastError());
        return 1;
    }
    KVCache *cache = createKVCache(model);
    const int32_t status = forward(model, cache, 0, HALF);
    CHECK(status == QWEN3_STATUS_SUCCESS || status == QWEN3_STATUS_IO_ERROR, "%s: %s", qwen3StatusName(status),
          qwen3LastError());
    dropKVCache(model, cache);
    destroyQwen3Model(model);
    return 0;
}

/* truncate FOLDER FORMAT ROUNDS LAYOUT BACKEND: a file of weights that is cut at any time of create() is no end. */
static void truncated(char **argv) {
    char path[4096];
    const size_t bytes = tensorFloats() * sizeof(float);
    const int rounds = atoi(argv[2]);
    snprintf(path, sizeof path, "%s/tensors", argv[0]);
    g_options.dt_weight = formatNamed(argv[1]);
    setBackend(argv[4]);
    long whole = 0;
    int failed = 0;
    for (int i = -1; i < rounds; ++i) {
        Cut cut = {-1, i * whole / rounds};
        float *map = mapTensors(path, &cut.fd);
        setLayout(argv[3]);
        g_options.borrow_weights = (i & 1) == 0;
        struct timespec begin, end;
        pthread_t thread;
        clock_gettime(CLOCK_MONOTONIC, &begin);
        if (i >= 0) {
            pthread_create(&thread, NULL, cutLater, &cut);
        }
        Qwen3Model *model = create();
        clock_gettime(CLOCK_MONOTONIC, &end);
        if (i >= 0) {
            pthread_join(thread, NULL);
        } else { /* how long it takes when nothing is cut */
            CHECK(model != NULL, "%s", qwen3LastError());
            whole = (end.tv_sec - begin.tv_sec) * 1000000 + (end.tv_nsec - begin.tv_nsec) / 1000;
        }
        failed += afterCut(model);
        munmap(map, bytes);
        close(cut.fd);
    }
    printf("%d of %d loads failed\n", failed, rounds);
}

/* sandbox FOLDER LAYOUT BACKEND: where the kernel may not copy, the same weights are read; a file that is too short
 * from the beginning is still an error. */
static void sandbox(char **argv) {
    char path[4096];
    const size_t bytes = tensorFloats() * sizeof(float);
    int fd = -1;
    snprintf(path, sizeof path, "%s/tensors", argv[0]);
    g_options.dt_weight = QWEN3_DTYPE_F32;
    setBackend(argv[2]);
    float *map = mapTensors(path, &fd);
    setLayout(argv[1]);
    learnExpected();
    fault_forbid_reads(1);
    Qwen3Model *model = create();
    CHECK(model != NULL, "%s", qwen3LastError());
    checkUsable(model, __LINE__);
    destroyQwen3Model(model);
    CHECK(ftruncate(fd, 0) == 0, "the file cannot be cut");
    CHECK(create() == NULL && qwen3LastStatus() == QWEN3_STATUS_IO_ERROR, "%s", qwen3LastError());
    fault_forbid_reads(0);
    munmap(map, bytes);
    close(fd);
}

static int g_cut_fd;
static off_t g_cut_at;
static void cutNow(void) {
    CHECK(ftruncate(g_cut_fd, g_cut_at) == 0, "the file cannot be cut");
}

/* truncate-each FOLDER FORMAT LAYOUT BACKEND STRIDE: the file is cut right after each of create()'s guarded reads, so
 * whatever is read otherwise ends this process. */
static void truncatedEach(char **argv) {
    char path[4096];
    const size_t bytes = tensorFloats() * sizeof(float);
    const long stride = atol(argv[4]);
    long reads = 0, failed = 0;
    snprintf(path, sizeof path, "%s/tensors", argv[0]);
    g_options.dt_weight = formatNamed(argv[1]);
    setBackend(argv[3]);
    int cut = 1;
    for (long nth = 1; cut; nth += nth < 64 ? 1 : stride) {
        float *map = mapTensors(path, &g_cut_fd);
        setLayout(argv[2]);
        g_options.borrow_weights = nth % 2 == 0;
        g_cut_at = nth % 3 == 0 ? (off_t)bytes / 2 : 0;
        fault_after_read(cutNow, nth);
        Qwen3Model *model = create();
        fault_after_read(NULL, 0);
        struct stat facts;
        fstat(g_cut_fd, &facts);
        cut = facts.st_size != (off_t)bytes;
        reads += cut;
        failed += afterCut(model);
        munmap(map, bytes);
        close(g_cut_fd);
    }
    printf("%ld cuts, %ld loads failed\n", reads, failed);
    CHECK(failed > 20, "only %ld loads failed", failed);
}

/* ------------------------------------------------------------------ stopping */

typedef struct {
    Qwen3Model *model;
    const volatile float *logits;
    int asked;
} Watch;

/* Asks to stop when the first logit is there: the layers are done by then. */
static void *cancelAtLogits(void *argument) {
    Watch *watch = argument;
    while (!g_stop && isnan(watch->logits[0])) {
    }
    watch->asked = !isnan(watch->logits[0]);
    qwen3Cancel(watch->model);
    return NULL;
}

/* cancel: a step that computes little but logits is stopped amid them. */
static void cancelled(char **argv) {
    (void)argv;
    enum { ROWS = 512, BIG = 60000 };
    g_meta.dvoc = BIG;
    g_meta.nlayer = g_weights.nlayer = 1;
    g_meta.dctx = ROWS;
    g_options.max_step_tokens = ROWS;
    float *table = calloc((size_t)BIG * WIDTH, sizeof(float));
    g_weights.input_embd = table;
    g_weights.output_embd = NULL;
    Qwen3Model *model = create();
    CHECK(model != NULL, "%s", qwen3LastError());
    KVCache *cache = createKVCache(model);
    static uint32_t tokens[ROWS];
    const uint32_t pos = 0, ntok = ROWS;
    float *logits = malloc((size_t)ROWS * BIG * sizeof(float));
    g_stop = 0;
    for (size_t i = 0; i < (size_t)ROWS * BIG; ++i) {
        logits[i] = NAN;
    }
    Watch watch = {model, logits, 0};
    pthread_t thread;
    pthread_create(&thread, NULL, cancelAtLogits, &watch);
    const int32_t status = forwardBatch(model, tokens, ntok, &ntok, 1, &pos, &cache, logits);
    g_stop = 1;
    pthread_join(thread, NULL);
    CHECK(watch.asked, "logits came too late to stop");
    CHECK(status == QWEN3_STATUS_CANCELLED, "%s", qwen3StatusName(status));
    CHECK(isnan(logits[(size_t)ROWS * BIG - 1]), "all logits were computed");
    uint32_t length = 1;
    (void)qwen3KVCacheLength(model, cache, &length);
    CHECK(length == 0, "%u tokens stay", length);
    dropKVCache(model, cache);
    destroyQwen3Model(model);
    free(logits);
    free(table);
}

/* ------------------------------------------------------------------ commands */

int fault_main(int argc, char **argv) {
    const struct {
        const char *name;
        void (*run)(char **);
        int nargs;
    } commands[] = {
        {"sweep", sweep, 8},
        {"fingerprint-without-memory", fingerprintWithoutMemory, 0},
        {"fork", forks, 1},
        {"signals", signals, 1},
        {"floats", floats, 3},
        {"locale", locales, 2},
        {"write", writeForEver, 1},
        {"after-kill", afterKill, 1},
        {"damage", damage, 3},
        {"limits", limits, 1},
        {"truncate", truncated, 5},
        {"truncate-each", truncatedEach, 5},
        {"forged", forged, 1},
        {"sandbox", sandbox, 3},
        {"save", saveFor, 1},
        {"load", loadFrom, 1},
        {"cancel", cancelled, 0},
        {"garbage", garbage, 1},
        {"crowd", crowd, 0},
        {"interrupted", interrupted, 1},
        {"fork-create", forkAmidCreate, 0},
        {"process-limits", processLimits, 1},
    };
    *(void **)&fault_arm = dlsym(RTLD_DEFAULT, "fault_arm");
    *(void **)&fault_disarm = dlsym(RTLD_DEFAULT, "fault_disarm");
    *(void **)&fault_forbid_reads = dlsym(RTLD_DEFAULT, "fault_forbid_reads");
    *(void **)&fault_left = dlsym(RTLD_DEFAULT, "fault_left");
    *(void **)&fault_after_read = dlsym(RTLD_DEFAULT, "fault_after_read");
    *(void **)&fault_live_blocks = dlsym(RTLD_DEFAULT, "fault_live_blocks");
    setUp();
    (void)createKVCache(NULL); /* the thread's first error, whose text stays allocated */
    for (size_t i = 0; i < sizeof commands / sizeof *commands; ++i) {
        if (argc >= 1 && strcmp(commands[i].name, argv[0]) == 0 && argc == 1 + commands[i].nargs) {
            commands[i].run(argv + 1);
            printf("%s: %d checks, %d failed\n", argv[0], g_checks, g_failures);
            fflush(NULL);
            return g_failures;
        }
    }
    fprintf(stderr, "unknown command\n");
    return 1;
}
