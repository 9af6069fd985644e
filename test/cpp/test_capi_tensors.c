/*
 * A model from Qwen3Tensor: whatever the form, the dtypes and the strides in which the same values are given, the
 * logits are those of Qwen3Weights bit for bit; and everything that is wrong or not implemented is refused by name,
 * before any data is read.
 *
 * Self-contained C99: link with the library and -lpthread (also under ASan and UBSan), run without arguments.
 */
#include "capi_check.h"

#include <stdlib.h>
#include <unistd.h>

/* ------------------------------------------------------------------ one set of values */

enum { NLAYER = 2, D = 48, NH = 4, NKVH = 2, DH = 16, DI = 40, DVOC = 100, NTOKEN = 5 };
enum { QROWS = NH * DH, KVROWS = NKVH * DH, MAX_TENSOR = 64, MAX_BLOCK = 512 };

/* Indices of `layer`, in the order in which fused tensors stack them. */
enum { Q, K, V, O, GATE, UP, DOWN, Q_B, K_B, V_B, O_B, ATTN_NORM, Q_NORM, K_NORM, FFN_NORM, NMEMBER };

static const struct {
    int32_t role;
    size_t rows, cols;
} g_members[NMEMBER] = {
    {QWEN3_TENSOR_ATTN_Q, QROWS, D},    {QWEN3_TENSOR_ATTN_K, KVROWS, D},  {QWEN3_TENSOR_ATTN_V, KVROWS, D},
    {QWEN3_TENSOR_ATTN_O, D, QROWS},    {QWEN3_TENSOR_FFN_GATE, DI, D},    {QWEN3_TENSOR_FFN_UP, DI, D},
    {QWEN3_TENSOR_FFN_DOWN, D, DI},     {QWEN3_TENSOR_ATTN_Q_B, QROWS, 1}, {QWEN3_TENSOR_ATTN_K_B, KVROWS, 1},
    {QWEN3_TENSOR_ATTN_V_B, KVROWS, 1}, {QWEN3_TENSOR_ATTN_O_B, D, 1},     {QWEN3_TENSOR_ATTN_NORM, D, 1},
    {QWEN3_TENSOR_ATTN_Q_NORM, DH, 1},  {QWEN3_TENSOR_ATTN_K_NORM, DH, 1}, {QWEN3_TENSOR_FFN_NORM, D, 1},
};

typedef struct {
    float *embd, *head, *norm;
    float *layer[NLAYER][NMEMBER];
} Values;

static void *g_blocks[MAX_BLOCK];
static size_t g_nblocks = 0;

static void *newBlock(size_t bytes) {
    void *block = malloc(bytes);
    if (block == NULL || g_nblocks == MAX_BLOCK) {
        abort();
    }
    return g_blocks[g_nblocks++] = block;
}

static void freeBlocksFrom(size_t first) {
    while (g_nblocks > first) {
        free(g_blocks[--g_nblocks]);
    }
}

/* Multiples of 1/64 up to `spread`, which are exact in every dtype. */
static float *newValues(size_t n, float centre, int spread) {
    static uint32_t state = 4711;
    float *values = newBlock(n * sizeof(float));
    for (size_t i = 0; i < n; ++i) {
        state = state * 1664525u + 1013904223u;
        values[i] = centre + (float)((int)(state >> 16) % (2 * spread + 1) - spread) / 64.0f;
    }
    return values;
}

static void initValues(Values *v) {
    v->embd = newValues(DVOC * D, 0.0f, 64);
    v->head = newValues(DVOC * D, 0.0f, 64);
    v->norm = newValues(D, 1.0f, 16);
    for (size_t l = 0; l < NLAYER; ++l) {
        for (size_t m = 0; m < NMEMBER; ++m) {
            v->layer[l][m] = newValues(g_members[m].rows * g_members[m].cols, m >= ATTN_NORM ? 1.0f : 0.0f, 16);
        }
    }
}

static const Qwen3Meta g_meta = {QWEN3_DTYPE_F32, NLAYER, D, NH, NKVH, DH, DI, 64, DVOC, 1e-6f, 1e4f, 99};

/* ------------------------------------------------------------------ the same values in other dtypes and strides */

static uint16_t toBits16(float value, int32_t dtype) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    if (dtype == QWEN3_DTYPE_BF16 || value == 0.0f) {
        return (uint16_t)(bits >> 16);
    }
    const int exponent = (int)(bits >> 23 & 0xff) - 127 + 15; /* 1/64 to 2: a normal f16 */
    return (uint16_t)((bits >> 16 & 0x8000) | (uint32_t)exponent << 10 | (bits >> 13 & 0x3ff));
}

/* A tensor of its own memory, just as large as its strides say, with NaN between the elements. */
static Qwen3Tensor encode(int32_t role, size_t layer, const float *values, size_t rows, size_t cols, int32_t dtype,
                          size_t row_stride, size_t col_stride) {
    Qwen3Tensor t = QWEN3_TENSOR_INIT;
    const size_t rs = row_stride != 0 ? row_stride : cols, cs = col_stride != 0 ? col_stride : 1;
    const size_t size = dtype == QWEN3_DTYPE_F32 ? 4 : 2, n = (rows - 1) * rs + (cols - 1) * cs + 1;
    unsigned char *data = newBlock(n * size + 1); /* one byte off: no alignment is promised */
    memset(data, 0xff, n * size + 1);
    for (size_t r = 0; r < rows; ++r) {
        for (size_t c = 0; c < cols; ++c) {
            const float value = values[r * cols + c];
            const uint16_t bits = toBits16(value, dtype);
            memcpy(data + 1 + (r * rs + c * cs) * size, size == 4 ? (const void *)&value : (const void *)&bits, size);
        }
    }
    t.role = role;
    t.layer = (uint32_t)layer;
    t.dtype = dtype;
    t.rows = rows;
    t.cols = cols;
    t.row_stride = row_stride;
    t.col_stride = col_stride;
    t.data = data + 1;
    return t;
}

