/*
 * What the C API does when it is used wrongly, runs out of something, is cancelled, or is called from many threads.
 *
 * Self-contained C99: link with the library and -lpthread (also under ASan, UBSan or TSan), run without arguments.
 * Prints one line per failed check and a summary; returns 0 when every check passed.
 *
 * For every wrong call: the status is the documented one, the message names what is wrong, outputs are untouched,
 * and the model still generates the tokens that it generated before.
 */
#include "capi_check.h"

#include <math.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static void sleepMs(long ms) {
    struct timespec pause = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&pause, NULL);
}

/* ------------------------------------------------------------------ a tiny random model */

enum { MAX_LAYER = 8, NTENSOR = 11 };

/* Everything needed to create a model; tests change one thing of it at a time. */
typedef struct {
    Qwen3Meta meta;
    Qwen3Weights weights;
    Qwen3ModelOptions options;
    int32_t ndev;
    const void *per_layer[NTENSOR][MAX_LAYER]; /* the arrays that weights points to */
    const void *fused_qkv[MAX_LAYER], *fused_gate_up[MAX_LAYER], *bias[MAX_LAYER];
    float *allocations[256];
    size_t nallocations;
} Setup;

static float *newTensor(Setup *s, size_t n, float centre, float spread) {
    static uint32_t state = 12345;
    float *tensor = malloc(n * sizeof(float));
    if (tensor == NULL || s->nallocations == sizeof(s->allocations) / sizeof(s->allocations[0])) {
        abort();
    }
    for (size_t i = 0; i < n; ++i) {
        state = state * 1664525u + 1013904223u;
        tensor[i] = centre + spread * ((float)(state >> 8) / 8388608.0f - 1.0f);
    }
    s->allocations[s->nallocations++] = tensor;
    return tensor;
}

static void initSetup(Setup *s, size_t nlayer, size_t d, size_t dctx) {
    memset(s, 0, sizeof(*s));
    const Qwen3Meta meta = {QWEN3_DTYPE_F32, nlayer, d, 4, 2, 16, 2 * d, dctx, 100, 1e-6f, 1e4f, 99};
    const Qwen3ModelOptions options = QWEN3_MODEL_OPTIONS_INIT;
    const size_t q = meta.nh * meta.dh, kv = meta.nkvh * meta.dh;
    const struct {
        const void *const **field;
        size_t n;
        float centre;
    } tensors[NTENSOR] = {
        {&s->weights.attn_norm, d, 1.0f},          {&s->weights.attn_q_norm, meta.dh, 1.0f},
        {&s->weights.attn_k_norm, meta.dh, 1.0f},  {&s->weights.attn_q, q * d, 0.0f},
        {&s->weights.attn_k, kv * d, 0.0f},        {&s->weights.attn_v, kv * d, 0.0f},
        {&s->weights.attn_o, d * q, 0.0f},         {&s->weights.ffn_norm, d, 1.0f},
        {&s->weights.ffn_gate, meta.di * d, 0.0f}, {&s->weights.ffn_up, meta.di * d, 0.0f},
        {&s->weights.ffn_down, d * meta.di, 0.0f},
    };
    s->meta = meta;
    s->options = options;
    s->options.nthreads = 2;
    s->ndev = 1;
    s->weights.nlayer = nlayer;
    s->weights.dt_norm = s->weights.dt_mat = QWEN3_DTYPE_F32;
    s->weights.transpose_linear_weights = 1;
    s->weights.input_embd = newTensor(s, meta.dvoc * d, 0.0f, 1.0f);
    s->weights.output_norm = newTensor(s, d, 1.0f, 0.3f);
    for (size_t t = 0; t < NTENSOR; ++t) {
        for (size_t layer = 0; layer < nlayer; ++layer) {
            s->per_layer[t][layer] = newTensor(s, tensors[t].n, tensors[t].centre, 0.25f);
        }
        *tensors[t].field = s->per_layer[t];
    }
    for (size_t layer = 0; layer < nlayer; ++layer) {
        s->fused_qkv[layer] = newTensor(s, (q + 2 * kv) * d, 0.0f, 0.25f);
        s->fused_gate_up[layer] = newTensor(s, 2 * meta.di * d, 0.0f, 0.25f);
        s->bias[layer] = newTensor(s, q + 2 * kv + 2 * meta.di + d, 0.0f, 0.25f);
    }
}

static void freeSetup(Setup *s) {
    for (size_t i = 0; i < s->nallocations; ++i) {
        free(s->allocations[i]);
    }
}

static struct Qwen3Model *createFrom(const Setup *s) {
    return createQwen3ModelEx(&s->meta, &s->weights, QWEN3_DEVICE_CPU, s->ndev, NULL, &s->options);
}

static struct Qwen3Model *mustCreate(const Setup *s) {
    struct Qwen3Model *model = createFrom(s);
    if (model == NULL) {
        fprintf(stderr, "cannot create the test's model: %s\n", qwen3LastError());
        exit(2);
    }
    return model;
}

/* ------------------------------------------------------------------ greedy generation as the health check */

enum { NGREEDY = 6 };

static int32_t step(struct Qwen3Model *model, const uint32_t *tokens, uint32_t ntok, uint32_t pos, struct KVCache *kv,
                    uint32_t *next) {
    const float temperature = 0.0f, topp = 1.0f;
    const uint32_t topk = 1;
    return inferBatch(model, tokens, ntok, &ntok, 1, &pos, &kv, &temperature, &topk, &topp, next);
}

/* NGREEDY tokens after the prompt {first, first + 1, first + 2}; 0 on any failure. */
static int greedy(struct Qwen3Model *model, uint32_t first, uint32_t output[NGREEDY]) {
    const uint32_t prompt[3] = {first, first + 1, first + 2};
    struct KVCache *kv = createKVCache(model);
    int ok = kv != NULL && step(model, prompt, 3, 0, kv, &output[0]) == QWEN3_STATUS_SUCCESS;
    for (uint32_t i = 1; ok && i < NGREEDY; ++i) {
        ok = step(model, &output[i - 1], 1, 2 + i, kv, &output[i]) == QWEN3_STATUS_SUCCESS;
    }
    dropKVCache(model, kv);
    return ok;
}

static void checkHealthy(int line, const char *what, struct Qwen3Model *model, const uint32_t expected[NGREEDY]) {
    uint32_t output[NGREEDY] = {0};
    report(greedy(model, 1, output) && memcmp(output, expected, sizeof(output)) == 0, __FILE__, line,
           "after %s the model generates something else", what);
}

/* ------------------------------------------------------------------ create */

static void checkCreateFails(int line, const char *what, const Setup *s, const int32_t *expected, const char *words) {
    struct Qwen3Model *model = createFrom(s);
    report(model == NULL, __FILE__, line, "%s: createQwen3ModelEx succeeded", what);
    if (model == NULL) {
        checkFailure(line, what, qwen3LastStatus(), expected, words);
    }
    destroyQwen3Model(model);
}

