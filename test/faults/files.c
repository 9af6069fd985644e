/* Files that a model writes and reads: killed writers, damage, limits, other machines. */
#define _GNU_SOURCE
#include "fault_driver.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* write FOLDER: saves a cache and weights again and again, until killed. */
void writeForEver(char **argv) {
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
void afterKill(char **argv) {
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
void damage(char **argv) {
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
void limits(char **argv) {
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
           (unsigned long long)hashOf(g_expected, sizeof g_expected));
    closeSubject(&s);
}
void saveFor(char **argv) {
    exchange(argv[0], 0);
}
void loadFrom(char **argv) {
    exchange(argv[0], 1);
}
