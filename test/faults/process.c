/* The process around a model: forks, signals, floating-point environments, locales, and being stopped. */
#define _GNU_SOURCE
#include "fault_driver.h"

#include <dirent.h>
#include <fenv.h>
#include <locale.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

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
void forks(char **argv) {
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
void signals(char **argv) {
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
void floats(char **argv) {
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
void locales(char **argv) {
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
void cancelled(char **argv) {
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