/* How a model is given. */
typedef struct {
    int fused;      /* qkv, gate_up and the qkv bias */
    int strides;    /* 0 none, 1 rows further apart, 2 columns contiguous, 3 elements two, 4 elements twenty apart */
    int32_t dtypes; /* one for all, or 0: they take turns */
    int tied, bias;
} Form;

typedef struct {
    Qwen3Tensor list[MAX_TENSOR];
    size_t n;
} Tensors;

static void add(Tensors *t, const Form *form, int32_t role, size_t layer, const float *values, size_t rows,
                size_t cols) {
    static const int32_t turns[3] = {QWEN3_DTYPE_BF16, QWEN3_DTYPE_F32, QWEN3_DTYPE_F16};
    const int32_t dtype = form->dtypes != 0 ? form->dtypes : turns[(t->n + layer) % 3];
    size_t row_stride = 0, col_stride = 0;
    if (cols > 1 && form->strides == 1) {
        row_stride = cols + 3;
    } else if (cols > 1 && form->strides == 2 && role != QWEN3_TENSOR_INPUT_EMBD) {
        row_stride = 1;
        col_stride = rows + 2;
    } else if (cols > 1 && form->strides >= 3 && role != QWEN3_TENSOR_INPUT_EMBD) {
        col_stride = form->strides == 3 ? 2 : 20;
        row_stride = cols * col_stride + 1;
    }
    t->list[t->n++] = encode(role, layer, values, rows, cols, dtype, row_stride, col_stride);
}

static const float *stacked(float *const *layer, int first, int count, size_t *rows) {
    const size_t cols = g_members[first].cols;
    *rows = 0;
    for (int m = first; m < first + count; ++m) {
        *rows += g_members[m].rows;
    }
    float *all = newBlock(*rows * cols * sizeof(float)), *next = all;
    for (int m = first; m < first + count; ++m) {
        memcpy(next, layer[m], g_members[m].rows * cols * sizeof(float));
        next += g_members[m].rows * cols;
    }
    return all;
}

static void initTensors(Tensors *t, const Values *v, const Form *form) {
    t->n = 0;
    for (size_t l = NLAYER; l-- > 0;) { /* any order will do */
        for (int m = NMEMBER; m-- > 0;) {
            const int in_fused = form->fused && ((m >= Q && m <= V) || m == GATE || m == UP || (m >= Q_B && m <= V_B));
            if (!in_fused && (form->bias || m < Q_B || m > O_B)) {
                add(t, form, g_members[m].role, l, v->layer[l][m], g_members[m].rows, g_members[m].cols);
            }
        }
        if (form->fused) {
            size_t rows = 0;
            const float *values = stacked(v->layer[l], Q, 3, &rows);
            add(t, form, QWEN3_TENSOR_ATTN_QKV, l, values, rows, D);
            values = stacked(v->layer[l], GATE, 2, &rows);
            add(t, form, QWEN3_TENSOR_FFN_GATE_UP, l, values, rows, D);
            if (form->bias) {
                values = stacked(v->layer[l], Q_B, 3, &rows);
                add(t, form, QWEN3_TENSOR_ATTN_QKV_B, l, values, rows, 1);
            }
        }
    }
    add(t, form, QWEN3_TENSOR_INPUT_EMBD, 0, v->embd, DVOC, D);
    add(t, form, QWEN3_TENSOR_OUTPUT_NORM, 0, v->norm, D, 1);
    if (!form->tied) {
        add(t, form, QWEN3_TENSOR_OUTPUT_EMBD, 0, v->head, DVOC, D);
    }
}

/* ------------------------------------------------------------------ the same values in Qwen3Weights, as float32 */

typedef struct {
    Qwen3Weights weights;
    const void *arrays[NMEMBER][NLAYER];
} Plain;

static void initPlain(Plain *p, const Values *v, int tied, int bias) {
    memset(p, 0, sizeof(*p));
    Qwen3Weights *w = &p->weights;
    const void *const **fields[NMEMBER] = {&w->attn_q,   &w->attn_k,    &w->attn_v,      &w->attn_o,      &w->ffn_gate,
                                           &w->ffn_up,   &w->ffn_down,  &w->attn_q_b,    &w->attn_k_b,    &w->attn_v_b,
                                           &w->attn_o_b, &w->attn_norm, &w->attn_q_norm, &w->attn_k_norm, &w->ffn_norm};
    w->nlayer = NLAYER;
    w->dt_norm = w->dt_mat = QWEN3_DTYPE_F32;
    w->transpose_linear_weights = 1;
    w->input_embd = v->embd;
    w->output_norm = v->norm;
    w->output_embd = tied ? NULL : v->head;
    for (int m = 0; m < NMEMBER; ++m) {
        for (size_t l = 0; l < NLAYER; ++l) {
            p->arrays[m][l] = v->layer[l][m];
        }
        if (bias || m < Q_B || m > O_B) {
            *fields[m] = p->arrays[m];
        }
    }
}

/* ------------------------------------------------------------------ logits */

typedef struct {
    float values[NTOKEN * DVOC];
    Qwen3Stats stats;
    uint64_t total; /* of the progress reports */
} Outcome;

typedef struct {
    uint64_t done, total;
    int ordered;
} Progress;

static int follow(void *user_data, uint64_t done, uint64_t total) {
    Progress *p = user_data;
    p->ordered &= done > p->done || (done == p->done && p->done > 0);
    p->ordered &= done <= total && (p->total == 0 || p->total == total);
    p->done = done;
    p->total = total;
    return 0;
}

static Qwen3ModelOptions optionsOf(const Tensors *t) {
    Qwen3ModelOptions options = QWEN3_MODEL_OPTIONS_INIT;
    options.nthreads = 2;
    options.dt_kv = QWEN3_DTYPE_F32;
    if (t != NULL) {
        options.tensors = t->list;
        options.ntensors = t->n;
    }
    return options;
}

/* With the same arithmetic for weights of every dtype. */
static Qwen3ModelOptions exactOptionsOf(const Tensors *t) {
    Qwen3ModelOptions options = optionsOf(t);
    options.activations = QWEN3_ACTIVATIONS_F32;
    return options;
}

