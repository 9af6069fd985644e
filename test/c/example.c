/*
 * The usage example of qwen3.h as a complete program: a tiny model with random weights, and eight tokens from it.
 *
 *     cc -std=c99 -Iinclude test/c/example.c -L<where the library is> -linfinicore_infer -o example && ./example
 */
/* The lines of the example stand in the header as well, in this form. */
// clang-format off
#include "infinicore_infer/models/qwen3.h"

#include <stdio.h>
#include <stdlib.h>

enum { NLAYER = 2, D = 32, NH = 4, NKVH = 2, DH = 16, DI = 48, DCTX = 64, DVOC = 100 };

/* n pseudo-random floats around `centre`, the same on every run. Never freed: the program is short. */
static float *randomTensor(size_t n, float centre, float spread) {
    static uint32_t state = 1;
    float *tensor = malloc(n * sizeof(float));
    if (tensor == NULL) {
        exit(1);
    }
    for (size_t i = 0; i < n; ++i) {
        state = state * 1664525u + 1013904223u;
        tensor[i] = centre + spread * ((float)(state >> 8) / 8388608.0f - 1.0f);
    }
    return tensor;
}

int main(void) {
    /* A real program reads these from config.json and from the safetensors files. */
    const void *attn_norm[NLAYER], *q_norm[NLAYER], *k_norm[NLAYER], *q[NLAYER], *k[NLAYER], *v[NLAYER], *o[NLAYER];
    const void *ffn_norm[NLAYER], *gate[NLAYER], *up[NLAYER], *down[NLAYER];
    for (int layer = 0; layer < NLAYER; ++layer) {
        attn_norm[layer] = randomTensor(D, 1.0f, 0.3f);
        q_norm[layer] = randomTensor(DH, 1.0f, 0.3f);
        k_norm[layer] = randomTensor(DH, 1.0f, 0.3f);
        q[layer] = randomTensor(NH * DH * D, 0.0f, 0.3f);
        k[layer] = randomTensor(NKVH * DH * D, 0.0f, 0.3f);
        v[layer] = randomTensor(NKVH * DH * D, 0.0f, 0.3f);
        o[layer] = randomTensor(D * NH * DH, 0.0f, 0.2f);
        ffn_norm[layer] = randomTensor(D, 1.0f, 0.3f);
        gate[layer] = randomTensor(DI * D, 0.0f, 0.3f);
        up[layer] = randomTensor(DI * D, 0.0f, 0.3f);
        down[layer] = randomTensor(D * DI, 0.0f, 0.3f);
    }

    Qwen3Meta meta = {
        .dt_logits = QWEN3_DTYPE_F32,
        .nlayer = NLAYER, .d = D, .nh = NH, .nkvh = NKVH, .dh = DH, .di = DI, .dctx = DCTX, .dvoc = DVOC,
        .epsilon = 1e-6f, .theta = 1e6f, .end_token = DVOC - 1,
    };
    Qwen3Weights weights = {
        .nlayer = NLAYER,
        .dt_norm = QWEN3_DTYPE_F32,
        .dt_mat = QWEN3_DTYPE_F32,
        .transpose_linear_weights = 1, /* projections are [out, in], as in Hugging Face checkpoints */
        .input_embd = randomTensor(DVOC * D, 0.0f, 1.0f),
        .output_norm = randomTensor(D, 1.0f, 0.3f),
        .output_embd = NULL, /* tied to input_embd */
        .attn_norm = attn_norm, .attn_q_norm = q_norm, .attn_k_norm = k_norm,
        .attn_q = q, .attn_k = k, .attn_v = v, .attn_o = o,
        .ffn_norm = ffn_norm, .ffn_gate = gate, .ffn_up = up, .ffn_down = down,
    };
    struct Qwen3Model *model = createQwen3Model(&meta, &weights, QWEN3_DEVICE_CPU, 1, NULL);
    if (model == NULL) {
        fprintf(stderr, "%s\n", qwen3LastError());
        return 1;
    }
    struct KVCache *kv = createKVCache(model);

    uint32_t tokens[] = {1, 2, 3}, ntok = 3, pos = 0, next = 0, topk = 1;
    float temperature = 0.0f, topp = 1.0f;        // temperature 0 = greedy
    for (int step = 0; step < 8; ++step) {
        const uint32_t *input = step == 0 ? tokens : &next;
        int32_t status = inferBatch(model, input, ntok, &ntok, 1, &pos, &kv,
                                    &temperature, &topk, &topp, &next);
        if (status != QWEN3_STATUS_SUCCESS) {
            fprintf(stderr, "%s: %s\n", qwen3StatusName(status), qwen3LastError());
            break;
        }
        printf("%u\n", (unsigned)next);
        pos += ntok;                              // the first call was the prefill,
        ntok = 1;                                 // every later one decodes one token
    }
    dropKVCache(model, kv);
    destroyQwen3Model(model);
    return pos == 3 + 7 ? 0 : 1; /* all eight steps ran */
}
