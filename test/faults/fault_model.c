/* A small random model, what it computes, and how checks are counted. */
#define _GNU_SOURCE
#include "fault_driver.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

typedef struct {
    const void *layers[NLAYER];
} PerLayer;

static PerLayer g_tensors[11];
Qwen3Meta g_meta = {QWEN3_DTYPE_F32, NLAYER,  WIDTH,      HEADS, KV_HEADS, HEAD,
                    INNER,           CONTEXT, VOCABULARY, 1e-6f, 10000.0f, 1};
Qwen3Weights g_weights;
uint32_t g_prompt[NPROMPT];
float g_expected[NPROMPT * VOCABULARY];
float g_logits[NPROMPT * VOCABULARY];

/* All tensors lie in one piece of memory, as in a file. */
size_t tensorFloats(void) {
    const size_t layer =
        2 * WIDTH + 2 * HEAD + (HEADS + 2 * KV_HEADS) * HEAD * WIDTH + HEADS * HEAD * WIDTH + 3 * (size_t)INNER * WIDTH;
    return NLAYER * layer + 2 * (size_t)VOCABULARY * WIDTH + WIDTH;
}

void fillTensors(float *at) {
    uint32_t state = 7;
    for (size_t i = 0; i < tensorFloats(); ++i) {
        state = state * 1664525u + 1013904223u;
        at[i] = ((float)(state >> 8) - 8388608.0f) / 33554432.0f;
    }
}

/* Cuts the tensors from `at`: the embedding last, so that a file cut short loses it first. */
void placeTensors(const float *at) {
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

int32_t forward(Qwen3Model *model, KVCache *cache, uint32_t pos, uint32_t ntok) {
    return forwardBatch(model, g_prompt + pos, ntok, &ntok, 1, &pos, &cache, g_logits + (size_t)pos * VOCABULARY);
}

int sameLogits(uint32_t pos, uint32_t ntok) {
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

Qwen3Stats statsOf(Qwen3Model *model) {
    Qwen3Stats stats;
    memset(&stats, 0, sizeof stats);
    stats.struct_size = sizeof stats;
    CHECK(qwen3GetStats(model, &stats) == QWEN3_STATUS_SUCCESS, "stats: %s", qwen3LastError());
    return stats;
}

void setUp(void) {
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

void setBackend(const char *name) {
    g_options.backend = QWEN3_BACKEND_CPU;
    if (strcmp(name, "infinicore") == 0) {
        g_options.backend = QWEN3_BACKEND_INFINICORE;
        g_meta.dt_logits = g_options.dt_weight;
    }
}

int32_t formatNamed(const char *name) {
    const char *names[] = {"f32", "bf16", "int8", "int4", "bf12"};
    const int32_t formats[] = {QWEN3_DTYPE_F32, QWEN3_DTYPE_BF16, QWEN3_DTYPE_INT8, QWEN3_DTYPE_INT4, QWEN3_DTYPE_BF12};
    for (int i = 0; i < 5; ++i) {
        if (strcmp(names[i], name) == 0) {
            return formats[i];
        }
    }
    abort();
}