/* Creates a model and computes five tokens; `save`: where to write its packed weights, or NULL. */
static int run(int line, const char *what, const Qwen3Weights *weights, Qwen3ModelOptions options, int32_t ndev,
               const char *save, Outcome *out) {
    const uint32_t tokens[NTOKEN] = {3, 14, 15, 92, 65}, length = NTOKEN, pos = 0;
    Progress progress = {0, 0, 1};
    memset(out, 0, sizeof(*out));
    options.progress = follow;
    options.progress_user_data = &progress;
    struct Qwen3Model *model = createQwen3ModelEx(&g_meta, weights, QWEN3_DEVICE_CPU, ndev, NULL, &options);
    report(model != NULL, __FILE__, line, "%s: %s", what, qwen3LastError());
    if (model == NULL) {
        return 0;
    }
    report(progress.ordered && progress.done == progress.total, __FILE__, line, "%s: progress ends at %llu of %llu",
           what, (unsigned long long)progress.done, (unsigned long long)progress.total);
    out->total = progress.total;
    struct KVCache *kv = createKVCache(model);
    CHECK(forwardBatch(model, tokens, NTOKEN, &length, 1, &pos, &kv, out->values) == QWEN3_STATUS_SUCCESS);
    CHECK(out->values[0] == out->values[0] && out->values[0] != out->values[1]); /* numbers, and not all the same */
    out->stats.struct_size = sizeof(out->stats);
    CHECK(qwen3GetStats(model, &out->stats) == QWEN3_STATUS_SUCCESS);
    if (save != NULL) {
        CHECK(qwen3SaveWeights(model, save, "key") == QWEN3_STATUS_SUCCESS);
    }
    destroyQwen3Model(model);
    return 1;
}

static void checkSame(int line, const char *what, const Outcome *got, const Outcome *expected) {
    report(memcmp(got->values, expected->values, sizeof(got->values)) == 0, __FILE__, line,
           "%s: logits differ from those of Qwen3Weights", what);
}

/* ------------------------------------------------------------------ equal results */

static void testForms(const Values *v, int32_t backend, int32_t dt_weight, int32_t ndev) {
    for (int tied = 0; tied < 2; ++tied) {
        for (int bias = 0; bias < 2; ++bias) {
            Plain plain;
            Outcome expected, got;
            Qwen3ModelOptions options = optionsOf(NULL);
            options.backend = backend;
            options.dt_weight = dt_weight;
            initPlain(&plain, v, tied, bias);
            if (!run(__LINE__, "Qwen3Weights", &plain.weights, options, ndev, NULL, &expected)) {
                return;
            }
            for (int form = 0; form < 2 * 5 * 2; ++form) {
                const Form f = {form % 2, form / 2 % 5, form / 10 == 0 ? QWEN3_DTYPE_F32 : 0, tied, bias};
                const size_t first = g_nblocks;
                char what[128];
                Tensors t;
                initTensors(&t, v, &f);
                options.tensors = t.list;
                options.ntensors = t.n;
                options.borrow_weights = form % 3 == 0;
                snprintf(what, sizeof(what), "fused %d, strides %d, dtypes %d, tied %d, bias %d, format %d, ndev %d",
                         f.fused, f.strides, (int)f.dtypes, tied, bias, (int)dt_weight, (int)ndev);
                if (run(__LINE__, what, NULL, options, ndev, NULL, &got)) {
                    checkSame(__LINE__, what, &got, &expected);
                }
                freeBlocksFrom(first);
            }
        }
    }
}

/* Tensors beside Qwen3Weights: each takes the place of what is there. */
static void testReplacing(const Values *v) {
    const size_t first = g_nblocks;
    Values changed = *v;
    Plain plain, whole;
    Outcome expected, got;
    const Form form = {0, 1, 0, 0, 1};
    Tensors t = {.n = 0};
    changed.layer[1][K] = newValues(KVROWS * D, 0.0f, 16);
    changed.layer[0][Q_B] = newValues(QROWS, 0.0f, 16);
    changed.layer[0][FFN_NORM] = newValues(D, 1.0f, 16);
    initPlain(&whole, &changed, 0, 1);
    CHECK(run(__LINE__, "all of it", &whole.weights, optionsOf(NULL), 1, NULL, &expected));

    add(&t, &form, QWEN3_TENSOR_ATTN_K, 1, changed.layer[1][K], KVROWS, D);
    add(&t, &form, QWEN3_TENSOR_ATTN_Q_B, 0, changed.layer[0][Q_B], QROWS, 1);
    add(&t, &form, QWEN3_TENSOR_FFN_NORM, 0, changed.layer[0][FFN_NORM], D, 1);
    add(&t, &form, QWEN3_TENSOR_OUTPUT_EMBD, 0, v->head, DVOC, D); /* tied in the weights */
    initPlain(&plain, v, 1, 1);
    Qwen3ModelOptions options = optionsOf(&t);
    options.dt_weight = QWEN3_DTYPE_F32;
    CHECK(run(__LINE__, "some of it", &plain.weights, options, 1, NULL, &got));
    checkSame(__LINE__, "replaced tensors", &got, &expected);

    /* one part of what is fused there */
    const void *fused[NLAYER], *fused_bias[NLAYER];
    for (size_t l = 0; l < NLAYER; ++l) {
        size_t rows = 0;
        fused[l] = stacked(v->layer[l], Q, 3, &rows);
        fused_bias[l] = stacked(v->layer[l], Q_B, 3, &rows);
    }
    plain.weights.attn_q = plain.weights.attn_k = plain.weights.attn_v = NULL;
    plain.weights.attn_q_b = plain.weights.attn_k_b = plain.weights.attn_v_b = NULL;
    plain.weights.attn_qkv = fused;
    plain.weights.attn_qkv_b = fused_bias;
    CHECK(run(__LINE__, "some of it, fused", &plain.weights, options, 1, NULL, &got));
    checkSame(__LINE__, "replaced parts of fused tensors", &got, &expected);

    /* only what the weights lack */
    plain.weights.attn_qkv = plain.weights.attn_qkv_b = NULL;
    for (int m = Q; m <= V_B; m = m == V ? Q_B : m + 1) {
        for (size_t l = 0; l < NLAYER; ++l) {
            if (!((m == K && l == 1) || (m == Q_B && l == 0))) {
                add(&t, &form, g_members[m].role, l, changed.layer[l][m], g_members[m].rows, g_members[m].cols);
            }
        }
    }
    options.ntensors = t.n;
    CHECK(run(__LINE__, "the rest", &plain.weights, options, 1, NULL, &got));
    checkSame(__LINE__, "tensors and weights that complete each other", &got, &expected);
    freeBlocksFrom(first);
}

