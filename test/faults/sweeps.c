/* Operations of the C API, and sweeps in which every call of a kind fails once. */
#define _GNU_SOURCE
#include "fault_driver.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void (*fault_arm)(int kind, long nth, int error, int all);
int (*fault_disarm)(void);
long (*fault_live_blocks)(void);
long (*fault_left)(void);
void (*fault_after_read)(void (*hook)(void), long nth);
void (*fault_forbid_reads)(int forbidden);

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
int32_t doSaveCache(Subject *s) {
    return qwen3SaveKVCache(s->model, s->cache, g_prompt, HALF, s->path);
}
int32_t doLoadCache(Subject *s) {
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
int32_t doSaveWeights(Subject *s) {
    return qwen3SaveWeights(s->model, s->path, "key");
}

const Operation kOperations[] = {
    {"create", doCreate, 0, 1},           {"load-weights", doCreate, 0, 1},
    {"forward", doForward, 1, 0},         {"infer", doInfer, 1, 0},
    {"duplicate", doDuplicate, 1, 0},     {"cache", doCache, 1, 0},
    {"fingerprint", doFingerprint, 1, 1}, {"save-cache", doSaveCache, 1, 1},
    {"load-cache", doLoadCache, 1, 1},    {"save-weights", doSaveWeights, 1, 0},
};

void openSubject(Subject *s, const Operation *operation) {
    s->model = NULL;
    s->cache = NULL;
    if (operation->has_model) {
        s->model = create();
        CHECK(s->model != NULL, "%s", qwen3LastError());
        s->cache = createKVCache(s->model);
        CHECK(forward(s->model, s->cache, 0, HALF) == QWEN3_STATUS_SUCCESS, "%s", qwen3LastError());
    }
}

void closeSubject(Subject *s) {
    dropKVCache(s->model, s->cache);
    destroyQwen3Model(s->model);
    s->model = NULL;
    s->cache = NULL;
}

int countEntries(const char *folder) {
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
void sweep(char **argv) {
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

void fingerprintWithoutMemory(char **argv) {
    (void)argv;
    Qwen3Model *model = create();
    pthread_t thread;
    pthread_create(&thread, NULL, firstFingerprint, model);
    pthread_join(thread, NULL);
    destroyQwen3Model(model);
}
