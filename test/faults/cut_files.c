/* Files of weights that are cut short while a model is made of them. */
#define _GNU_SOURCE
#include "fault_driver.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

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
void truncated(char **argv) {
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
void sandbox(char **argv) {
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
void truncatedEach(char **argv) {
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