/* By default each layer is packed in the dtype that it is given in. */
static void testDefaultFormats(const Values *v) {
    const size_t first = g_nblocks;
    const Form bf16 = {0, 0, QWEN3_DTYPE_BF16, 0, 0};
    Tensors t;
    Outcome all_bf16, f32_head, wide_q, as_f32;
    initTensors(&t, v, &bf16);
    CHECK(run(__LINE__, "bf16", NULL, exactOptionsOf(&t), 1, NULL, &all_bf16));
    CHECK(all_bf16.total == 2 * (2 * DVOC * D + NLAYER * D * (2 * QROWS + 2 * KVROWS + 3 * DI)));

    const Form f32 = {0, 0, QWEN3_DTYPE_F32, 0, 0};
    Tensors head = t;
    --head.n;
    CHECK(head.list[head.n].role == QWEN3_TENSOR_OUTPUT_EMBD);
    add(&head, &f32, QWEN3_TENSOR_OUTPUT_EMBD, 0, v->head, DVOC, D);
    CHECK(run(__LINE__, "float32 head", NULL, exactOptionsOf(&head), 1, NULL, &f32_head));
    CHECK(f32_head.total - all_bf16.total == 2 * DVOC * D);
    const uint64_t padded = (DVOC + 15) / 16 * 16 * D; /* panels of 16 rows */
    CHECK(f32_head.stats.weight_bytes - all_bf16.stats.weight_bytes == 2 * padded);

    /* q is wider than k and v: all three become float32, in that layer only */
    Tensors wide = t;
    for (size_t i = 0; i < wide.n; ++i) {
        if (wide.list[i].role == QWEN3_TENSOR_ATTN_Q && wide.list[i].layer == 1) {
            wide.list[i] = encode(QWEN3_TENSOR_ATTN_Q, 1, v->layer[1][Q], QROWS, D, QWEN3_DTYPE_F32, 0, 0);
        }
    }
    CHECK(run(__LINE__, "float32 q", NULL, exactOptionsOf(&wide), 1, NULL, &wide_q));
    CHECK(wide_q.total - all_bf16.total == 2 * QROWS * D);
    CHECK(wide_q.stats.weight_bytes - all_bf16.stats.weight_bytes == 2 * (QROWS + 2 * KVROWS) * D);

    Qwen3ModelOptions options = exactOptionsOf(&t);
    options.dt_weight = QWEN3_DTYPE_F32;
    CHECK(run(__LINE__, "bf16 packed as float32", NULL, options, 1, NULL, &as_f32));
    const Outcome *others[3] = {&all_bf16, &f32_head, &wide_q};
    for (int i = 0; i < 3; ++i) {
        double worst = 0.0;
        for (size_t j = 0; j < NTOKEN * DVOC; ++j) {
            const double off = (double)others[i]->values[j] - (double)as_f32.values[j];
            worst = off > worst ? off : -off > worst ? -off : worst;
        }
        report(worst < 1e-3, __FILE__, __LINE__, "formats by default %d: logits are off by %g", i, worst);
    }
    freeBlocksFrom(first);
}

/* Saved weights come back for the same dtypes, and are stale for others. */
static void testSaved(const Values *v) {
    char path[] = "/tmp/test_capi_tensors.XXXXXX";
    const int file = mkstemp(path);
    CHECK(file >= 0 && close(file) == 0);
    const Form forms[] = {{0, 1, 0, 0, 1}, {0, 2, 0, 0, 1}, {0, 1, QWEN3_DTYPE_BF16, 0, 1}, {0, 1, 0, 0, 0}};
    Outcome saved, got;
    for (size_t i = 0; i < sizeof(forms) / sizeof(forms[0]); ++i) {
        const size_t first = g_nblocks;
        Tensors t;
        initTensors(&t, v, &forms[i]);
        Qwen3ModelOptions options = optionsOf(&t);
        options.cache_key = "key";
        options.cache_path = i == 0 ? NULL : path;
        CHECK(run(__LINE__, "saved tensors", NULL, options, 1, i == 0 ? path : NULL, i == 0 ? &saved : &got));
        if (i == 1) {
            CHECK(got.stats.weight_cache == QWEN3_CACHE_LOADED);
            CHECK(memcmp(got.values, saved.values, sizeof(saved.values)) == 0);
        } else if (i > 1) {
            CHECK(got.stats.weight_cache == QWEN3_CACHE_STALE);
        }
        freeBlocksFrom(first);
    }
    CHECK(unlink(path) == 0);
}

/* ------------------------------------------------------------------ refusals */

static void checkFails(int line, const char *what, const Qwen3Weights *weights, const Qwen3ModelOptions *options,
                       const int32_t *expected, const char *words) {
    struct Qwen3Model *model = createQwen3ModelEx(&g_meta, weights, QWEN3_DEVICE_CPU, 1, NULL, options);
    report(model == NULL, __FILE__, line, "%s: createQwen3ModelEx succeeded", what);
    if (model == NULL) {
        checkFailure(line, what, qwen3LastStatus(), expected, words);
    }
    destroyQwen3Model(model);
}

static Qwen3Tensor *find(Tensors *t, int32_t role, uint32_t layer) {
    for (size_t i = 0; i < t->n; ++i) {
        if (t->list[i].role == role && t->list[i].layer == layer) {
            return &t->list[i];
        }
    }
    abort();
}