/* Makes a changed copy of the setup `base` and expects createQwen3ModelEx to fail on it. */
#define CREATE_FAILS(change, expected, words)                                                                          \
    do {                                                                                                               \
        Setup s = *base;                                                                                               \
        rebase(&s, base);                                                                                              \
        change;                                                                                                        \
        checkCreateFails(__LINE__, #change, &s, expected, words);                                                      \
    } while (0)

/* Makes the pointers of a copied Setup point to the copy's own arrays. */
static void rebase(Setup *copy, const Setup *base) {
    const void *const **fields[NTENSOR] = {
        &copy->weights.attn_norm, &copy->weights.attn_q_norm, &copy->weights.attn_k_norm, &copy->weights.attn_q,
        &copy->weights.attn_k,    &copy->weights.attn_v,      &copy->weights.attn_o,      &copy->weights.ffn_norm,
        &copy->weights.ffn_gate,  &copy->weights.ffn_up,      &copy->weights.ffn_down,
    };
    (void)base;
    for (size_t t = 0; t < NTENSOR; ++t) {
        *fields[t] = copy->per_layer[t];
    }
}

static void testCreateSizes(const Setup *base) {
    CREATE_FAILS(s.meta.nlayer = 0, STATUS(BAD_PARAM), "nlayer|0");
    CREATE_FAILS(s.meta.d = 0, STATUS(BAD_PARAM), "d|0");
    CREATE_FAILS(s.meta.nh = 0, STATUS(BAD_PARAM), "nh|0");
    CREATE_FAILS(s.meta.nkvh = 0, STATUS(BAD_PARAM), "nkvh|0");
    CREATE_FAILS(s.meta.dh = 0, STATUS(BAD_PARAM), "dh|0");
    CREATE_FAILS(s.meta.di = 0, STATUS(BAD_PARAM), "di|0");
    CREATE_FAILS(s.meta.dctx = 0, STATUS(BAD_PARAM), "dctx|0");
    CREATE_FAILS(s.meta.dvoc = 0, STATUS(BAD_PARAM), "dvoc|0");
    CREATE_FAILS(s.meta.nkvh = 3, STATUS(BAD_PARAM), "nkvh|3|4");
    CREATE_FAILS(s.meta.nkvh = 8, STATUS(BAD_PARAM), "nkvh|8|4");
    CREATE_FAILS(s.meta.dh = 15, STATUS(BAD_PARAM), "dh|15");
    CREATE_FAILS(s.meta.d = SIZE_MAX, STATUS2(BAD_PARAM, OUT_OF_MEMORY), "d");
    CREATE_FAILS(s.meta.di = SIZE_MAX / 2, STATUS2(BAD_PARAM, OUT_OF_MEMORY), "di");
    CREATE_FAILS(s.meta.nh = s.meta.nkvh = (size_t)1 << 40, STATUS2(BAD_PARAM, OUT_OF_MEMORY), "nh");
    CREATE_FAILS(s.meta.dh = (size_t)1 << 33, STATUS2(BAD_PARAM, OUT_OF_MEMORY), "dh");
    CREATE_FAILS(s.meta.dctx = (size_t)1 << 33, STATUS2(BAD_PARAM, OUT_OF_MEMORY), "dctx");
    CREATE_FAILS(s.meta.dvoc = (size_t)1 << 33, STATUS2(BAD_PARAM, OUT_OF_MEMORY), "dvoc");
    CREATE_FAILS(s.meta.nlayer = s.weights.nlayer = (size_t)1 << 60, STATUS2(BAD_PARAM, OUT_OF_MEMORY), "nlayer");
    CREATE_FAILS(s.weights.nlayer = 1, STATUS(BAD_PARAM), "nlayer|1|2");
    CREATE_FAILS(s.meta.epsilon = 0.0f, STATUS(BAD_PARAM), "epsilon|0");
    CREATE_FAILS(s.meta.epsilon = -1.0f, STATUS(BAD_PARAM), "epsilon|-1");
    CREATE_FAILS(s.meta.epsilon = NAN, STATUS(BAD_PARAM), "epsilon|nan");
    CREATE_FAILS(s.meta.epsilon = INFINITY, STATUS(BAD_PARAM), "epsilon|inf");
    CREATE_FAILS(s.meta.theta = 0.0f, STATUS(BAD_PARAM), "theta|0");
    CREATE_FAILS(s.meta.theta = -2.0f, STATUS(BAD_PARAM), "theta|-2");
    CREATE_FAILS(s.meta.theta = NAN, STATUS(BAD_PARAM), "theta|nan");
    CREATE_FAILS(s.meta.theta = INFINITY, STATUS(BAD_PARAM), "theta|inf");
    CREATE_FAILS(s.meta.end_token = 100, STATUS(BAD_PARAM), "end_token|100");
    CREATE_FAILS(s.meta.dt_logits = QWEN3_DTYPE_DEFAULT, STATUS2(BAD_PARAM, BAD_TENSOR_DTYPE), "dt_logits|0");
    CREATE_FAILS(s.meta.dt_logits = 77, STATUS2(BAD_PARAM, BAD_TENSOR_DTYPE), "dt_logits|77");
    CREATE_FAILS(s.weights.dt_mat = 0, STATUS(BAD_TENSOR_DTYPE), "dt_mat|0");
    CREATE_FAILS(s.weights.dt_mat = 77, STATUS(BAD_TENSOR_DTYPE), "dt_mat|77");
    CREATE_FAILS(s.weights.dt_norm = -1, STATUS(BAD_TENSOR_DTYPE), "dt_norm|-1");
}

static void testCreatePointers(const Setup *base) {
    static const char *const names[NTENSOR] = {"attn_norm", "attn_q_norm", "attn_k_norm", "attn_q", "attn_k",  "attn_v",
                                               "attn_o",    "ffn_norm",    "ffn_gate",    "ffn_up", "ffn_down"};
    CREATE_FAILS(s.weights.input_embd = NULL, STATUS(NULL_POINTER), "input_embd");
    CREATE_FAILS(s.weights.output_norm = NULL, STATUS(NULL_POINTER), "output_norm");
    CREATE_FAILS(s.weights.attn_norm = NULL, STATUS(NULL_POINTER), "attn_norm");
    CREATE_FAILS(s.weights.attn_q_norm = NULL, STATUS(NULL_POINTER), "attn_q_norm");
    CREATE_FAILS(s.weights.attn_k_norm = NULL, STATUS(NULL_POINTER), "attn_k_norm");
    CREATE_FAILS(s.weights.attn_o = NULL, STATUS(NULL_POINTER), "attn_o");
    CREATE_FAILS(s.weights.ffn_norm = NULL, STATUS(NULL_POINTER), "ffn_norm");
    CREATE_FAILS(s.weights.ffn_down = NULL, STATUS(NULL_POINTER), "ffn_down");
    /* split arrays of which one is missing, both forms, neither form */
    CREATE_FAILS(s.weights.attn_q = NULL, STATUS2(NULL_POINTER, BAD_PARAM), "attn_q");
    CREATE_FAILS(s.weights.attn_k = NULL, STATUS2(NULL_POINTER, BAD_PARAM), "attn_k");
    CREATE_FAILS(s.weights.attn_v = NULL, STATUS2(NULL_POINTER, BAD_PARAM), "attn_v");
    CREATE_FAILS(s.weights.ffn_gate = NULL, STATUS2(NULL_POINTER, BAD_PARAM), "ffn_gate");
    CREATE_FAILS(s.weights.ffn_up = NULL, STATUS2(NULL_POINTER, BAD_PARAM), "ffn_up");
    CREATE_FAILS(s.weights.attn_q = s.weights.attn_k = s.weights.attn_v = NULL, STATUS2(NULL_POINTER, BAD_PARAM),
                 "attn_q");
    CREATE_FAILS(s.weights.ffn_gate = s.weights.ffn_up = NULL, STATUS2(NULL_POINTER, BAD_PARAM), "ffn_gate");
    CREATE_FAILS(s.weights.attn_qkv = s.fused_qkv, STATUS(BAD_PARAM), "attn_qkv");
    CREATE_FAILS(s.weights.attn_qkv = s.fused_qkv; s.weights.attn_q = NULL, STATUS(BAD_PARAM), "attn_qkv");
    CREATE_FAILS(s.weights.ffn_gate_up = s.fused_gate_up, STATUS(BAD_PARAM), "ffn_gate_up");
    CREATE_FAILS(s.weights.attn_qkv_b = s.weights.attn_q_b = s.weights.attn_k_b = s.weights.attn_v_b = s.bias,
                 STATUS(BAD_PARAM), "attn_qkv_b");
    CREATE_FAILS(s.bias[1] = NULL; s.weights.attn_o_b = s.bias, STATUS(NULL_POINTER), "attn_o_b|1");
    CREATE_FAILS(s.weights.attn_qkv_b = s.bias, STATUS2(BAD_PARAM, NULL_POINTER), "attn_qkv_b");
    CREATE_FAILS(s.weights.attn_qkv = s.fused_qkv; s.weights.attn_q = s.weights.attn_k = s.weights.attn_v = NULL;
                 s.bias[0] = NULL; s.weights.attn_qkv_b = s.bias, STATUS(NULL_POINTER), "attn_qkv_b|0");
    /* one layer's pointer missing */
    for (size_t t = 0; t < NTENSOR; ++t) {
        char words[32];
        snprintf(words, sizeof(words), "%s|1", names[t]);
        CREATE_FAILS(s.per_layer[t][1] = NULL, STATUS(NULL_POINTER), words);
    }
}

static void testCreateArguments(const Setup *base) {
    const int32_t device_5[1] = {5}, reversed[2] = {1, 0}, twice[2] = {3, 3};
    const struct {
        const char *what;
        const Qwen3Meta *meta;
        const Qwen3Weights *weights;
        int32_t device, ndev;
        const int32_t *dev_ids;
        const int32_t *expected;
        const char *words;
    } cases[] = {
        {"meta NULL", NULL, &base->weights, 0, 1, NULL, STATUS(NULL_POINTER), "meta"},
        {"weights NULL", &base->meta, NULL, 0, 1, NULL, STATUS(NULL_POINTER), "weights"},
        {"ndev 0", &base->meta, &base->weights, 0, 0, NULL, STATUS(BAD_PARAM), "ndev|0"},
        {"ndev -3", &base->meta, &base->weights, 0, -3, NULL, STATUS(BAD_PARAM), "ndev|-3"},
        {"ndev 3", &base->meta, &base->weights, 0, 3, NULL, STATUS(BAD_PARAM), "ndev is 3|nh 4|nkvh 2|1, 2 or 4"},
        {"ndev 99999", &base->meta, &base->weights, 0, 99999, NULL, STATUS(BAD_PARAM), "ndev|99999|1024"},
        {"cpus in another order", &base->meta, &base->weights, 0, 2, reversed, STATUS(DEVICE_NOT_FOUND),
         "dev_ids[0]|1|0"},
        {"one device twice", &base->meta, &base->weights, 1, 2, twice, STATUS(BAD_PARAM), "dev_ids[1] is 3|dev_ids[0]"},
        {"device 99", &base->meta, &base->weights, 99, 1, NULL, STATUS2(DEVICE_TYPE_NOT_SUPPORTED, BAD_PARAM),
         "device|99"},
        {"device -1", &base->meta, &base->weights, -1, 1, NULL, STATUS2(DEVICE_TYPE_NOT_SUPPORTED, BAD_PARAM),
         "device|-1"},
        {"dev_ids {5}", &base->meta, &base->weights, 0, 1, device_5, STATUS2(DEVICE_NOT_FOUND, BAD_PARAM), "dev|5"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); ++i) {
        struct Qwen3Model *model =
            createQwen3Model(cases[i].meta, cases[i].weights, cases[i].device, cases[i].ndev, cases[i].dev_ids);
        report(model == NULL, __FILE__, __LINE__, "%s: createQwen3Model succeeded", cases[i].what);
        if (model == NULL) {
            checkFailure(__LINE__, cases[i].what, qwen3LastStatus(), cases[i].expected, cases[i].words);
        }
        destroyQwen3Model(model);
    }
    if (strstr(qwen3BuildInfo(NULL), "infinicore=none") != NULL) {
        /* The sanitizer builds: asking for what needs InfiniCore says how to install it, with the fitting flag. */
        struct Qwen3Model *model = createQwen3Model(&base->meta, &base->weights, QWEN3_DEVICE_NVIDIA, 1, NULL);
        report(model == NULL, __FILE__, __LINE__, "nvidia without InfiniCore succeeded");
        checkFailure(__LINE__, "nvidia without InfiniCore", qwen3LastStatus(), STATUS(DEVICE_TYPE_NOT_SUPPORTED),
                     "nvidia|install_infinicore.py --nv-gpu|--infinicore=y");
        CREATE_FAILS(s.options.backend = QWEN3_BACKEND_INFINICORE, STATUS(DEVICE_TYPE_NOT_SUPPORTED),
                     "cpu|install_infinicore.py");
    } else {
        printf("skipped: the message of a build without InfiniCore (this build has it; the sanitizer builds do not)\n");
    }
}

static int stopAtSecond(void *user_data, uint64_t done, uint64_t total) {
    (void)done;
    (void)total;
    return ++*(int *)user_data >= 2;
}

typedef struct {
    uint64_t done, total;
    int calls, ordered;
} Progress;

static int follow(void *user_data, uint64_t done, uint64_t total) {
    Progress *p = user_data;
    p->ordered &= done >= p->done && done <= total && (p->total == 0 || p->total == total);
    p->done = done;
    p->total = total;
    ++p->calls;
    return 0;
}

static void testCreateOptions(const Setup *base) {
    struct {
        Qwen3ModelOptions options;
        unsigned char tail[16];
    } future;
    CREATE_FAILS(s.options.struct_size = 0, STATUS(ABI_MISMATCH), "struct_size|0");
    CREATE_FAILS(s.options.struct_size = 4, STATUS(ABI_MISMATCH), "struct_size|4");
    CREATE_FAILS(s.options.struct_size = SIZE_MAX, STATUS(ABI_MISMATCH), "struct_size");
    CREATE_FAILS(s.options.backend = 7, STATUS(BAD_PARAM), "backend|7");
    CREATE_FAILS(s.options.backend = -1, STATUS(BAD_PARAM), "backend|-1");
    CREATE_FAILS(s.options.nthreads = -2, STATUS(BAD_PARAM), "nthreads|-2|1024");
    CREATE_FAILS(s.options.nthreads = 1025, STATUS(BAD_PARAM), "nthreads|1025|1024");
    CREATE_FAILS(s.options.dt_weight = 3, STATUS2(BAD_PARAM, BAD_TENSOR_DTYPE), "dt_weight|3|BF16|INT8|BF12");
    CREATE_FAILS(s.options.dt_kv = 3, STATUS2(BAD_PARAM, BAD_TENSOR_DTYPE), "dt_kv|3");
    CREATE_FAILS(s.options.max_step_tokens = 65537, STATUS(BAD_PARAM), "max_step_tokens|65537|65536");
    CREATE_FAILS(s.options.rope_type = 9, STATUS(BAD_PARAM), "rope_type|9");
    CREATE_FAILS(s.options.rope_type = QWEN3_ROPE_LINEAR, STATUS(BAD_PARAM), "rope_factor|0");
    CREATE_FAILS(s.options.rope_type = QWEN3_ROPE_LINEAR;
                 s.options.rope_factor = NAN, STATUS(BAD_PARAM), "rope_factor|nan");
    CREATE_FAILS(s.options.rope_type = QWEN3_ROPE_YARN;
                 s.options.rope_factor = 4, STATUS(BAD_PARAM), "rope_original_ctx|0");
    CREATE_FAILS(s.options.rope_type = QWEN3_ROPE_YARN; s.options.rope_factor = -4;
                 s.options.rope_original_ctx = 32, STATUS(BAD_PARAM), "rope_factor|-4");
    CREATE_FAILS(s.options.rope_type = QWEN3_ROPE_YARN; s.options.rope_factor = 4; s.options.rope_original_ctx = 32;
                 s.options.rope_beta_fast = NAN, STATUS(BAD_PARAM), "rope_beta_fast|nan");
    CREATE_FAILS(s.options.rope_type = QWEN3_ROPE_LLAMA3; s.options.rope_factor = 8; s.options.rope_original_ctx = 32;
                 s.options.rope_low_freq_factor = 2;
                 s.options.rope_high_freq_factor = 2, STATUS(BAD_PARAM), "freq_factor");
    CREATE_FAILS(s.options.rope_type = QWEN3_ROPE_LLAMA3; s.options.rope_factor = 8; s.options.rope_low_freq_factor = 1;
                 s.options.rope_high_freq_factor = 4, STATUS(BAD_PARAM), "rope_original_ctx|0");

    /* A caller built against a later header, which has a field that this library does not know. */
    memset(&future, 0, sizeof(future));
    future.options = base->options;
    future.options.struct_size = sizeof(future);
    future.tail[0] = 1;
    struct Qwen3Model *model = createQwen3ModelEx(&base->meta, &base->weights, 0, 1, NULL, &future.options);
    CHECK(model == NULL);
    if (model == NULL) {
        checkFailure(__LINE__, "unknown option set", qwen3LastStatus(), STATUS(ABI_MISMATCH), "struct_size");
    }
    destroyQwen3Model(model);

    int calls = 0;
    CREATE_FAILS(s.options.progress = stopAtSecond;
                 s.options.progress_user_data = &calls, STATUS(CANCELLED), "progress");
    CHECK(calls == 2);
    Progress progress = {0, 0, 0, 1};
    Setup s = *base;
    rebase(&s, base);
    s.options.progress = follow;
    s.options.progress_user_data = &progress;
    model = createFrom(&s);
    CHECK(model != NULL);
    CHECK(progress.calls >= (int)base->meta.nlayer && progress.ordered && progress.done == progress.total);
    destroyQwen3Model(model);

    Qwen3LoadState state = {0, 0, NULL, NULL, 0, 0};
    s.options.progress = qwen3LoadProgress;
    s.options.progress_user_data = &state;
    model = createFrom(&s);
    CHECK(model != NULL);
    CHECK(state.done == progress.total && state.total == progress.total);
    destroyQwen3Model(model);
    s.options.progress_user_data = NULL;
    model = createFrom(&s);
    CHECK(model != NULL);
    destroyQwen3Model(model);
    state.cancel = 1;
    CREATE_FAILS(s.options.progress = qwen3LoadProgress;
                 s.options.progress_user_data = &state, STATUS(CANCELLED), "progress");
    CHECK(state.done > 0 && state.done < state.total);
}

static void testBadWeights(const Setup *base) {
    static const char *const names[NTENSOR] = {"attn_norm", "attn_q_norm", "attn_k_norm", "attn_q", "attn_k",  "attn_v",
                                               "attn_o",    "ffn_norm",    "ffn_gate",    "ffn_up", "ffn_down"};
    static const char *const fused[NTENSOR] = {NULL, NULL, NULL,          "attn_qkv",    "attn_qkv", "attn_qkv",
                                               NULL, NULL, "ffn_gate_up", "ffn_gate_up", NULL};
    for (size_t t = 0; t < NTENSOR; ++t) {
        /* the last element: the tail of a vector loop is where checks are forgotten */
        const size_t sizes[NTENSOR] = {base->meta.d,
                                       16,
                                       16,
                                       64 * base->meta.d,
                                       32 * base->meta.d,
                                       32 * base->meta.d,
                                       64 * base->meta.d,
                                       base->meta.d,
                                       base->meta.di * base->meta.d,
                                       base->meta.di * base->meta.d,
                                       base->meta.di * base->meta.d};
        float *element = (float *)base->per_layer[t][1] + sizes[t] - 1, saved = *element;
        for (int inf = 0; inf < 2; ++inf) {
            *element = inf ? -INFINITY : NAN;
            struct Qwen3Model *model = createFrom(base);
            report(model == NULL, __FILE__, __LINE__, "%s of %s in layer 1 was accepted", inf ? "-inf" : "NaN",
                   names[t]);
            if (model == NULL) {
                const char *message = qwen3LastError();
                int named =
                    strstr(message, names[t]) != NULL || (fused[t] != NULL && strstr(message, fused[t]) != NULL);
                checkFailure(__LINE__, names[t], qwen3LastStatus(), STATUS(BAD_WEIGHTS), "1");
                report(named, __FILE__, __LINE__, "message does not name %s: %s", names[t], message);
            }
            destroyQwen3Model(model);
        }
        *element = saved;
    }
    float *embedding = (float *)base->weights.input_embd, saved = embedding[7];
    embedding[7] = NAN;
    CREATE_FAILS((void)0, STATUS(BAD_WEIGHTS), "input_embd");
    /* Not tied: the table is then read row by row, later, and may stay where it is. */
    float *head = calloc(base->meta.dvoc * base->meta.d, sizeof(float));
    CREATE_FAILS(s.weights.output_embd = head, STATUS(BAD_WEIGHTS), "input_embd|row 0|column 7");
    CREATE_FAILS((s.weights.output_embd = head, s.options.borrow_weights = 1), STATUS(BAD_WEIGHTS),
                 "input_embd|row 0|column 7");
    free(head);
    embedding[7] = saved;
    float *norm = (float *)base->weights.output_norm;
    saved = norm[0];
    norm[0] = NAN;
    CREATE_FAILS((void)0, STATUS(BAD_WEIGHTS), "output_norm");
    norm[0] = saved;
    float *bias = (float *)base->bias[1];
    saved = bias[3];
    bias[3] = NAN;
    CREATE_FAILS(s.weights.attn_o_b = s.bias, STATUS(BAD_WEIGHTS), "attn_o|1");
    bias[3] = saved;
}

/* ------------------------------------------------------------------ the calls that run a model */

/* The arguments of a valid call with two requests; tests change one thing of it at a time. */
typedef struct {
    struct Qwen3Model *model;
    const uint32_t *tokens;
    uint32_t ntok, nreq;
    const uint32_t *req_lens, *req_pos;
    struct KVCache **kv_caches;
    const float *temperature, *topp;
    const uint32_t *topk;
    uint32_t *output;
    const Qwen3SamplingParams *params;
    Qwen3SampleResult *results;
    float *logits;
    const uint32_t *rows;
    uint32_t nrows;
    /* where the pointers above point */
    uint32_t token_data[5], len_data[2], pos_data[2], topk_data[2], output_data[2];
    float temperature_data[2], topp_data[2], logits_data[5 * 100];
    struct KVCache *cache_data[2];
    Qwen3SamplingParams param_data[2];
    Qwen3SampleResult result_data[2];
    uint32_t top_token_data[8];
    float top_logprob_data[8];
    uint32_t row_data[3];
} Call;

static void initCall(Call *c, struct Qwen3Model *model, struct KVCache *const caches[2]) {
    const Qwen3SamplingParams params = QWEN3_SAMPLING_PARAMS_INIT;
    memset(c, 0, sizeof(*c));
    c->model = model;
    c->ntok = 5;
    c->nreq = 2;
    c->tokens = c->token_data;
    c->req_lens = c->len_data;
    c->req_pos = c->pos_data;
    c->kv_caches = c->cache_data;
    c->temperature = c->temperature_data;
    c->topk = c->topk_data;
    c->topp = c->topp_data;
    c->output = c->output_data;
    c->params = c->param_data;
    c->results = c->result_data;
    c->logits = c->logits_data;
    c->rows = c->row_data;
    c->nrows = 3;
    c->row_data[1] = 2;
    c->row_data[2] = 4;
    c->len_data[0] = 3;
    c->len_data[1] = 2;
    c->pos_data[1] = 2;
    for (uint32_t i = 0; i < 5; ++i) {
        c->token_data[i] = 10 + i;
    }
    for (uint32_t i = 0; i < 5 * 100; ++i) {
        c->logits_data[i] = -12345.0f;
    }
    for (uint32_t i = 0; i < 2; ++i) {
        c->cache_data[i] = caches[i];
        c->topk_data[i] = 1;
        c->topp_data[i] = 1.0f;
        c->output_data[i] = 0xdeadbeef;
        c->param_data[i] = params;
        c->result_data[i].struct_size = sizeof(Qwen3SampleResult);
        c->result_data[i].token = c->result_data[i].ntop = 0xdeadbeef;
        c->result_data[i].logprob = -12345.0f;
    }
}

static int outputsUntouched(const Call *c) {
    int ok = 1;
    for (int i = 0; i < 2; ++i) {
        ok &= c->output_data[i] == 0xdeadbeef && c->result_data[i].token == 0xdeadbeef;
        ok &= c->result_data[i].ntop == 0xdeadbeef && c->result_data[i].logprob == -12345.0f;
    }
    for (int i = 0; i < 5 * 100; ++i) {
        ok &= c->logits_data[i] == -12345.0f;
    }
    return ok;
}

enum { INFER = 1, INFER_EX = 2, FORWARD = 4, EMBED = 8, ALL = 15 };

static int32_t callBatch(Call *c, int which) {
    switch (which) {
    case INFER:
        return inferBatch(c->model, c->tokens, c->ntok, c->req_lens, c->nreq, c->req_pos, c->kv_caches, c->temperature,
                          c->topk, c->topp, c->output);
    case INFER_EX:
        return inferBatchEx(c->model, c->tokens, c->ntok, c->req_lens, c->nreq, c->req_pos, c->kv_caches, c->params,
                            c->results);
    case FORWARD:
        return forwardBatch(c->model, c->tokens, c->ntok, c->req_lens, c->nreq, c->req_pos, c->kv_caches, c->logits);
    default:
        return embedBatch(c->model, c->tokens, c->ntok, c->req_lens, c->nreq, c->req_pos, c->kv_caches, c->rows,
                          c->nrows, c->logits);
    }
}

typedef struct {
    struct Qwen3Model *model;
    struct KVCache *caches[2];
    uint32_t greedy[NGREEDY];
} Bench;

/* Cache 0 is empty, cache 1 holds two tokens. */
static void createCaches(Bench *b) {
    const uint32_t two[2] = {40, 41};
    uint32_t next = 0;
    b->caches[0] = createKVCache(b->model);
    b->caches[1] = createKVCache(b->model);
    CHECK(step(b->model, two, 2, 0, b->caches[1], &next) == QWEN3_STATUS_SUCCESS);
}

static void dropCaches(Bench *b) {
    dropKVCache(b->model, b->caches[1]);
    dropKVCache(b->model, b->caches[0]);
}

static void checkCallFails(int line, const char *what, Bench *b, Call *c, int which, const int32_t *expected,
                           const char *words) {
    const int32_t status = callBatch(c, which);
    uint32_t lengths[2] = {77, 77};
    char name[256];
    snprintf(name, sizeof(name), "%s: %s",
             which == INFER      ? "inferBatch"
             : which == INFER_EX ? "inferBatchEx"
             : which == FORWARD  ? "forwardBatch"
                                 : "embedBatch",
             what);
    if (status == QWEN3_STATUS_SUCCESS) {
        report(0, __FILE__, line, "%s: succeeded", name);
        dropCaches(b); /* it changed them: start afresh */
        createCaches(b);
        return;
    }
    checkFailure(line, name, status, expected, words);
    report(outputsUntouched(c), __FILE__, line, "%s: outputs were written", name);
    qwen3KVCacheLength(b->model, b->caches[0], &lengths[0]);
    qwen3KVCacheLength(b->model, b->caches[1], &lengths[1]);
    report(lengths[0] == 0 && lengths[1] == 2, __FILE__, line, "%s: cache lengths are now %u, %u instead of 0, 2", name,
           (unsigned)lengths[0], (unsigned)lengths[1]);
    checkHealthy(line, name, b->model, b->greedy);
}

/* Changes one thing of a valid call `c` and expects the calls in the set `which` to fail on it. */
#define CALL_FAILS(which, change, expected, words)                                                                     \
    do {                                                                                                               \
        for (int call_ = 1; call_ <= EMBED; call_ *= 2) {                                                              \
            if (((which) & call_) != 0) {                                                                              \
                Call c;                                                                                                \
                initCall(&c, b->model, b->caches);                                                                     \
                change;                                                                                                \
                checkCallFails(__LINE__, #change, b, &c, call_, expected, words);                                      \
            }                                                                                                          \
        }                                                                                                              \
    } while (0)

static void testBatchArguments(Bench *b, struct KVCache *foreign, struct KVCache *dropped) {
    CALL_FAILS(ALL, c.model = NULL, STATUS(NULL_POINTER), "model");
    CALL_FAILS(ALL, c.tokens = NULL, STATUS(NULL_POINTER), "tokens");
    CALL_FAILS(ALL, c.req_lens = NULL, STATUS(NULL_POINTER), "req_lens");
    CALL_FAILS(ALL, c.req_pos = NULL, STATUS(NULL_POINTER), "req_pos");
    CALL_FAILS(ALL, c.kv_caches = NULL, STATUS(NULL_POINTER), "kv_caches");
    CALL_FAILS(ALL, c.kv_caches[1] = NULL, STATUS2(NULL_POINTER, CACHE_MISMATCH), "kv_caches|1");
    CALL_FAILS(INFER, c.temperature = NULL, STATUS(NULL_POINTER), "temperature");
    CALL_FAILS(INFER, c.topk = NULL, STATUS(NULL_POINTER), "topk");
    CALL_FAILS(INFER, c.topp = NULL, STATUS(NULL_POINTER), "topp");
    CALL_FAILS(INFER, c.output = NULL, STATUS(NULL_POINTER), "output");
    CALL_FAILS(INFER_EX, c.params = NULL, STATUS(NULL_POINTER), "params");
    CALL_FAILS(INFER_EX, c.results = NULL, STATUS(NULL_POINTER), "results");
    CALL_FAILS(FORWARD, c.logits = NULL, STATUS(NULL_POINTER), "logits");
    CALL_FAILS(EMBED, c.logits = NULL, STATUS(NULL_POINTER), "output");

    CALL_FAILS(ALL, c.ntok = 0, STATUS(BAD_PARAM), "ntok|0");
    CALL_FAILS(ALL, c.nreq = 0, STATUS(BAD_PARAM), "nreq|0");
    CALL_FAILS(ALL, c.ntok = 4, STATUS(BAD_PARAM), "ntok|4|5");
    CALL_FAILS(ALL, c.len_data[1] = 1, STATUS(BAD_PARAM), "ntok|5|4");
    CALL_FAILS(ALL, c.len_data[0] = 5; c.len_data[1] = 0, STATUS(BAD_PARAM), "req_lens|1|0");
    CALL_FAILS(ALL, c.len_data[0] = 0xffffffff; c.len_data[1] = 6, STATUS2(BAD_PARAM, CONTEXT_OVERFLOW), "5");
    CALL_FAILS(ALL, c.token_data[4] = 100, STATUS(BAD_PARAM), "tokens|4|100");
    CALL_FAILS(ALL, c.token_data[0] = 0xffffffff, STATUS(BAD_PARAM), "tokens|0|4294967295|100");

    CALL_FAILS(EMBED, c.nrows = 0, STATUS(BAD_PARAM), "nrows|0|1");
    CALL_FAILS(EMBED, c.row_data[2] = 5, STATUS(BAD_PARAM), "rows|2|5");
    CALL_FAILS(EMBED, c.row_data[1] = 0, STATUS(BAD_PARAM), "rows|1|0");
    CALL_FAILS(EMBED, c.row_data[0] = 3, STATUS(BAD_PARAM), "rows|1|2|0|3");
    CALL_FAILS(EMBED, c.rows = NULL, STATUS(BAD_PARAM), "nrows|3|nreq|2");

    CALL_FAILS(ALL, c.pos_data[0] = 1, STATUS(CACHE_MISMATCH), "req_pos|0|1");
    CALL_FAILS(ALL, c.pos_data[1] = 3, STATUS(CACHE_MISMATCH), "req_pos|1|3|2");
    CALL_FAILS(ALL, c.pos_data[1] = 0xffffffff, STATUS2(CACHE_MISMATCH, CONTEXT_OVERFLOW), "req_pos|1|4294967295");
    CALL_FAILS(ALL, c.cache_data[0] = c.cache_data[1], STATUS(CACHE_MISMATCH), "kv_caches|0");
    CALL_FAILS(ALL, c.cache_data[1] = foreign, STATUS(CACHE_MISMATCH), "kv_caches|1");
    CALL_FAILS(ALL, c.cache_data[1] = dropped, STATUS(CACHE_MISMATCH), "kv_caches|1");
    CALL_FAILS(ALL, c.cache_data[1] = (struct KVCache *)&c, STATUS(CACHE_MISMATCH), "kv_caches|1");
    CALL_FAILS(INFER, c.temperature_data[1] = -1.0f, STATUS(BAD_PARAM), "temperature|1|-1|0");
    CALL_FAILS(INFER, c.temperature_data[0] = NAN, STATUS(BAD_PARAM), "temperature|0|nan");
    CALL_FAILS(INFER, c.temperature_data[1] = INFINITY, STATUS(BAD_PARAM), "temperature|1|inf");
    CALL_FAILS(INFER, c.topp_data[1] = 0.0f, STATUS(BAD_PARAM), "topp|1|0");
    CALL_FAILS(INFER, c.topp_data[0] = 1.5f, STATUS(BAD_PARAM), "topp|0|1.5|1");
    CALL_FAILS(INFER, c.topp_data[0] = -0.25f, STATUS(BAD_PARAM), "topp|0|-0.25");
    CALL_FAILS(INFER, c.topp_data[1] = NAN, STATUS(BAD_PARAM), "topp|1|nan");

    /* pos + len > dctx: 64 is the context length of this model */
    uint32_t long_tokens[70] = {0};
    CALL_FAILS(ALL, c.tokens = long_tokens; c.ntok = 70; c.len_data[0] = 65;
               c.len_data[1] = 5, STATUS(CONTEXT_OVERFLOW), "req|0|65|64");
    CALL_FAILS(ALL, c.tokens = long_tokens; c.ntok = 66; c.len_data[0] = 3;
               c.len_data[1] = 63, STATUS(CONTEXT_OVERFLOW), "req|1|65|64");
}

static void testSamplingArguments(Bench *b) {
    const uint32_t history[3] = {1, 2, 3}, bad_history[3] = {1, 2, 100}, bad_bias[2] = {5, 100}, bias[2] = {5, 6};
    const float values[2] = {1.0f, -INFINITY}, nan_values[2] = {1.0f, NAN}, inf_values[2] = {1.0f, INFINITY};
    const float banned[1] = {-INFINITY};
    const uint32_t none[4] = {0, 0, 0, 0}, beyond[4] = {0, 0, 0, 0xfffffff0u}, only_5[4] = {1u << 5, 0, 0, 0};
    Qwen3SamplingParams *p = NULL;
    (void)p;
#define PARAM_FAILS(change, expected, words) CALL_FAILS(INFER_EX, p = &c.param_data[1]; change, expected, words)
    PARAM_FAILS(c.param_data[0].struct_size = 0, STATUS(ABI_MISMATCH), "struct_size|0");
    PARAM_FAILS(p->struct_size = 8, STATUS(ABI_MISMATCH), "struct_size|8");
    PARAM_FAILS(c.result_data[0].struct_size = 0, STATUS(ABI_MISMATCH), "struct_size|0");
    PARAM_FAILS(c.result_data[1].struct_size = 4, STATUS(ABI_MISMATCH), "struct_size|4");
    PARAM_FAILS(p->temperature = -0.5f, STATUS(BAD_PARAM), "temperature|1|-0.5");
    PARAM_FAILS(p->temperature = NAN, STATUS(BAD_PARAM), "temperature|1|nan");
    PARAM_FAILS(p->temperature = INFINITY, STATUS(BAD_PARAM), "temperature|1|inf");
    PARAM_FAILS(p->top_p = 0.0f, STATUS(BAD_PARAM), "top_p|1|0");
    PARAM_FAILS(p->top_p = 1.25f, STATUS(BAD_PARAM), "top_p|1|1.25");
    PARAM_FAILS(p->top_p = NAN, STATUS(BAD_PARAM), "top_p|1|nan");
    PARAM_FAILS(p->min_p = 1.0f, STATUS(BAD_PARAM), "min_p|1");
    PARAM_FAILS(p->min_p = -0.5f, STATUS(BAD_PARAM), "min_p|1|-0.5");
    PARAM_FAILS(p->min_p = NAN, STATUS(BAD_PARAM), "min_p|1|nan");
    PARAM_FAILS(p->repetition_penalty = 0.0f, STATUS(BAD_PARAM), "repetition_penalty|1|0");
    PARAM_FAILS(p->repetition_penalty = -1.5f, STATUS(BAD_PARAM), "repetition_penalty|1|-1.5");
    PARAM_FAILS(p->repetition_penalty = NAN, STATUS(BAD_PARAM), "repetition_penalty|1|nan");
    PARAM_FAILS(p->repetition_penalty = INFINITY, STATUS(BAD_PARAM), "repetition_penalty|1|inf");
    PARAM_FAILS(p->presence_penalty = 2.5f, STATUS(BAD_PARAM), "presence_penalty|1|2.5|2");
    PARAM_FAILS(p->presence_penalty = NAN, STATUS(BAD_PARAM), "presence_penalty|1|nan");
    PARAM_FAILS(p->frequency_penalty = -2.5f, STATUS(BAD_PARAM), "frequency_penalty|1|-2.5|-2");
    PARAM_FAILS(p->frequency_penalty = NAN, STATUS(BAD_PARAM), "frequency_penalty|1|nan");
    PARAM_FAILS(p->nhistory = 3, STATUS(NULL_POINTER), "history|1");
    PARAM_FAILS(p->history = bad_history; p->nhistory = 3, STATUS(BAD_PARAM), "history|1|2|100");
    PARAM_FAILS(p->history = history; p->nhistory = 3; p->ngenerated = 4, STATUS(BAD_PARAM), "ngenerated|1|4|3");
    PARAM_FAILS(p->nbias = 2; p->bias_values = values, STATUS(NULL_POINTER), "bias_tokens|1");
    PARAM_FAILS(p->nbias = 2; p->bias_tokens = bias, STATUS(NULL_POINTER), "bias_values|1");
    PARAM_FAILS(p->nbias = 2; p->bias_tokens = bad_bias;
                p->bias_values = values, STATUS(BAD_PARAM), "bias_tokens|1|100");
    PARAM_FAILS(p->nbias = 2; p->bias_tokens = bias;
                p->bias_values = nan_values, STATUS(BAD_PARAM), "bias_values|1|nan");
    PARAM_FAILS(p->nbias = 2; p->bias_tokens = bias;
                p->bias_values = inf_values, STATUS(BAD_PARAM), "bias_values|1|inf");
    PARAM_FAILS(p->allowed_mask = none, STATUS(BAD_PARAM), "allowed_mask|1");
    PARAM_FAILS(p->allowed_mask = beyond, STATUS(BAD_PARAM), "allowed_mask|1");
    PARAM_FAILS(p->allowed_mask = only_5; p->nbias = 1; p->bias_tokens = bias;
                p->bias_values = banned, STATUS(BAD_PARAM), "1");
    PARAM_FAILS(p->top_logprobs = 129, STATUS(BAD_PARAM), "top_logprobs|1|129|128");
    PARAM_FAILS(p->top_logprobs = 4;
                c.result_data[1].top_tokens = c.top_token_data, STATUS(NULL_POINTER), "top_logprobs|1");
    PARAM_FAILS(p->top_logprobs = 4;
                c.result_data[1].top_logprobs = c.top_logprob_data, STATUS(NULL_POINTER), "top_tokens|1");
    PARAM_FAILS(p->ndraft = c.len_data[1], STATUS(BAD_PARAM), "ndraft|1|req_lens");
    PARAM_FAILS(p->ndraft = SIZE_MAX, STATUS(BAD_PARAM), "ndraft|1|req_lens");
    PARAM_FAILS(p->ndraft = 1; p->skip = 1, STATUS(BAD_PARAM), "ndraft|1|skip");
    PARAM_FAILS(p->reserved = 3, STATUS(BAD_PARAM), "reserved|1|3");
#undef PARAM_FAILS
}

/* The call that CALL_FAILS starts from is a valid one. */
static void testValidCall(Bench *b) {
    for (int which = 1; which <= FORWARD; which *= 2) {
        Call c;
        uint32_t length = 0;
        struct KVCache *caches[2] = {createKVCache(b->model), duplicateKVCache(b->model, b->caches[1], 2)};
        initCall(&c, b->model, caches);
        int32_t status = callBatch(&c, which);
        report(status == QWEN3_STATUS_SUCCESS, __FILE__, __LINE__, "valid call %d: %s", which, qwen3LastError());
        CHECK(qwen3KVCacheLength(b->model, caches[0], &length) == QWEN3_STATUS_SUCCESS && length == 3);
        CHECK(qwen3KVCacheLength(b->model, caches[1], &length) == QWEN3_STATUS_SUCCESS && length == 4);
        CHECK(!outputsUntouched(&c));
        dropKVCache(b->model, caches[1]);
        dropKVCache(b->model, caches[0]);
    }
}

/* A caller built before drafts existed: what lies in the padding at the end of its structs means nothing. */
static void testOlderSampling(Bench *b) {
    struct Old {
        size_t words[offsetof(Qwen3SamplingParams, ndraft) / sizeof(size_t)];
    } old[2];
    struct KVCache *caches[2] = {createKVCache(b->model), duplicateKVCache(b->model, b->caches[1], 2)};
    Call c;
    uint32_t length = 0;
    initCall(&c, b->model, caches);
    for (int i = 0; i < 2; ++i) {
        c.param_data[i].struct_size = sizeof(struct Old);
        memcpy(&old[i], &c.param_data[i], sizeof(struct Old));
        for (size_t j = offsetof(Qwen3SamplingParams, top_logprobs) + 4; j < sizeof(struct Old); ++j) {
            ((unsigned char *)&old[i])[j] = 0xff;
        }
    }
    c.params = (const Qwen3SamplingParams *)(const void *)old;
    report(callBatch(&c, INFER_EX) == QWEN3_STATUS_SUCCESS, __FILE__, __LINE__, "older struct: %s", qwen3LastError());
    CHECK(c.result_data[0].logprob < 0.0f && c.result_data[1].naccepted == 0);
    CHECK(qwen3KVCacheLength(b->model, caches[0], &length) == QWEN3_STATUS_SUCCESS && length == 3);
    dropKVCache(b->model, caches[1]);
    dropKVCache(b->model, caches[0]);
}

/* ------------------------------------------------------------------ struct sizes of other versions */

/* Exactly n bytes, so that ASan sees a read or write past them. The first eight hold `size`, the rest is `fill`. */
static void *newStruct(size_t n, size_t size, int fill) {
    unsigned char *bytes = malloc(n);
    if (bytes == NULL) {
        abort();
    }
    memset(bytes, fill, n);
    memcpy(bytes, &size, sizeof(size));
    return bytes;
}

static int32_t inferStructs(Call *c, const void *params, void *results) {
    return inferBatchEx(c->model, c->tokens, c->ntok, c->req_lens, c->nreq, c->req_pos, c->kv_caches, params, results);
}

/* Nothing but struct_size is there: whoever reads on before refusing it is caught. */
static void testGarbageSizes(const Setup *base, Bench *b) {
    const size_t garbage[] = {0, 1, 4, 7, 39, 65, 4097, 4104, (size_t)1 << 31, (size_t)1 << 63, SIZE_MAX - 7, SIZE_MAX};
    for (size_t i = 0; i < sizeof(garbage) / sizeof(garbage[0]); ++i) {
        void *only = newStruct(sizeof(size_t), garbage[i], 0);
        char value[64], words[160];
        snprintf(value, sizeof(value), "struct_size is %zu,", garbage[i]);
        Call c;
        initCall(&c, b->model, b->caches);

        snprintf(words, sizeof(words), "options|%s|Qwen3ModelOptions|8 to 4096", value);
        CHECK(createQwen3ModelEx(&base->meta, &base->weights, 0, 1, NULL, only) == NULL);
        checkFailure(__LINE__, "options", qwen3LastStatus(), STATUS(ABI_MISMATCH), words);

        Setup s = *base;
        rebase(&s, base);
        s.options.tensors = only;
        s.options.ntensors = 1;
        snprintf(words, sizeof(words), "options.tensors[0]|%s|Qwen3Tensor|128 to 4096", value);
        checkCreateFails(__LINE__, "tensors", &s, STATUS(ABI_MISMATCH), words);

        snprintf(words, sizeof(words), "params[0]|%s|Qwen3SamplingParams|40 to 4096", value);
        checkFailure(__LINE__, "params", inferStructs(&c, only, c.result_data), STATUS(ABI_MISMATCH), words);
        snprintf(words, sizeof(words), "results[0]|%s|Qwen3SampleResult|40 to 4096", value);
        checkFailure(__LINE__, "results", inferStructs(&c, c.param_data, only), STATUS(ABI_MISMATCH), words);
        CHECK(outputsUntouched(&c));
        snprintf(words, sizeof(words), "stats|%s|Qwen3Stats|64 to 4096", value);
        checkFailure(__LINE__, "stats", qwen3GetStats(b->model, only), STATUS(ABI_MISMATCH), words);
        free(only);
    }
    checkHealthy(__LINE__, "garbage sizes", b->model, b->greedy);
}

/* A caller built against a later header: output structs are filled, and what this library does not know is zeroed. */
static void testNewerOutputs(Bench *b) {
    enum { MORE = 24, STATS = sizeof(Qwen3Stats) + MORE, RESULT = sizeof(Qwen3SampleResult) + MORE };
    const unsigned char zeros[MORE] = {0};
    Qwen3Stats plain = {sizeof(plain), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    unsigned char *stats = newStruct(STATS, STATS, 0xff);
    CHECK(qwen3GetStats(b->model, &plain) == QWEN3_STATUS_SUCCESS);
    CHECK(qwen3GetStats(b->model, (Qwen3Stats *)(void *)stats) == QWEN3_STATUS_SUCCESS);
    CHECK(((Qwen3Stats *)(void *)stats)->struct_size == STATS); /* the caller's, as it was */
    CHECK(memcmp(stats + 8, (unsigned char *)&plain + 8, sizeof(plain) - 8) == 0);
    CHECK(memcmp(stats + sizeof(plain), zeros, MORE) == 0);
    free(stats);

    Call known, c;
    for (int newer = 0; newer < 2; ++newer) {
        struct KVCache *caches[2] = {createKVCache(b->model), duplicateKVCache(b->model, b->caches[1], 2)};
        Call *call = newer ? &c : &known;
        initCall(call, b->model, caches);
        call->param_data[1].top_logprobs = 4;
        call->result_data[1].top_tokens = call->top_token_data;
        call->result_data[1].top_logprobs = call->top_logprob_data;
        if (!newer) {
            CHECK(callBatch(call, INFER_EX) == QWEN3_STATUS_SUCCESS);
        } else {
            unsigned char *results = newStruct((size_t)2 * RESULT, RESULT, 0xff);
            for (size_t r = 0; r < 2; ++r) {
                memcpy(results + r * RESULT, &call->result_data[r], sizeof(Qwen3SampleResult));
                ((Qwen3SampleResult *)(void *)(results + r * RESULT))->struct_size = RESULT;
            }
            report(inferStructs(call, call->param_data, results) == QWEN3_STATUS_SUCCESS, __FILE__, __LINE__,
                   "newer results: %s", qwen3LastError());
            for (size_t r = 0; r < 2; ++r) {
                const Qwen3SampleResult *result = (const Qwen3SampleResult *)(const void *)(results + r * RESULT);
                CHECK(result->struct_size == RESULT && result->token == known.result_data[r].token);
                CHECK(result->logprob == known.result_data[r].logprob && result->naccepted == 0);
                CHECK(result->ntop == (r == 0 ? 0u : 4u) && result->top_tokens == call->result_data[r].top_tokens);
                CHECK(memcmp(results + r * RESULT + sizeof(Qwen3SampleResult), zeros, MORE) == 0);
            }
            CHECK(memcmp(call->top_token_data, known.top_token_data, sizeof(known.top_token_data)) == 0);
            free(results);
        }
        dropKVCache(b->model, caches[1]);
        dropKVCache(b->model, caches[0]);
    }
}

/* What is passed in: older structs are filled up with defaults, newer ones accepted if their unknown members are 0. */
static void testOtherInputs(const Setup *base, Bench *b) {
    enum { PARAMS = sizeof(Qwen3SamplingParams) + 16, OPTIONS = sizeof(Qwen3ModelOptions) + 16 };
    const size_t older[] = {8, offsetof(Qwen3ModelOptions, max_step_tokens), offsetof(Qwen3ModelOptions, tensors)};
    for (size_t i = 0; i < sizeof(older) / sizeof(older[0]); ++i) {
        unsigned char *options = newStruct(older[i], older[i], 0);
        struct Qwen3Model *model = createQwen3ModelEx(&base->meta, &base->weights, 0, 1, NULL, (void *)options);
        report(model != NULL, __FILE__, __LINE__, "options of %zu bytes: %s", older[i], qwen3LastError());
        uint32_t output[NGREEDY] = {0};
        CHECK(greedy(model, 1, output) && memcmp(output, b->greedy, sizeof(output)) == 0);
        destroyQwen3Model(model);
        free(options);
    }
    for (int tail = 0; tail < 2; ++tail) {
        unsigned char *options = newStruct(OPTIONS, OPTIONS, 0), *params = newStruct((size_t)2 * PARAMS, PARAMS, 0);
        options[OPTIONS - 1] = (unsigned char)tail;
        struct Qwen3Model *model = createQwen3ModelEx(&base->meta, &base->weights, 0, 1, NULL, (void *)options);
        CHECK((model == NULL) == (tail != 0));
        if (tail != 0) {
            checkFailure(__LINE__, "newer options", qwen3LastStatus(), STATUS(ABI_MISMATCH),
                         "options.struct_size|Qwen3ModelOptions|not all is zero");
        }
        destroyQwen3Model(model);

        struct KVCache *caches[2] = {createKVCache(b->model), duplicateKVCache(b->model, b->caches[1], 2)};
        Call c;
        initCall(&c, b->model, caches);
        for (size_t r = 0; r < 2; ++r) {
            memcpy(params + r * PARAMS, &c.param_data[r], sizeof(Qwen3SamplingParams));
            ((Qwen3SamplingParams *)(void *)(params + r * PARAMS))->struct_size = PARAMS;
        }
        params[2 * PARAMS - 1] = (unsigned char)tail;
        const int32_t status = inferStructs(&c, params, c.result_data);
        CHECK((status == QWEN3_STATUS_SUCCESS) == (tail == 0));
        if (tail != 0) {
            checkFailure(__LINE__, "newer params", status, STATUS(ABI_MISMATCH),
                         "params[1].struct_size|Qwen3SamplingParams|not all is zero");
            CHECK(outputsUntouched(&c));
        }
        dropKVCache(b->model, caches[1]);
        dropKVCache(b->model, caches[0]);
        free(params);
        free(options);
    }
    /* sizes that are fine alone but differ within an array */
    CALL_FAILS(INFER_EX, c.param_data[1].struct_size = 64, STATUS(ABI_MISMATCH),
               "params[1].struct_size is 64|params[0]");
    CALL_FAILS(INFER_EX, c.result_data[1].struct_size = 64, STATUS(ABI_MISMATCH),
               "results[1].struct_size is 64|results[0]");
}

/* ------------------------------------------------------------------ caches and information */

static void testCaches(Bench *b, struct KVCache *foreign, struct KVCache *dropped) {
    uint32_t length = 77;
    CHECK(createKVCache(NULL) == NULL);
    checkFailure(__LINE__, "createKVCache(NULL)", qwen3LastStatus(), STATUS(NULL_POINTER), "model");
    CHECK(duplicateKVCache(NULL, b->caches[1], 1) == NULL);
    checkFailure(__LINE__, "duplicateKVCache(NULL, ...)", qwen3LastStatus(), STATUS(NULL_POINTER), "model");
    CHECK(duplicateKVCache(b->model, NULL, 0) == NULL);
    checkFailure(__LINE__, "duplicateKVCache(model, NULL)", qwen3LastStatus(), STATUS(NULL_POINTER), "cache");
    CHECK(duplicateKVCache(b->model, b->caches[1], 3) == NULL);
    checkFailure(__LINE__, "duplicateKVCache beyond length", qwen3LastStatus(), STATUS(BAD_PARAM), "seq_len|3|2");
    CHECK(duplicateKVCache(b->model, foreign, 0) == NULL);
    checkFailure(__LINE__, "duplicateKVCache of foreign", qwen3LastStatus(), STATUS(CACHE_MISMATCH), "cache");
    CHECK(duplicateKVCache(b->model, dropped, 0) == NULL);
    checkFailure(__LINE__, "duplicateKVCache of dropped", qwen3LastStatus(), STATUS(CACHE_MISMATCH), "cache");

    checkFailure(__LINE__, "length, model NULL", qwen3KVCacheLength(NULL, b->caches[1], &length), STATUS(NULL_POINTER),
                 "model");
    checkFailure(__LINE__, "length, cache NULL", qwen3KVCacheLength(b->model, NULL, &length), STATUS(NULL_POINTER),
                 "cache");
    checkFailure(__LINE__, "length, out NULL", qwen3KVCacheLength(b->model, b->caches[1], NULL), STATUS(NULL_POINTER),
                 "length");
    checkFailure(__LINE__, "length of foreign", qwen3KVCacheLength(b->model, foreign, &length), STATUS(CACHE_MISMATCH),
                 "cache");
    checkFailure(__LINE__, "length of dropped", qwen3KVCacheLength(b->model, dropped, &length), STATUS(CACHE_MISMATCH),
                 "cache");
    CHECK(length == 77);

    Qwen3Stats before = {sizeof(before), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, after = before;
    CHECK(qwen3GetStats(b->model, &before) == QWEN3_STATUS_SUCCESS);
    dropKVCache(NULL, b->caches[0]); /* all no-ops */
    dropKVCache(b->model, NULL);
    dropKVCache(b->model, foreign);
    dropKVCache(b->model, dropped);
    dropKVCache(b->model, (struct KVCache *)&length);
    destroyQwen3Model(NULL);
    qwen3Cancel(NULL);
    qwen3Cancel(b->model); /* nothing runs: must not cancel the next step */
    CHECK(qwen3GetStats(b->model, &after) == QWEN3_STATUS_SUCCESS);
    CHECK(memcmp(&before, &after, sizeof(before)) == 0);
    checkHealthy(__LINE__, "no-ops", b->model, b->greedy);
}

static void testCacheFiles(Bench *b, struct KVCache *foreign) {
    uint32_t tokens[] = {1, 2, 3}, bad[] = {1, 0x7fffffff}, length = 77;
    uint64_t fingerprint = 0;
    struct KVCache *cache = b->caches[1];
    const struct {
        const char *what;
        const struct Qwen3Model *model;
        const struct KVCache *cache;
        const uint32_t *tokens;
        uint32_t seq_len;
        const char *path;
        const int32_t *status;
        const char *words;
    } saves[] = {
        {"save cache, model NULL", NULL, cache, tokens, 2, "file", STATUS(NULL_POINTER), "model"},
        {"save cache, cache NULL", b->model, NULL, tokens, 2, "file", STATUS(NULL_POINTER), "cache"},
        {"save cache, tokens NULL", b->model, cache, NULL, 2, "file", STATUS(NULL_POINTER), "tokens"},
        {"save cache, path NULL", b->model, cache, tokens, 2, NULL, STATUS(NULL_POINTER), "path"},
        {"save cache, foreign", b->model, foreign, tokens, 2, "file", STATUS(CACHE_MISMATCH), "cache"},
        {"save cache, too long", b->model, cache, tokens, 3, "file", STATUS(BAD_PARAM), "seq_len|3|2"},
        {"save cache, nothing", b->model, cache, tokens, 0, "file", STATUS(BAD_PARAM), "seq_len|0"},
        {"save cache, token", b->model, cache, bad, 2, "file", STATUS(BAD_PARAM), "tokens[1]|2147483647"},
        {"save cache, no folder", b->model, cache, tokens, 2, "/nonexistent/file", STATUS(IO_ERROR),
         "/nonexistent/file|No such file"},
    };
    for (size_t i = 0; i < sizeof(saves) / sizeof(saves[0]); ++i) {
        checkFailure(__LINE__, saves[i].what,
                     qwen3SaveKVCache(saves[i].model, saves[i].cache, saves[i].tokens, saves[i].seq_len, saves[i].path),
                     saves[i].status, saves[i].words);
    }
    CHECK(qwen3LoadKVCache(NULL, "file", tokens, 3, &length) == NULL);
    checkFailure(__LINE__, "load cache, model NULL", qwen3LastStatus(), STATUS(NULL_POINTER), "model");
    CHECK(qwen3LoadKVCache(b->model, NULL, tokens, 3, &length) == NULL);
    checkFailure(__LINE__, "load cache, path NULL", qwen3LastStatus(), STATUS(NULL_POINTER), "path");
    CHECK(qwen3LoadKVCache(b->model, "file", NULL, 3, &length) == NULL);
    checkFailure(__LINE__, "load cache, tokens NULL", qwen3LastStatus(), STATUS(NULL_POINTER), "tokens");
    CHECK(qwen3LoadKVCache(b->model, "file", tokens, 3, NULL) == NULL);
    checkFailure(__LINE__, "load cache, seq_len NULL", qwen3LastStatus(), STATUS(NULL_POINTER), "seq_len");
    CHECK(qwen3LoadKVCache(b->model, "/nonexistent/file", tokens, 3, &length) == NULL);
    checkFailure(__LINE__, "load cache, absent", qwen3LastStatus(), STATUS(IO_ERROR), "/nonexistent/file|No such file");
    checkFailure(__LINE__, "fingerprint, model NULL", qwen3KVCacheFingerprint(NULL, &fingerprint), STATUS(NULL_POINTER),
                 "model");
    checkFailure(__LINE__, "fingerprint NULL", qwen3KVCacheFingerprint(b->model, NULL), STATUS(NULL_POINTER),
                 "fingerprint");
    CHECK(length == 77 && tokens[0] == 1 && fingerprint == 0);
    CHECK(qwen3KVCacheFingerprint(b->model, &fingerprint) == QWEN3_STATUS_SUCCESS && fingerprint != 0);
    checkHealthy(__LINE__, "cache files", b->model, b->greedy);
}

static void *freshThread(void *unused) {
    (void)unused;
    CHECK(strcmp(qwen3LastError(), "") == 0);
    CHECK(qwen3LastStatus() == QWEN3_STATUS_SUCCESS);
    CHECK(createKVCache(NULL) == NULL);
    CHECK(qwen3LastStatus() == QWEN3_STATUS_NULL_POINTER);
    return NULL;
}

static void testInformation(Bench *b) {
    Qwen3Stats stats;
    memset(&stats, 0, sizeof(stats));
    checkFailure(__LINE__, "save, model NULL", qwen3SaveWeights(NULL, "file", NULL), STATUS(NULL_POINTER), "model");
    checkFailure(__LINE__, "save, path NULL", qwen3SaveWeights(b->model, NULL, NULL), STATUS(NULL_POINTER), "path");
    checkFailure(__LINE__, "save, no folder", qwen3SaveWeights(b->model, "/nonexistent/file", NULL), STATUS(IO_ERROR),
                 "/nonexistent/file|No such file");
    checkFailure(__LINE__, "stats, model NULL", qwen3GetStats(NULL, &stats), STATUS(NULL_POINTER), "model");
    checkFailure(__LINE__, "stats NULL", qwen3GetStats(b->model, NULL), STATUS(NULL_POINTER), "stats");
    checkFailure(__LINE__, "stats, struct_size 0", qwen3GetStats(b->model, &stats), STATUS(ABI_MISMATCH),
                 "struct_size|0");
    CHECK(stats.weight_bytes == 0 && stats.nthreads == 0);
    stats.struct_size = sizeof(stats);
    CHECK(qwen3GetStats(b->model, &stats) == QWEN3_STATUS_SUCCESS);
    CHECK(stats.weight_bytes > 0 && stats.kv_block_bytes > 0 && stats.kv_block_tokens > 0 && stats.kv_limit_bytes > 0);
    CHECK(stats.nthreads == 2 && stats.ncaches == 2 && stats.kv_used_bytes == stats.kv_block_bytes);

    const size_t sizes[] = {sizeof(Qwen3Meta),           sizeof(Qwen3Weights),      sizeof(Qwen3ModelOptions),
                            sizeof(Qwen3SamplingParams), sizeof(Qwen3SampleResult), sizeof(Qwen3Stats),
                            sizeof(Qwen3LoadState),      sizeof(Qwen3Tensor)};
    for (int32_t kind = 0; kind < 8; ++kind) {
        CHECK(qwen3StructSize(kind) == sizes[kind]);
    }
    CHECK(qwen3StructSize(8) == 0 && qwen3StructSize(-1) == 0);
    CHECK(strcmp(qwen3Version(), QWEN3_VERSION_STRING) == 0);
    CHECK(qwen3AbiVersion() == QWEN3_ABI_VERSION);
    CHECK(strcmp(qwen3StatusName(QWEN3_STATUS_BAD_WEIGHTS), "QWEN3_STATUS_BAD_WEIGHTS") == 0);
    CHECK(strcmp(qwen3StatusName(0), "QWEN3_STATUS_SUCCESS") == 0);
    CHECK(strcmp(qwen3StatusName(9), "unknown status") == 0);
    CHECK(strcmp(qwen3StatusName(-1), "unknown status") == 0 && strcmp(qwen3StatusName(9999), "unknown status") == 0);
    CHECK(strstr(qwen3BuildInfo(NULL), "version=" QWEN3_VERSION_STRING) != NULL);
    CHECK(strstr(qwen3BuildInfo(NULL), "isa=") != NULL && strstr(qwen3BuildInfo(NULL), "infinicore=") != NULL);
    CHECK(strstr(qwen3BuildInfo(b->model), "backend=cpu") != NULL);
    CHECK(strstr(qwen3BuildInfo(b->model), "threads=2") != NULL);

    /* errors are per thread, and a later success keeps the last failure's text */
    CHECK(qwen3GetStats(b->model, NULL) == QWEN3_STATUS_NULL_POINTER);
    char message[512];
    snprintf(message, sizeof(message), "%s", qwen3LastError());
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, freshThread, NULL) == 0);
    pthread_join(thread, NULL);
    checkHealthy(__LINE__, "information", b->model, b->greedy);
    CHECK(strcmp(qwen3LastError(), message) == 0 && qwen3LastStatus() == QWEN3_STATUS_NULL_POINTER);
}

/* ------------------------------------------------------------------ running out of KV memory */

static void testOutOfKv(const Setup *base, int32_t ndev, const uint32_t expected[NGREEDY]) {
    Setup s = *base;
    rebase(&s, base);
    s.ndev = ndev;
    Qwen3Stats stats = {sizeof(stats), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    struct Qwen3Model *model = mustCreate(&s);
    CHECK(qwen3GetStats(model, &stats) == QWEN3_STATUS_SUCCESS);
    destroyQwen3Model(model);
    const uint32_t block = stats.kv_block_tokens;
    s.meta.dctx = 16 * block;
    s.options.kv_limit_bytes = 3 * stats.kv_block_bytes;
    model = mustCreate(&s);

    uint32_t *tokens = malloc(sizeof(uint32_t) * 8 * block), next = 0xdeadbeef, alone = 0, length = 0;
    float *logits = malloc(sizeof(float) * 100 * 2 * block);
    if (tokens == NULL || logits == NULL) {
        abort();
    }
    for (uint32_t i = 0; i < 8 * block; ++i) {
        tokens[i] = i * 7 % 100;
    }
    struct KVCache *first = createKVCache(model), *second = createKVCache(model);
    CHECK(step(model, tokens, 2 * block, 0, first, &alone) == QWEN3_STATUS_SUCCESS);

    char limit[32];
    snprintf(limit, sizeof(limit), "%llu|bytes", (unsigned long long)s.options.kv_limit_bytes);
    int32_t status = step(model, tokens, 2 * block, 0, second, &next);
    checkFailure(__LINE__, "KV limit", status, STATUS(OUT_OF_KV), limit);
    CHECK(next == 0xdeadbeef);
    logits[0] = -12345.0f;
    uint32_t lens = 2 * block, pos = 0;
    status = forwardBatch(model, tokens, lens, &lens, 1, &pos, &second, logits);
    checkFailure(__LINE__, "KV limit, forwardBatch", status, STATUS(OUT_OF_KV), limit);
    CHECK(logits[0] == -12345.0f);
    CHECK(qwen3KVCacheLength(model, first, &length) == QWEN3_STATUS_SUCCESS && length == 2 * block);
    CHECK(qwen3KVCacheLength(model, second, &length) == QWEN3_STATUS_SUCCESS && length == 0);
    CHECK(qwen3GetStats(model, &stats) == QWEN3_STATUS_SUCCESS && stats.kv_used_bytes == 2 * stats.kv_block_bytes);

    /* a batch of which only one request fits leaves both caches as they were */
    {
        const uint32_t batch_lens[2] = {1, block + 1}, batch_pos[2] = {2 * block, 0}, topk[2] = {1, 1};
        const float temperature[2] = {0, 0}, topp[2] = {1, 1};
        struct KVCache *batch[2] = {first, second};
        uint32_t output[2] = {0xdeadbeef, 0xdeadbeef};
        status = inferBatch(model, tokens, block + 2, batch_lens, 2, batch_pos, batch, temperature, topk, topp, output);
        checkFailure(__LINE__, "KV limit, batch", status, STATUS(OUT_OF_KV), limit);
        CHECK(output[0] == 0xdeadbeef && output[1] == 0xdeadbeef);
        CHECK(qwen3KVCacheLength(model, first, &length) == QWEN3_STATUS_SUCCESS && length == 2 * block);
        CHECK(qwen3KVCacheLength(model, second, &length) == QWEN3_STATUS_SUCCESS && length == 0);
    }

    /* copies cost nothing until they are written; then they do */
    struct KVCache *copy = duplicateKVCache(model, first, 2 * block - 1);
    CHECK(copy != NULL);
    CHECK(qwen3GetStats(model, &stats) == QWEN3_STATUS_SUCCESS && stats.kv_used_bytes == 2 * stats.kv_block_bytes);
    CHECK(step(model, tokens + 2 * block - 1, 1, 2 * block - 1, copy, &next) == QWEN3_STATUS_SUCCESS && next == alone);
    CHECK(qwen3GetStats(model, &stats) == QWEN3_STATUS_SUCCESS && stats.kv_used_bytes == 3 * stats.kv_block_bytes);
    status = step(model, tokens, 1, 2 * block, copy, &next);
    checkFailure(__LINE__, "KV limit after copy", status, STATUS(OUT_OF_KV), limit);
    CHECK(qwen3KVCacheLength(model, copy, &length) == QWEN3_STATUS_SUCCESS && length == 2 * block);
    dropKVCache(model, copy);

    /* two that share a block write to it in one call: one copy of it is enough, which is all that is left */
    copy = duplicateKVCache(model, first, 2 * block - 1);
    {
        const uint32_t last[2] = {tokens[2 * block - 1], tokens[2 * block - 1]}, topk[2] = {1, 1}, one_each[2] = {1, 1};
        const uint32_t last_pos[2] = {2 * block - 1, 2 * block - 1};
        const float temperature[2] = {0, 0}, topp[2] = {1, 1};
        struct KVCache *batch[2] = {first, copy};
        uint32_t output[2] = {0, 0};
        status = inferBatch(model, last, 2, one_each, 2, last_pos, batch, temperature, topk, topp, output);
        report(status == QWEN3_STATUS_SUCCESS, __FILE__, __LINE__, "two writers of a shared block: %s",
               qwen3LastError());
        CHECK(output[0] == alone && output[1] == alone);
    }
    dropKVCache(model, copy);

    /* the first cache is intact: its last token again gives the same answer; then make room */
    CHECK(step(model, tokens + 2 * block - 1, 1, 2 * block - 1, first, &next) == QWEN3_STATUS_SUCCESS && next == alone);
    dropKVCache(model, first);
    CHECK(step(model, tokens, 2 * block, 0, second, &next) == QWEN3_STATUS_SUCCESS && next == alone);
    dropKVCache(model, second);
    CHECK(qwen3GetStats(model, &stats) == QWEN3_STATUS_SUCCESS && stats.kv_used_bytes == 0 && stats.ncaches == 0);

    /* more than the limit could ever hold */
    first = createKVCache(model);
    status = step(model, tokens, 4 * block, 0, first, &next);
    checkFailure(__LINE__, "KV limit, never fits", status, STATUS(OUT_OF_KV), limit);
    dropKVCache(model, first);
    checkHealthy(__LINE__, "OUT_OF_KV", model, expected);
    destroyQwen3Model(model);
    free(logits);
    free(tokens);
}

/* ------------------------------------------------------------------ threads */

typedef struct {
    struct Qwen3Model *model;
    pthread_mutex_t lock;
    int stop;
} Canceller;

static void *cancelUntilStopped(void *argument) {
    Canceller *c = argument;
    for (int stop = 0; !stop;) {
        sleepMs(1);
        qwen3Cancel(c->model);
        pthread_mutex_lock(&c->lock);
        stop = c->stop;
        pthread_mutex_unlock(&c->lock);
    }
    return NULL;
}

static void testCancel(int32_t ndev) {
    enum { LONG = 6000 };
    Setup s;
    initSetup(&s, 4, 128, LONG + 64);
    s.ndev = ndev;
    struct Qwen3Model *model = mustCreate(&s);
    uint32_t expected[NGREEDY], *tokens = malloc(sizeof(uint32_t) * LONG), next = 0xdeadbeef, length = 0, again = 0;
    if (tokens == NULL) {
        abort();
    }
    for (uint32_t i = 0; i < LONG; ++i) {
        tokens[i] = i * 13 % 100;
    }
    CHECK(greedy(model, 1, expected));
    struct KVCache *kv = createKVCache(model);
    uint32_t first = 0;
    CHECK(step(model, tokens, 20, 0, kv, &first) == QWEN3_STATUS_SUCCESS);

    Canceller canceller = {model, PTHREAD_MUTEX_INITIALIZER, 0};
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, cancelUntilStopped, &canceller) == 0);
    int32_t status = step(model, tokens + 20, LONG - 20, 20, kv, &next);
    pthread_mutex_lock(&canceller.lock);
    canceller.stop = 1;
    pthread_mutex_unlock(&canceller.lock);
    pthread_join(thread, NULL);
    checkFailure(__LINE__, "qwen3Cancel", status, STATUS(CANCELLED), "");
    CHECK(next == 0xdeadbeef);

    /* the cache still holds its tokens before req_pos: the 20th again gives the same answer */
    CHECK(qwen3KVCacheLength(model, kv, &length) == QWEN3_STATUS_SUCCESS && length >= 20);
    CHECK(step(model, tokens + 19, 1, 19, kv, &again) == QWEN3_STATUS_SUCCESS && again == first);
    dropKVCache(model, kv);
    checkHealthy(__LINE__, "qwen3Cancel", model, expected);
    destroyQwen3Model(model);
    free(tokens);
    freeSetup(&s);
}

typedef struct {
    struct Qwen3Model *model;
    uint32_t first;
    uint32_t expected[NGREEDY];
} Worker;

static void *hammer(void *argument) {
    const Worker *w = argument;
    for (int round = 0; round < 10; ++round) {
        uint32_t output[NGREEDY] = {0}, length = 0;
        const uint32_t prompt[3] = {w->first, w->first + 1, w->first + 2};
        CHECK(greedy(w->model, w->first, output) && memcmp(output, w->expected, sizeof(output)) == 0);
        /* the same through a copy of a prefix, with failing calls and statistics in between */
        struct KVCache *kv = createKVCache(w->model);
        CHECK(step(w->model, prompt, 2, 0, kv, &output[0]) == QWEN3_STATUS_SUCCESS);
        CHECK(step(w->model, prompt, 1, 9, kv, &output[0]) == QWEN3_STATUS_CACHE_MISMATCH);
        CHECK(qwen3LastStatus() == QWEN3_STATUS_CACHE_MISMATCH && strstr(qwen3LastError(), "req_pos") != NULL);
        struct KVCache *copy = duplicateKVCache(w->model, kv, 2);
        dropKVCache(w->model, kv);
        Qwen3Stats stats = {sizeof(stats), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
        CHECK(qwen3GetStats(w->model, &stats) == QWEN3_STATUS_SUCCESS && stats.ncaches >= 1);
        CHECK(step(w->model, &prompt[2], 1, 2, copy, &output[0]) == QWEN3_STATUS_SUCCESS);
        CHECK(output[0] == w->expected[0]);
        /* and through a file, written while others compute */
        uint32_t stored[4] = {0};
        char path[] = "/tmp/test_capi_errors.XXXXXX";
        const int file = mkstemp(path);
        CHECK(file >= 0 && close(file) == 0);
        CHECK(qwen3SaveKVCache(w->model, copy, prompt, 2, path) == QWEN3_STATUS_SUCCESS);
        struct KVCache *loaded = qwen3LoadKVCache(w->model, path, stored, 4, &length);
        CHECK(loaded != NULL && length == 2 && memcmp(stored, prompt, 2 * sizeof(uint32_t)) == 0);
        CHECK(qwen3LoadKVCache(w->model, path, stored, 1, &length) == NULL);
        CHECK(qwen3LastStatus() == QWEN3_STATUS_BAD_PARAM && strstr(qwen3LastError(), "capacity is 1") != NULL);
        CHECK(unlink(path) == 0);
        CHECK(step(w->model, &prompt[2], 1, 2, loaded, &output[0]) == QWEN3_STATUS_SUCCESS);
        CHECK(output[0] == w->expected[0]);
        dropKVCache(w->model, loaded);
        CHECK(qwen3KVCacheLength(w->model, copy, &length) == QWEN3_STATUS_SUCCESS && length == 3);
        dropKVCache(w->model, copy);
    }
    return NULL;
}

/* Eight threads; the last two use another model, which must run at the same time without mixing anything up. */
static void testThreads(struct Qwen3Model *one, struct Qwen3Model *other) {
    enum { NWORKER = 8 };
    Worker workers[NWORKER];
    pthread_t threads[NWORKER];
    for (uint32_t i = 0; i < NWORKER; ++i) {
        workers[i].model = i < NWORKER - 2 ? one : other;
        workers[i].first = 5 * i;
        CHECK(greedy(workers[i].model, workers[i].first, workers[i].expected));
    }
    for (uint32_t i = 0; i < NWORKER; ++i) {
        CHECK(pthread_create(&threads[i], NULL, hammer, &workers[i]) == 0);
    }
    for (uint32_t i = 0; i < NWORKER; ++i) {
        pthread_join(threads[i], NULL);
    }
}

/* ------------------------------------------------------------------ main */

int main(void) {
    Setup base, other_setup;
    initSetup(&base, 2, 64, 64);
    initSetup(&other_setup, 3, 96, 64);
    other_setup.ndev = 2;
    Bench b;
    struct Qwen3Model *other = mustCreate(&other_setup);
    b.model = mustCreate(&base);
    uint32_t other_greedy[NGREEDY];
    CHECK(greedy(b.model, 1, b.greedy) && greedy(other, 1, other_greedy));
    createCaches(&b);
    struct KVCache *foreign = createKVCache(other), *dropped = createKVCache(b.model);
    dropKVCache(b.model, dropped);

    testValidCall(&b);
    testOlderSampling(&b);
    testCreateSizes(&base);
    testCreatePointers(&base);
    testCreateArguments(&base);
    testCreateOptions(&base);
    testBadWeights(&base);
    testBatchArguments(&b, foreign, dropped);
    testSamplingArguments(&b);
    testGarbageSizes(&base, &b);
    testNewerOutputs(&b);
    testOtherInputs(&base, &b);
    testCaches(&b, foreign, dropped);
    testCacheFiles(&b, foreign);
    testInformation(&b);
    testOutOfKv(&base, 1, b.greedy);
    testOutOfKv(&base, 4, b.greedy); /* the blocks of all ranks count; the text is the same */
    testCancel(1);
    testCancel(2);
    testThreads(b.model, other);

    checkHealthy(__LINE__, "everything", b.model, b.greedy);
    checkHealthy(__LINE__, "everything", other, other_greedy);
    dropCaches(&b);
    dropKVCache(other, foreign);
    Qwen3Stats stats = {sizeof(stats), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    CHECK(qwen3GetStats(b.model, &stats) == QWEN3_STATUS_SUCCESS && stats.kv_used_bytes == 0 && stats.ncaches == 0);
    /* destroying a model frees the caches that are left */
    CHECK(createKVCache(b.model) != NULL);
    destroyQwen3Model(b.model);
    destroyQwen3Model(other);
    freeSetup(&other_setup);
    freeSetup(&base);
    printf("%d checks, %d failed\n", g_checks, g_failures);
    return g_failures == 0 ? 0 : 1;
}