/* Changes attn_q of layer 1 (`q`) or anything else of a complete list (`t`). No data is where the pointers lead:
 * whoever reads some before all is checked crashes. */
#define TENSOR_FAILS(change, expected, words)                                                                          \
    do {                                                                                                               \
        Tensors t = valid;                                                                                             \
        Qwen3Tensor *q = find(&t, QWEN3_TENSOR_ATTN_Q, 1);                                                             \
        for (size_t i_ = 0; i_ < t.n; ++i_) {                                                                          \
            t.list[i_].data = nowhere;                                                                                 \
        }                                                                                                              \
        Qwen3ModelOptions options = optionsOf(&t);                                                                     \
        (void)q;                                                                                                       \
        change;                                                                                                        \
        checkFails(__LINE__, #change, NULL, &options, expected, words);                                                \
    } while (0)

static void testRefusals(const Values *v) {
    const Form form = {0, 0, QWEN3_DTYPE_F32, 0, 1};
    const void *const nowhere = (const void *)(uintptr_t)64; /* an address that is never mapped */
    int32_t groups[48] = {0};
    Tensors valid;
    initTensors(&valid, v, &form);
    const char *const name = "options.tensors[|(attn_q of layer 1)|";
    char words[256];
#define NAMED(more) (snprintf(words, sizeof(words), "%s%s", name, more), words)

    TENSOR_FAILS(options.tensors = NULL, STATUS(NULL_POINTER), "options.tensors");
    TENSOR_FAILS(options.ntensors = 0, STATUS(NULL_POINTER), "weights|options.tensors");
    TENSOR_FAILS(options.ntensors = ((size_t)1 << 24) + 1, STATUS(BAD_PARAM), "ntensors|16777217|16777216");
    TENSOR_FAILS(q->struct_size = 136, STATUS(ABI_MISMATCH), "options.tensors[|struct_size is 136|128");
    TENSOR_FAILS(q->role = 0, STATUS(BAD_PARAM), "options.tensors[|role is 0");
    TENSOR_FAILS(q->role = 99, STATUS(BAD_PARAM), "options.tensors[|role is 99");
    TENSOR_FAILS(q->reserved = 1, STATUS(BAD_PARAM), NAMED("reserved is 1"));

    /* where it belongs */
    TENSOR_FAILS(q->layer = 2, STATUS(BAD_PARAM), "attn_q of layer 2|layer is 2|meta.nlayer, 2");
    TENSOR_FAILS(q->layer = UINT32_MAX, STATUS(BAD_PARAM), "attn_q|4294967295|meta.nlayer, 2");
    TENSOR_FAILS(find(&t, QWEN3_TENSOR_OUTPUT_NORM, 0)->layer = 1, STATUS(BAD_PARAM), "output_norm|layer is 1|0");
    TENSOR_FAILS(q->expert = 3, STATUS(BAD_PARAM), NAMED("expert|3"));
    TENSOR_FAILS(q->nexperts = 2, STATUS(BAD_PARAM), NAMED("nexperts|2"));
    TENSOR_FAILS(q->expert_stride = 7, STATUS(BAD_PARAM), NAMED("expert_stride|7"));
    TENSOR_FAILS(q->role = QWEN3_TENSOR_FFN_ROUTER, STATUS(BAD_PARAM), "ffn_router of layer 1|options.nexperts is 0");
    TENSOR_FAILS(q->role = QWEN3_TENSOR_EXPERT_GATE_UP, STATUS(BAD_PARAM),
                 "expert_gate_up of layer 1|options.nexperts is 0");

    /* experts */
#define EXPERTS(n, used, rows_) (options.nexperts = (n), options.nexperts_used = (used), options.dm = (rows_))
#define EXPERT(role_, rows_) (EXPERTS(4, 2, 24), q->role = QWEN3_TENSOR_##role_, q->rows = (rows_))
    TENSOR_FAILS(options.nexperts_used = 2, STATUS(BAD_PARAM), "nexperts_used|2|must be 0: options.nexperts is 0");
    TENSOR_FAILS(options.norm_topk_prob = 1, STATUS(BAD_PARAM), "norm_topk_prob|must be 0: options.nexperts is 0");
    TENSOR_FAILS(options.experts = QWEN3_EXPERTS_DISK, STATUS(BAD_PARAM), "options.experts|this model has no experts");
    TENSOR_FAILS(options.experts = 2, STATUS(BAD_PARAM), "options.experts is 2|0 to 1");
    TENSOR_FAILS(EXPERTS(4, 2, 24);
                 options.experts = QWEN3_EXPERTS_DISK, STATUS(BAD_PARAM), "options.experts is disk|options.cache_path");
    TENSOR_FAILS(EXPERTS(4, 0, 24), STATUS(BAD_PARAM), "nexperts_used is 0|1 to options.nexperts, 4");
    TENSOR_FAILS(EXPERTS(4, 5, 24), STATUS(BAD_PARAM), "nexperts_used is 5|1 to options.nexperts, 4");
    TENSOR_FAILS(EXPERTS(65537, 5, 24), STATUS(BAD_PARAM), "nexperts is 65537|65536");
    TENSOR_FAILS(EXPERTS(4, 2, 0), STATUS(BAD_PARAM), "options.dm is 0");
    TENSOR_FAILS(EXPERTS(65536, 2, 1 << 20), STATUS(BAD_PARAM), "nexperts is 65536|dm 1048576|too large");
    TENSOR_FAILS(EXPERT(EXPERT_GATE, 64), STATUS(BAD_TENSOR_SHAPE), "expert_gate of layer 1|[64, 48]|[24, 48]");
    TENSOR_FAILS(EXPERT(EXPERT_GATE_UP, 24), STATUS(BAD_TENSOR_SHAPE), "expert_gate_up|[24, 48]|[48, 48]");
    TENSOR_FAILS(EXPERT(EXPERT_DOWN, 48), STATUS(BAD_TENSOR_SHAPE), "expert_down|[48, 48]|[48, 24]");
    TENSOR_FAILS(EXPERT(FFN_ROUTER, 5), STATUS(BAD_TENSOR_SHAPE), "ffn_router|[5, 48]|[4, 48]");
    TENSOR_FAILS(EXPERT(FFN_ROUTER, 4); q->expert = 1, STATUS(BAD_PARAM), "ffn_router|it is of no expert");
    TENSOR_FAILS(EXPERT(EXPERT_UP, 24); q->expert = 4, STATUS(BAD_PARAM), "expert_up|are 4 and 0|options.nexperts, 4");
    TENSOR_FAILS(EXPERT(EXPERT_UP, 24); q->expert = 3;
                 q->nexperts = 2, STATUS(BAD_PARAM), "expert_up|are 3 and 2|options.nexperts, 4");
    TENSOR_FAILS(EXPERT(EXPERT_UP, 24); q->nexperts = UINT32_MAX;
                 q->expert = 2, STATUS(BAD_PARAM), "expert_up|are 2 and 4294967295");
    TENSOR_FAILS(EXPERT(EXPERT_UP, 24); q->nexperts = 2;
                 q->dtype = QWEN3_DTYPE_I8, STATUS(NOT_IMPLEMENTED), "expert_up|nexperts is 2|codes");
    TENSOR_FAILS(EXPERT(EXPERT_UP, 24); q->nexperts = 2;
                 q->expert_stride = 24 * 48 - 1, STATUS(BAD_TENSOR_STRIDES), "expert_up|expert_stride is 1151|1152");
    TENSOR_FAILS(EXPERT(EXPERT_UP, 24);
                 *find(&t, QWEN3_TENSOR_ATTN_K, 1) = *q, STATUS(BAD_PARAM), "expert_up of layer 1|gave it");
    TENSOR_FAILS(EXPERT(EXPERT_UP, 24); q->nexperts = 4, STATUS(BAD_PARAM), "ffn_gate of layer 1|has experts");

    /* formats */
    TENSOR_FAILS(q->dtype = 0, STATUS(BAD_TENSOR_DTYPE), NAMED("dtype is 0|BF16"));
    TENSOR_FAILS(q->dtype = 77, STATUS(BAD_TENSOR_DTYPE), NAMED("dtype is 77|BF16"));
    TENSOR_FAILS(q->dtype = QWEN3_DTYPE_INT8, STATUS(BAD_TENSOR_DTYPE), NAMED("dtype is 101"));
    TENSOR_FAILS(q->layout = QWEN3_LAYOUT_AWQ, STATUS(BAD_PARAM), NAMED("layout is 2|PLAIN"));
    TENSOR_FAILS(q->layout = 9, STATUS(BAD_PARAM), NAMED("layout is 9"));
    TENSOR_FAILS(q->layout = -1, STATUS(BAD_PARAM), NAMED("layout is -1"));
    TENSOR_FAILS(q->scales = groups, STATUS(BAD_PARAM), NAMED("scales|f32 has none"));
    TENSOR_FAILS(q->scale_dtype = QWEN3_DTYPE_F16, STATUS(BAD_PARAM), NAMED("scales|scale_dtype"));
    TENSOR_FAILS(q->zeros = groups, STATUS(BAD_PARAM), NAMED("zeros"));
    TENSOR_FAILS(q->zero_offset = 8, STATUS(BAD_PARAM), NAMED("zero_offset"));
    TENSOR_FAILS(q->groups = groups, STATUS(BAD_PARAM), NAMED("groups"));
    TENSOR_FAILS(q->block_rows = 128, STATUS(BAD_PARAM), NAMED("block_rows"));
    TENSOR_FAILS(q->block_cols = 128, STATUS(BAD_PARAM), NAMED("block_cols"));

    /* codes: attn_q is [64, 48], attn_o [48, 64] */
#define CODED(code_dtype, code_layout)                                                                                 \
    (q->dtype = QWEN3_DTYPE_##code_dtype, q->layout = QWEN3_LAYOUT_##code_layout, q->scales = nowhere,                 \
     q->scale_dtype = QWEN3_DTYPE_F16)
    TENSOR_FAILS(find(&t, QWEN3_TENSOR_FFN_NORM, 1)->dtype = QWEN3_DTYPE_I8, STATUS(BAD_TENSOR_DTYPE),
                 "ffn_norm of layer 1|I8 (3)|BF16");
    TENSOR_FAILS(q->dtype = QWEN3_DTYPE_F8_E8M0, STATUS(BAD_TENSOR_DTYPE), NAMED("F8_E8M0|scales only"));
    TENSOR_FAILS(q->dtype = QWEN3_DTYPE_GGUF_Q4_K, STATUS(BAD_TENSOR_SHAPE), NAMED("cols is 48|GGUF_Q4_K|256"));
    TENSOR_FAILS(q->dtype = QWEN3_DTYPE_GGUF_Q8_0, STATUS(BAD_TENSOR_SHAPE), NAMED("cols is 48|GGUF_Q8_0|32"));
    Qwen3Tensor *blocks = NULL;
    TENSOR_FAILS(blocks = find(&t, QWEN3_TENSOR_ATTN_O, 1); blocks->dtype = QWEN3_DTYPE_GGUF_Q8_0;
                 blocks->scales = nowhere, STATUS(BAD_PARAM), "attn_o of layer 1|scales|GGUF_Q8_0 has none");
    TENSOR_FAILS(blocks = find(&t, QWEN3_TENSOR_ATTN_O, 1); blocks->dtype = QWEN3_DTYPE_GGUF_Q8_0;
                 blocks->layout = QWEN3_LAYOUT_AWQ, STATUS(BAD_PARAM), "attn_o of layer 1|layout is AWQ|PLAIN");
    TENSOR_FAILS(blocks = find(&t, QWEN3_TENSOR_ATTN_O, 1); blocks->dtype = QWEN3_DTYPE_GGUF_Q8_0;
                 blocks->row_stride = 65, STATUS(BAD_TENSOR_STRIDES), "attn_o of layer 1|row_stride 65|multiple of 32");
    TENSOR_FAILS(CODED(I8, GPTQ), STATUS(BAD_TENSOR_DTYPE), NAMED("I8|U4 or U8|GPTQ"));
    TENSOR_FAILS(CODED(U8, AWQ), STATUS(BAD_TENSOR_DTYPE), NAMED("U8|must be U4|AWQ"));
    TENSOR_FAILS(CODED(U4, AWQ); q->row_stride = 49, STATUS(BAD_TENSOR_STRIDES), NAMED("row_stride 49|both be 0"));
    TENSOR_FAILS(CODED(U4, PACK_QUANTIZED); q->block_rows = 2, STATUS(BAD_PARAM), NAMED("block_rows is 2|must be 1"));
    TENSOR_FAILS(CODED(U4, AWQ); q->zeros = nowhere;
                 q->zero_dtype = QWEN3_DTYPE_U8, STATUS(BAD_TENSOR_DTYPE), NAMED("zero_dtype is 7|dtype of the codes"));
    TENSOR_FAILS(CODED(U4, AWQ);
                 q->zero_dtype = QWEN3_DTYPE_U4, STATUS(BAD_TENSOR_DTYPE), NAMED("zero_dtype is 110|zeros is NULL"));
    TENSOR_FAILS(CODED(I8, PLAIN); q->scale_dtype = 0, STATUS(BAD_TENSOR_DTYPE), NAMED("scale_dtype is 0|BF16"));
    TENSOR_FAILS(CODED(I8, PLAIN);
                 q->scales = NULL, STATUS(BAD_TENSOR_DTYPE), NAMED("scale_dtype is 12|scales is NULL"));
    TENSOR_FAILS(CODED(I8, PLAIN); q->zeros = nowhere;
                 q->zero_dtype = QWEN3_DTYPE_U4, STATUS(BAD_TENSOR_DTYPE), NAMED("zero_dtype is 110|I8"));
    TENSOR_FAILS(CODED(I8, PLAIN); q->zeros = nowhere; q->zero_dtype = QWEN3_DTYPE_F16;
                 q->zero_offset = 1, STATUS(BAD_PARAM), NAMED("zero_offset is 1|float"));
    TENSOR_FAILS(CODED(I8, PLAIN); q->zero_offset = 1 << 20, STATUS(BAD_PARAM), NAMED("zero_offset is 1048576|65536"));
    TENSOR_FAILS(CODED(F8_E4M3, PLAIN); q->zero_offset = 1, STATUS(BAD_PARAM), NAMED("zero_offset|F8_E4M3"));
    TENSOR_FAILS(CODED(F8_E4M3, PLAIN); q->groups = nowhere, STATUS(NOT_IMPLEMENTED), NAMED("groups|F8_E4M3"));
    TENSOR_FAILS(CODED(U4, PLAIN); q->data = NULL, STATUS(NULL_POINTER), NAMED("data is NULL"));
    groups[47] = 3;
    TENSOR_FAILS(CODED(U4, GPTQ); q->block_cols = 16;
                 q->groups = groups, STATUS(BAD_PARAM), NAMED("groups[47] is 3, must be from 0 to 2"));
    groups[5] = -1;
    TENSOR_FAILS(CODED(I8, PLAIN);
                 q->groups = groups, STATUS(BAD_PARAM), NAMED("groups[5] is -1, must be from 0 to 0"));
    TENSOR_FAILS(CODED(U4, GPTQ); q->block_cols = 16;
                 q->groups = nowhere, STATUS(IO_ERROR), NAMED("groups cannot be read"));
#undef CODED

    /* shapes and strides */
    TENSOR_FAILS(q->rows = 63, STATUS(BAD_TENSOR_SHAPE), NAMED("[63, 48]|[64, 48]"));
    TENSOR_FAILS(q->cols = SIZE_MAX, STATUS(BAD_TENSOR_SHAPE), NAMED("18446744073709551615|[64, 48]"));
    TENSOR_FAILS(q->role = QWEN3_TENSOR_ATTN_QKV, STATUS(BAD_TENSOR_SHAPE), "attn_qkv of layer 1|[64, 48]|[128, 48]");
    TENSOR_FAILS(find(&t, QWEN3_TENSOR_ATTN_O_B, 0)->cols = 0, STATUS(BAD_TENSOR_SHAPE), "attn_o_b of layer 0|[48, 1]");
    TENSOR_FAILS(find(&t, QWEN3_TENSOR_INPUT_EMBD, 0)->rows = 101, STATUS(BAD_TENSOR_SHAPE),
                 "input_embd|[101, 48]|[100, 48]");
    TENSOR_FAILS(q->row_stride = 47, STATUS(BAD_TENSOR_STRIDES), NAMED("row_stride is 47|overlap"));
    TENSOR_FAILS(q->col_stride = 2, STATUS(BAD_TENSOR_STRIDES), NAMED("col_stride 2|overlap"));
    TENSOR_FAILS(q->row_stride = 1; q->col_stride = 63, STATUS(BAD_TENSOR_STRIDES), NAMED("col_stride 63|overlap"));
    TENSOR_FAILS(q->row_stride = ((size_t)1 << 32) + 1, STATUS(BAD_TENSOR_STRIDES), NAMED("4294967297|4294967296"));
    TENSOR_FAILS(q->col_stride = SIZE_MAX, STATUS(BAD_TENSOR_STRIDES), NAMED("4294967296"));
    TENSOR_FAILS(find(&t, QWEN3_TENSOR_ATTN_Q_B, 1)->row_stride = 2, STATUS(BAD_TENSOR_STRIDES),
                 "attn_q_b of layer 1|row_stride is 2|vector");
    TENSOR_FAILS(find(&t, QWEN3_TENSOR_INPUT_EMBD, 0)->row_stride = 1;
                 find(&t, QWEN3_TENSOR_INPUT_EMBD, 0)->col_stride = 100, STATUS(BAD_TENSOR_STRIDES),
                 "input_embd|col_stride 100");
    TENSOR_FAILS(q->data = NULL, STATUS(NULL_POINTER), NAMED("data is NULL"));

    /* twice, in any form */
    TENSOR_FAILS(t.list[t.n++] = *q; options.ntensors = t.n, STATUS(BAD_PARAM), NAMED("already"));
    TENSOR_FAILS(t.list[t.n] = *q; t.list[t.n].role = QWEN3_TENSOR_ATTN_QKV; t.list[t.n].rows = QROWS + 2 * KVROWS;
                 options.ntensors = ++t.n, STATUS(BAD_PARAM), "attn_qkv of layer 1|already");
    TENSOR_FAILS(t.list[t.n++] = *find(&t, QWEN3_TENSOR_OUTPUT_NORM, 0);
                 options.ntensors = t.n, STATUS(BAD_PARAM), "output_norm|already");
    TENSOR_FAILS(t.list[t.n++] = *find(&t, QWEN3_TENSOR_ATTN_V_B, 0);
                 options.ntensors = t.n, STATUS(BAD_PARAM), "attn_v_b of layer 0|already");
    TENSOR_FAILS(find(&t, QWEN3_TENSOR_ATTN_Q_NORM, 1)->role = QWEN3_TENSOR_ATTN_K_NORM, STATUS(BAD_PARAM),
                 "attn_k_norm of layer 1|already");

    /* missing ones, all in one message */
    TENSOR_FAILS(*q = t.list[--t.n];
                 options.ntensors = t.n, STATUS(BAD_PARAM), "missing from options.tensors: attn_q of layer 1");
    TENSOR_FAILS(options.ntensors = 1, STATUS(BAD_PARAM),
                 "missing from options.tensors: input_embd, output_norm, attn_norm of layer 0|(23 in all)");
    {
        Plain plain;
        Tensors one = {.n = 0};
        initPlain(&plain, v, 1, 0);
        plain.weights.attn_v = NULL;
        plain.arrays[DOWN][1] = NULL;
        add(&one, &form, QWEN3_TENSOR_ATTN_V, 1, v->layer[1][V], KVROWS, D);
        Qwen3ModelOptions options = optionsOf(&one);
        checkFails(__LINE__, "weights and tensors with gaps", &plain.weights, &options, STATUS(BAD_PARAM),
                   "missing from weights and options.tensors: attn_v of layer 0, ffn_down of layer 1");
        options = optionsOf(NULL);
        checkFails(__LINE__, "weights with gaps", &plain.weights, &options, STATUS(NULL_POINTER),
                   "weights|attn_v of layer 0, attn_v of layer 1, ffn_down of layer 1");
    }

    /* a newer caller's list: unknown members must be zero */
    {
        enum { MORE = sizeof(Qwen3Tensor) + 8 };
        unsigned char *newer = newBlock(valid.n * MORE);
        memset(newer, 0, valid.n * MORE);
        for (size_t i = 0; i < valid.n; ++i) {
            memcpy(newer + i * MORE, &valid.list[i], sizeof(Qwen3Tensor));
            const size_t size = MORE;
            memcpy(newer + i * MORE, &size, sizeof(size));
        }
        Qwen3ModelOptions options = optionsOf(&valid);
        Outcome got, expected;
        CHECK(run(__LINE__, "valid", NULL, options, 1, NULL, &expected));
        options.tensors = (const Qwen3Tensor *)(const void *)newer;
        CHECK(run(__LINE__, "newer list", NULL, options, 1, NULL, &got));
        checkSame(__LINE__, "newer list", &got, &expected);
        newer[2 * MORE - 1] = 1;
        checkFails(__LINE__, "newer list, unknown member set", NULL, &options, STATUS(ABI_MISMATCH),
                   "options.tensors[1].struct_size|Qwen3Tensor|not all is zero");
    }

    /* values that are no numbers are found while packing, under the packed layer's name */
    {
        Tensors t = valid;
        Qwen3ModelOptions options = optionsOf(&t);
        float *bad = newValues(KVROWS * D, 0.0f, 16);
        memset(&bad[5 * D + 7], 0xff, sizeof(float));
        *find(&t, QWEN3_TENSOR_ATTN_K, 1) = encode(QWEN3_TENSOR_ATTN_K, 1, bad, KVROWS, D, QWEN3_DTYPE_F32, 0, 0);
        checkFails(__LINE__, "NaN", NULL, &options, STATUS(BAD_WEIGHTS), "attn_qkv of layer 1|row 69, column 7");
    }
#undef NAMED
}

/* ------------------------------------------------------------------ main */

int main(void) {
    Values values;
    initValues(&values);
    testForms(&values, QWEN3_BACKEND_AUTO, QWEN3_DTYPE_F32, 1);
    testForms(&values, QWEN3_BACKEND_AUTO, QWEN3_DTYPE_F32, 2);
    testForms(&values, QWEN3_BACKEND_AUTO, QWEN3_DTYPE_BF16, 1);
    testForms(&values, QWEN3_BACKEND_AUTO, QWEN3_DTYPE_F16, 1);
    testForms(&values, QWEN3_BACKEND_AUTO, QWEN3_DTYPE_INT8, 1);
    testForms(&values, QWEN3_BACKEND_AUTO, QWEN3_DTYPE_INT4_MIXED, 2);
    testForms(&values, QWEN3_BACKEND_AUTO, QWEN3_DTYPE_BF12, 1);
    if (strstr(qwen3BuildInfo(NULL), "infinicore=none") == NULL) {
        testForms(&values, QWEN3_BACKEND_INFINICORE, QWEN3_DTYPE_DEFAULT, 1);
    } else {
        printf("skipped: tensors on InfiniCore (this build has none)\n");
    }
    testReplacing(&values);
    testDefaultFormats(&values);
    testSaved(&values);
    testRefusals(&values);
    freeBlocksFrom(0);
    printf("%d checks, %d failed\n", g_checks, g_failures);
    return g_failures == 0 ? 0 : 1;
}
