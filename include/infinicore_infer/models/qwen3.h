/*
 * libinfinicore_infer: run Qwen3 models, dense (0.6B to 32B) and with experts (30B-A3B), from C.
 *
 * A complete program (test/c/example.c is this text, compiled and run by the tests):
 *
 *     Qwen3Meta meta = {...};                       // sizes of the model, see Qwen3Meta
 *     Qwen3Weights weights = {...};                 // pointers to the checkpoint's tensors
 *     struct Qwen3Model *model = createQwen3Model(&meta, &weights, QWEN3_DEVICE_CPU, 1, NULL);
 *     if (model == NULL) {
 *         fprintf(stderr, "%s\n", qwen3LastError());
 *         return 1;
 *     }
 *     struct KVCache *kv = createKVCache(model);
 *
 *     uint32_t tokens[] = {1, 2, 3}, ntok = 3, pos = 0, next = 0, topk = 1;
 *     float temperature = 0.0f, topp = 1.0f;        // temperature 0 = greedy
 *     for (int step = 0; step < 8; ++step) {
 *         const uint32_t *input = step == 0 ? tokens : &next;
 *         int32_t status = inferBatch(model, input, ntok, &ntok, 1, &pos, &kv,
 *                                     &temperature, &topk, &topp, &next);
 *         if (status != QWEN3_STATUS_SUCCESS) {
 *             fprintf(stderr, "%s: %s\n", qwen3StatusName(status), qwen3LastError());
 *             break;
 *         }
 *         printf("%u\n", (unsigned)next);
 *         pos += ntok;                              // the first call was the prefill,
 *         ntok = 1;                                 // every later one decodes one token
 *     }
 *     dropKVCache(model, kv);
 *     destroyQwen3Model(model);
 *
 * Conventions
 *   Sizes       nlayer layers, d hidden size, nh query heads, nkvh key/value heads, dh head size, di MLP size,
 *               dctx context length in tokens, dvoc vocabulary size, ntok tokens of a call, nreq requests of a call.
 *   Shapes      [a, b] is row-major: b is contiguous.
 *   Errors      Functions that can fail return a Qwen3Status or NULL. qwen3LastError() then holds one line of text,
 *               per thread, until that thread's next failing call. The library never exits, aborts, prints or throws.
 *               A call that failed leaves the model and all caches usable (with ndev > 1 on an accelerator there is
 *               one exception, which its message names: docs/devices.md).
 *   Ownership   create* and duplicate* return handles that the caller owns and gives back to destroy* or drop*.
 *               Host pointers passed in are borrowed for the call only (but see Qwen3ModelOptions.borrow_weights).
 *   Threads     Every function may be called from any thread. Calls on one model (its caches included) are
 *               serialised by a lock inside the model; different models run concurrently. The two exceptions are
 *               said where they apply: destroyQwen3Model must be the last call, and qwen3Cancel never waits.
 *   Processes   A model belongs to the process that created it. In one that fork() made of it, every call on the model
 *               fails with QWEN3_STATUS_DEVICE_NOT_INITIALIZED and a message that names fork, and drop* and destroy*
 *               do nothing. The library's threads take no signals of the process. Calls compute in the default
 *               floating-point environment and give the caller's back unchanged.
 *   Results     Greedy output of a request is bit-for-bit the same alone or in any batch, with any number of
 *               threads, and with the prompt passed whole or in chunks, for a given ndev (CPU backend; see
 *               docs/numerics.md).
 */
#ifndef INFINICORE_INFER_MODELS_QWEN3_H
#define INFINICORE_INFER_MODELS_QWEN3_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define QWEN3_API __declspec(dllexport)
#elif defined(__GNUC__)
#define QWEN3_API __attribute__((visibility("default")))
#else
#define QWEN3_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Version of this header: MAJOR.MINOR.PATCH. The ABI number changes only when old callers would break. */
#define QWEN3_VERSION_STRING "0.2.0"
#define QWEN3_ABI_VERSION 1

/* ------------------------------------------------------------------ enums
 * All enums are passed as int32_t. Values are never renumbered. */

/* Values 0 to 13 mean what the same infiniStatus_t value means; ours start at 100. */
typedef enum {
    QWEN3_STATUS_SUCCESS = 0,
    QWEN3_STATUS_INTERNAL_ERROR = 1,
    QWEN3_STATUS_NOT_IMPLEMENTED = 2,
    QWEN3_STATUS_BAD_PARAM = 3,
    QWEN3_STATUS_NULL_POINTER = 4,
    QWEN3_STATUS_DEVICE_TYPE_NOT_SUPPORTED = 5,
    QWEN3_STATUS_DEVICE_NOT_FOUND = 6,
    QWEN3_STATUS_DEVICE_NOT_INITIALIZED = 7,
    QWEN3_STATUS_DEVICE_ARCHITECTURE_NOT_SUPPORTED = 8,
    QWEN3_STATUS_BAD_TENSOR_DTYPE = 10,
    QWEN3_STATUS_BAD_TENSOR_SHAPE = 11,
    QWEN3_STATUS_BAD_TENSOR_STRIDES = 12,
    QWEN3_STATUS_INSUFFICIENT_WORKSPACE = 13,
    QWEN3_STATUS_OUT_OF_MEMORY = 100,    /* host or device memory, not the KV limit */
    QWEN3_STATUS_OUT_OF_KV = 101,        /* the KV pool's limit: drop a cache or raise kv_limit_bytes, then retry */
    QWEN3_STATUS_CONTEXT_OVERFLOW = 102, /* req_pos + req_len > dctx */
    QWEN3_STATUS_CACHE_MISMATCH = 103,   /* a cache is not this model's, is used twice, or is shorter than req_pos */
    QWEN3_STATUS_ABI_MISMATCH = 104,     /* a struct_size this library does not accept; the message has the range */
    QWEN3_STATUS_CANCELLED = 105,        /* qwen3Cancel or a progress callback asked to stop */
    QWEN3_STATUS_BAD_WEIGHTS = 106,      /* a weight is NaN or infinite */
    QWEN3_STATUS_IO_ERROR = 107,         /* a file could not be written, is absent or damaged; the message says why */
    QWEN3_STATUS_UNREADABLE = 108        /* the system refuses to open or read a file, which may be whole: permission,
                                            too many open files, a failing disk; the message says why */
} Qwen3Status;

/* Same numbers as infiniDtype_t. */
typedef enum {
    QWEN3_DTYPE_DEFAULT = 0, /* where an option allows it: let the library choose */
    QWEN3_DTYPE_F16 = 12,
    QWEN3_DTYPE_F32 = 13,
    QWEN3_DTYPE_BF16 = 19,
    /* For Qwen3ModelOptions.dt_weight only, CPU backend, made while packing. INT8 and INT4: groups of 32 weights with
     * one bf16 scale; INT4 keeps lm_head (and a tied embedding) and, from 4 layers on, the first layer in INT8, and
     * INT4_MIXED also the q, k and v projections of every layer. BF12: bf16 in about 12.3 bits without loss,
     * results bit-equal to BF16's (weights given in another dtype are rounded to bf16 first, as for BF16). */
    QWEN3_DTYPE_INT8 = 101,
    QWEN3_DTYPE_INT4 = 102,
    QWEN3_DTYPE_BF12 = 103,
    QWEN3_DTYPE_INT4_MIXED = 104,
    /* For Qwen3Tensor only: what checkpoints store. */
    QWEN3_DTYPE_I8 = 3, /* codes of 8 bits */
    QWEN3_DTYPE_U8 = 7,
    QWEN3_DTYPE_U4 = 110,         /* codes of 4 bits; Qwen3TensorLayout says where each lies */
    QWEN3_DTYPE_F8_E4M3 = 111,    /* e4m3fn: no infinity, 0x7f and 0xff are NaN */
    QWEN3_DTYPE_F8_E8M0 = 112,    /* a power of two: scales only */
    QWEN3_DTYPE_GGUF_Q4_0 = 1002, /* GGUF's blocks, scales within: 1000 + ggml's type number */
    QWEN3_DTYPE_GGUF_Q4_1 = 1003,
    QWEN3_DTYPE_GGUF_Q5_0 = 1006,
    QWEN3_DTYPE_GGUF_Q5_1 = 1007,
    QWEN3_DTYPE_GGUF_Q8_0 = 1008,
    QWEN3_DTYPE_GGUF_Q2_K = 1010,
    QWEN3_DTYPE_GGUF_Q3_K = 1011,
    QWEN3_DTYPE_GGUF_Q4_K = 1012,
    QWEN3_DTYPE_GGUF_Q5_K = 1013,
    QWEN3_DTYPE_GGUF_Q6_K = 1014,
    QWEN3_DTYPE_GGUF_IQ4_NL = 1020,
    QWEN3_DTYPE_GGUF_IQ4_XS = 1023
} Qwen3DType;

/* Same numbers as infiniDevice_t. InfiniCore 0.1.0 knows the first eight. */
typedef enum {
    QWEN3_DEVICE_CPU = 0,
    QWEN3_DEVICE_NVIDIA = 1,
    QWEN3_DEVICE_CAMBRICON = 2,
    QWEN3_DEVICE_ASCEND = 3,
    QWEN3_DEVICE_METAX = 4,
    QWEN3_DEVICE_MOORE = 5,
    QWEN3_DEVICE_ILUVATAR = 6,
    QWEN3_DEVICE_KUNLUN = 7,
    QWEN3_DEVICE_HYGON = 8,
    QWEN3_DEVICE_QY = 9,
    QWEN3_DEVICE_ALI = 10
} Qwen3Device;

typedef enum {
    QWEN3_BACKEND_AUTO = 0,      /* CPU kernels for QWEN3_DEVICE_CPU, InfiniCore for every other device */
    QWEN3_BACKEND_CPU = 1,       /* this library's own CPU kernels */
    QWEN3_BACKEND_INFINICORE = 2 /* InfiniCore operators, also for QWEN3_DEVICE_CPU */
} Qwen3Backend;

/*
 * How exactly the CPU backend keeps the activations that weights are multiplied with; fewer bits are faster on CPUs
 * with instructions for them. Layers whose weights cannot take the choice keep their default; a choice that the model's
 * main weight format cannot take is refused (BAD_PARAM), and the message lists what it can. A choice is one arithmetic
 * for every batch size, chunk and thread count. docs/numerics.md says what each costs.
 */
typedef enum {
    QWEN3_ACTIVATIONS_AUTO = 0,   /* the fastest whose effect on the output is no larger than other engines' */
    QWEN3_ACTIVATIONS_F32 = 1,    /* F32, F16, BF16, BF12, FP8 weights */
    QWEN3_ACTIVATIONS_BF16X2 = 2, /* BF16, BF12, FP8 weights: each activation as the sum of two bf16 */
    QWEN3_ACTIVATIONS_BF16 = 3,   /* BF16, BF12, FP8 weights: rounded to bf16; a default KV cache is in BF16 then */
    QWEN3_ACTIVATIONS_INT16 = 4,  /* INT8, INT4 weights: codes of 16 bits, a scale per 32 */
    QWEN3_ACTIVATIONS_INT8 = 5    /* INT8, INT4 weights, kept codes of checkpoints: codes of 8 bits, a scale per 32 */
} Qwen3Activations;

/*
 * Where the experts' weights are. On disk they stay in cache_path and take none of the process's memory; a step reads
 * those that it needs, and what the system's page cache holds of the file is as fast as copying it. The results are
 * the same. CPU backend, ndev 1 (else NOT_IMPLEMENTED); a model without experts has none to leave (BAD_PARAM).
 */
typedef enum {
    QWEN3_EXPERTS_MEMORY = 0,
    /*
     * cache_path is required, and written while the model is created if the file there does not fit: one layer at a
     * time, complete or not at all (IO_ERROR and the system's reason). It is verified then, and held open: it may be
     * deleted or replaced meanwhile. Cut short, or on a disk that fails, it makes calls fail with IO_ERROR, which leave
     * caches as they were. progress counts twice where the file is written: for packing, and for reading it.
     */
    QWEN3_EXPERTS_DISK = 1
} Qwen3Experts;

/* How rotary frequencies are scaled; formulas are those of Hugging Face's rope_scaling / rope_parameters. */
typedef enum {
    QWEN3_ROPE_DEFAULT = 0,
    QWEN3_ROPE_LINEAR = 1, /* uses rope_factor */
    QWEN3_ROPE_YARN = 2,   /* uses rope_factor, rope_original_ctx, rope_attention_factor, rope_beta_*, rope_truncate */
    QWEN3_ROPE_LLAMA3 = 3  /* uses rope_factor, rope_original_ctx, rope_low/high_freq_factor */
} Qwen3RopeType;

/* Qwen3Stats.weight_cache: what became of Qwen3ModelOptions.cache_path when the model was created. */
typedef enum {
    QWEN3_CACHE_UNUSED = 0,    /* no cache_path, or a backend that cannot save its weights */
    QWEN3_CACHE_LOADED = 1,    /* the packed weights came from the file */
    QWEN3_CACHE_ABSENT = 2,    /* there is no such file */
    QWEN3_CACHE_STALE = 3,     /* written for another cache_key, model, format or version of the library */
    QWEN3_CACHE_CORRUPT = 4,   /* truncated, changed, or not such a file at all */
    QWEN3_CACHE_UNREADABLE = 5 /* there is a file, but the system does not read it now; it may be good */
} Qwen3WeightCache;

/*
 * What a Qwen3Tensor is to the model. The first ones are Qwen3Weights' members, with the same shapes [rows, cols]; a
 * vector of n elements is [n, 1]. e stands for the experts of a layer, dm for their MLP size.
 */
typedef enum {
    QWEN3_TENSOR_INPUT_EMBD = 1,  /* [dvoc, d]; also the head if there is no OUTPUT_EMBD */
    QWEN3_TENSOR_OUTPUT_NORM = 2, /* [d, 1] */
    QWEN3_TENSOR_OUTPUT_EMBD = 3, /* [dvoc, d] */
    /* of one layer */
    QWEN3_TENSOR_ATTN_NORM = 10,   /* [d, 1] */
    QWEN3_TENSOR_ATTN_Q_NORM = 11, /* [dh, 1] */
    QWEN3_TENSOR_ATTN_K_NORM = 12, /* [dh, 1] */
    QWEN3_TENSOR_ATTN_QKV = 13,    /* [(nh + 2 * nkvh) * dh, d]: ATTN_Q's rows, then ATTN_K's, then ATTN_V's */
    QWEN3_TENSOR_ATTN_Q = 14,      /* [nh * dh, d] */
    QWEN3_TENSOR_ATTN_K = 15,      /* [nkvh * dh, d] */
    QWEN3_TENSOR_ATTN_V = 16,      /* [nkvh * dh, d] */
    QWEN3_TENSOR_ATTN_O = 17,      /* [d, nh * dh] */
    QWEN3_TENSOR_ATTN_QKV_B = 18,  /* [(nh + 2 * nkvh) * dh, 1] */
    QWEN3_TENSOR_ATTN_Q_B = 19,    /* [nh * dh, 1] */
    QWEN3_TENSOR_ATTN_K_B = 20,    /* [nkvh * dh, 1] */
    QWEN3_TENSOR_ATTN_V_B = 21,    /* [nkvh * dh, 1] */
    QWEN3_TENSOR_ATTN_O_B = 22,    /* [d, 1] */
    QWEN3_TENSOR_FFN_NORM = 30,    /* [d, 1] */
    QWEN3_TENSOR_FFN_GATE_UP = 31, /* [2 * di, d]: FFN_GATE's rows, then FFN_UP's */
    QWEN3_TENSOR_FFN_GATE = 32,    /* [di, d] */
    QWEN3_TENSOR_FFN_UP = 33,      /* [di, d] */
    QWEN3_TENSOR_FFN_DOWN = 34,    /* [d, di] */
    /* of one layer with experts, in place of FFN_GATE_UP to FFN_DOWN; EXPERT_*: of one expert, or of several that
     * follow each other. Qwen3ModelOptions.nexperts says how many a layer has. */
    QWEN3_TENSOR_FFN_ROUTER = 40,     /* [e, d] */
    QWEN3_TENSOR_EXPERT_GATE_UP = 41, /* [2 * dm, d]: gate rows, then up */
    QWEN3_TENSOR_EXPERT_GATE = 42,    /* [dm, d] */
    QWEN3_TENSOR_EXPERT_UP = 43,      /* [dm, d] */
    QWEN3_TENSOR_EXPERT_DOWN = 44     /* [d, dm] */
} Qwen3TensorRole;

/* Where the codes of a Qwen3Tensor, their scales and their zero points lie; names are those of the checkpoints. n is
 * rows, k is cols, g the number of groups (of block_cols columns). In the three layouts of 32-bit words the dtype is U4
 * or U8 (AWQ: U4), zero_dtype is the same, block_rows 1, and both strides are 0. */
typedef enum {
    /* Bytes and floats by row_stride and col_stride; U4 one row after the other, the even column in the low nibble, k
     * even; GGUF's blocks along the rows, k whole blocks, row_stride in elements.
     * scales and zeros [ceil(n / block_rows), ceil(k / block_cols)]; zero_dtype I8, U8 or a float. */
    QWEN3_LAYOUT_PLAIN = 0,
    /* GPTQ, p = 32 / bits: words [k / p, n], the code of column p * i + j in bits [bits * j, ...) of word i; scales
     * [g, n]; zeros: words [g, n / p]. k, and n with zeros, are multiples of p. The original format stores zero points
     * less one: zero_offset 1. */
    QWEN3_LAYOUT_GPTQ = 1,
    /* AutoAWQ's "gemm": words [k, n / 8], the code of row 8 * i + j in nibble {0, 4, 1, 5, 2, 6, 3, 7}[j] of word i;
     * scales [g, n]; zeros: words [g, n / 8] in the same order. n is a multiple of 8. */
    QWEN3_LAYOUT_AWQ = 2,
    /* compressed-tensors' "pack-quantized": each row a little-endian stream of bits in 32-bit words; scales [n, g];
     * zeros: words packed likewise down the rows, [ceil(n * bits / 32), g]. */
    QWEN3_LAYOUT_PACK_QUANTIZED = 3
} Qwen3TensorLayout;

/* Arguments of qwen3StructSize. */
typedef enum {
    QWEN3_STRUCT_META = 0,
    QWEN3_STRUCT_WEIGHTS = 1,
    QWEN3_STRUCT_MODEL_OPTIONS = 2,
    QWEN3_STRUCT_SAMPLING_PARAMS = 3,
    QWEN3_STRUCT_SAMPLE_RESULT = 4,
    QWEN3_STRUCT_STATS = 5,
    QWEN3_STRUCT_LOAD_STATE = 6,
    QWEN3_STRUCT_TENSOR = 7
} Qwen3StructKind;

/* ------------------------------------------------------------------ model description (frozen layout) */

/* Sizes and constants of a model, from its config.json. The library copies it. Every value is required. */
typedef struct {
    int32_t dt_logits;  /* Qwen3DType of activations on InfiniCore devices: F16, BF16 or F32 (CPU kernels use F32) */
    size_t nlayer;      /* num_hidden_layers, >= 1 */
    size_t d;           /* hidden_size */
    size_t nh;          /* num_attention_heads */
    size_t nkvh;        /* num_key_value_heads, divides nh */
    size_t dh;          /* head_dim, even; NOT d / nh: Qwen3 states it separately */
    size_t di;          /* intermediate_size */
    size_t dctx;        /* context length in tokens: the highest position + 1; costs no memory by itself */
    size_t dvoc;        /* vocab_size */
    float epsilon;      /* rms_norm_eps, > 0 */
    float theta;        /* rope_theta, > 0 */
    uint32_t end_token; /* eos_token_id, < dvoc; informative: the library does not stop at it */
} Qwen3Meta;

/*
 * Pointers to the checkpoint's tensors in host memory, whole (the library cuts them per device and packs them for
 * its kernels). Arrays marked [nlayer] hold one pointer per layer.
 *   dt_mat   dtype of embeddings, projections and projection biases; dt_norm  dtype of all norm weights.
 *   Projections are [out, in] as in Hugging Face checkpoints when transpose_linear_weights != 0, and [in, out] when
 *   it is 0 (the meaning InfiniCore-Infer gave the flag). Embeddings are always [dvoc, d].
 *   Either the fused array or all of its split arrays is given; the other is NULL. Bias arrays may be NULL; a fused
 * bias goes with a fused projection, split biases with split ones. Pointers need no particular alignment.
 *   Qwen3ModelOptions.tensors says the same tensor by tensor, each with a dtype of its own.
 */
typedef struct {
    size_t nlayer; /* must equal Qwen3Meta.nlayer */
    int32_t dt_norm;
    int32_t dt_mat;
    int32_t transpose_linear_weights;
    const void *input_embd;  /* [dvoc, d] */
    const void *output_norm; /* [d] */
    const void *output_embd; /* [dvoc, d], or NULL: tied to input_embd */

    const void *const *attn_norm;   /* [nlayer] of [d]       input_layernorm */
    const void *const *attn_q_norm; /* [nlayer] of [dh]      self_attn.q_norm */
    const void *const *attn_k_norm; /* [nlayer] of [dh]      self_attn.k_norm */

    const void *const *attn_qkv; /* [nlayer] of [(nh + 2 * nkvh) * dh, d]: q rows, then k, then v; or NULL */
    const void *const *attn_q;   /* [nlayer] of [nh * dh, d], or NULL */
    const void *const *attn_k;   /* [nlayer] of [nkvh * dh, d], or NULL */
    const void *const *attn_v;   /* [nlayer] of [nkvh * dh, d], or NULL */
    const void *const *attn_o;   /* [nlayer] of [d, nh * dh] */

    const void *const *attn_qkv_b; /* [nlayer] of [(nh + 2 * nkvh) * dh], or NULL */
    const void *const *attn_q_b;   /* [nlayer] of [nh * dh], or NULL */
    const void *const *attn_k_b;   /* [nlayer] of [nkvh * dh], or NULL */
    const void *const *attn_v_b;   /* [nlayer] of [nkvh * dh], or NULL */
    const void *const *attn_o_b;   /* [nlayer] of [d], or NULL */

    const void *const *ffn_norm;    /* [nlayer] of [d]       post_attention_layernorm */
    const void *const *ffn_gate_up; /* [nlayer] of [2 * di, d]: gate rows, then up; or NULL */
    const void *const *ffn_gate;    /* [nlayer] of [di, d], or NULL */
    const void *const *ffn_up;      /* [nlayer] of [di, d], or NULL */
    const void *const *ffn_down;    /* [nlayer] of [d, di] */
} Qwen3Weights;

/* ------------------------------------------------------------------ structs that grow at the end
 *
 * Each begins with struct_size, which the caller sets to its own sizeof, the same in every element of an array (arrays
 * are stepped through by it). It is a multiple of 8 from the size of the first version to 4096; anything else is
 * ABI_MISMATCH before another byte is read. So either side may be the newer one:
 *   what a caller passes in   The members that an older caller's struct lacks have their defaults. The members of a
 *                             newer caller's that this library does not know must be zero, else ABI_MISMATCH.
 *   what the library writes   It fills in as much as fits struct_size, and zeroes the members that it does not know.
 */

/*
 * One tensor of a checkpoint, in host memory: a matrix [rows, cols] whose rows are output features and whose columns
 * are input features, as in Hugging Face checkpoints, or a vector [n, 1]. Fill with QWEN3_TENSOR_INIT, or zero it and
 * set struct_size: zero means "none" or the default stated. The struct can describe what Qwen3 checkpoints store in
 * any format in use. Norms and biases are F16, BF16 or F32; matrices may have any dtype but F8_E8M0, each its own.
 *   The value of a code c is scale * (c - zero), where zero = its element of zeros (0 if that is NULL) + zero_offset;
 * with a float zero_dtype it is scale * c + its element of zeros. What the members from scales on mean:
 *   F8_E4M3   scale_dtype and block_rows x block_cols: 128 x 128 (DeepSeek's and Qwen's "weight_scale_inv", which is a
 *             multiplier), 1 x 0 (per channel) or 0 x 0 (per tensor). No zeros, no groups.
 *   I8, U8    in the layout PLAIN: block_rows 1, block_cols the group size or 0 (per channel).
 *   U4, U8    in the layouts of words: block_cols the group size or 0; symmetric codes have zeros NULL and zero_offset
 *             8 or 128.
 *   GGUF_*    all 0.
 *   groups    of I8, U8 and U4, where columns are in groups in any order: any number of columns in each, and each
 *             element from 0 to ceil(cols / block_cols) - 1, else BAD_PARAM, which names tensor, index, value and
 *             limit. They are copied while arguments are checked (IO_ERROR if they cannot be read).
 * dt_weight decides how they are packed. Whatever it is, weights that are given in codes are never rounded but by that
 * format: their decoded values are float32, exact but for the last step of "scale * code - minimum".
 */
typedef struct {
    size_t struct_size;   /* sizeof(Qwen3Tensor) */
    int32_t role;         /* Qwen3TensorRole */
    int32_t dtype;        /* Qwen3DType of the elements: F16, BF16, F32, or one for tensors only */
    uint32_t layer;       /* below nlayer; 0 for the roles outside layers */
    uint32_t expert;      /* EXPERT_* roles: the expert, or the first of nexperts */
    uint32_t nexperts;    /* EXPERT_* roles: how many experts lie here, one after the other; 0: 1. More than one: floats
                             or GGUF_* only */
    int32_t layout;       /* Qwen3TensorLayout */
    size_t rows;          /* of one expert where there are several */
    size_t cols;          /* 1 for vectors */
    size_t row_stride;    /* elements from a row to the next, up to 2^32; 0: cols */
    size_t col_stride;    /* elements from a column to the next; 0: 1. A matrix stored as [cols, rows], every column
                             contiguous, has row_stride 1 and col_stride rows. 1 for INPUT_EMBD and vectors */
    size_t expert_stride; /* elements from an expert to the next; 0: rows * cols */
    const void *data;     /* needs no particular alignment */
    const void *scales;   /* one for each block_rows x block_cols elements, or NULL: all 1 */
    const void *zeros;    /* one for each scale, or NULL */
    const int32_t *groups; /* [cols] which group each column is in (GPTQ's g_idx), or NULL: column / block_cols */
    int32_t scale_dtype;   /* Qwen3DType: F16, BF16, F32, F8_E8M0 */
    int32_t zero_dtype;    /* Qwen3DType: U4, U8, I8, F16, BF16, F32 */
    int32_t zero_offset;   /* added to every zero point: 8 for unsigned symmetric codes of 4 bits */
    uint32_t block_rows;   /* rows that share a scale: 1 for group scales, 0: all */
    uint32_t block_cols;   /* columns that share a scale: the group size, 0: all */
    int32_t reserved;      /* 0 */
} Qwen3Tensor;
/* clang-format off */
#define QWEN3_TENSOR_INIT                                                                                              \
    {sizeof(Qwen3Tensor), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL, 0, 0, 0, 0, 0, 0}
/* clang-format on */

/* ------------------------------------------------------------------ options */

/*
 * Called while weights are packed, on the creating thread, after each table and layer. done and total are bytes of
 * weights. Return 0 to go on; anything else makes createQwen3ModelEx fail with QWEN3_STATUS_CANCELLED. When it is
 * called, no weight pointer passed so far is being read, so a loader may release clean file pages.
 */
typedef int (*Qwen3ProgressCallback)(void *user_data, uint64_t done, uint64_t total);

/*
 * What qwen3LoadProgress shares with other threads. The caller owns it, zeroes it, and keeps it and what it points to
 * until create returns.
 */
typedef struct {
    int32_t cancel;              /* set it non-zero from any thread (an atomic or plain int store) to stop loading */
    uint32_t nmappings;          /* number of elements of both arrays */
    void *const *mappings;       /* [nmappings] page-aligned starts of read-only mappings of files; or NULL */
    const size_t *mapping_bytes; /* [nmappings] their sizes; or NULL */
    uint64_t done;               /* bytes of weights, as of the last report */
    uint64_t total;              /* 0 before the first report */
} Qwen3LoadState;

/* Zero means "default" for every field. Fill with QWEN3_MODEL_OPTIONS_INIT, then set what you need. */
typedef struct {
    size_t struct_size; /* sizeof(Qwen3ModelOptions) */
    int32_t backend;    /* Qwen3Backend */
    int32_t nthreads;   /* CPU threads of all ranks, 1 to 1024; 0: the CPUs this process may use (affinity and cgroup
                           quota). Each rank has at least one. */
    int32_t dt_weight;  /* packed weight format: F16, BF16, F32, INT8, INT4, INT4_MIXED or BF12; DEFAULT: each matrix
                           as given, F32 if parts that are packed as one (q, k, v; gate, up) differ */
    /* KV cache dtype: F16, BF16, F32, or on the CPU backend INT8 (codes with a bf16 scale per token and 32 elements of
     * K or 16 of V: 0.55 of F16's bytes). DEFAULT: on CPU F32 if most weights of the layers are packed as F32, BF16
     * where attention is in BF16 (docs/numerics.md), else F16; dt_logits on InfiniCore */
    int32_t dt_kv;
    uint64_t kv_limit_bytes;  /* most bytes of all caches together; 0: half of the memory free at create */
    uint32_t max_step_tokens; /* tokens computed at a time, 1 to 65536: longer calls run in chunks; 0: 512 on the CPU,
                               * 1024 on other devices */
    int32_t borrow_weights;   /* non-zero: an untied input_embd stays valid for the model's life and is not copied */
    int32_t has_seed;         /* non-zero: seed below seeds inferBatch's draws; zero: a random seed */
    uint64_t seed;
    int32_t rope_type;           /* Qwen3RopeType */
    float rope_factor;           /* > 0 */
    uint32_t rope_original_ctx;  /* original_max_position_embeddings, tokens */
    float rope_attention_factor; /* 0: 0.1 * ln(rope_factor) + 1 */
    float rope_beta_fast;        /* 0: 32 */
    float rope_beta_slow;        /* 0: 1 */
    int32_t rope_no_truncate;    /* non-zero: YaRN's correction range is not rounded to whole dimensions */
    float rope_low_freq_factor;
    float rope_high_freq_factor;
    Qwen3ProgressCallback progress; /* or NULL */
    void *progress_user_data;
    /*
     * A file that qwen3SaveWeights wrote, or NULL. If it fits the model, ndev, format, library and cache_key and all
     * its checksums are right, packed weights are read from it and no data of weights but groups and a borrowed
     * input_embd is touched; results are bit for bit the same. Otherwise the weights are packed as without it: a cache
     * never makes createQwen3ModelEx fail. Qwen3Stats.weight_cache says what happened. The library only reads the file,
     * unless experts is QWEN3_EXPERTS_DISK.
     */
    const char *cache_path;
    const char *cache_key; /* any text that changes when the checkpoint does; NULL: "" */
    /*
     * [ntensors] tensors in any order, or NULL. Each takes the place of what Qwen3Weights says of its role and layer,
     * and together they may be the whole model, which then needs no Qwen3Weights. Dtypes may differ from tensor to
     * tensor. A projection is given fused or in all its parts, or in parts whose rest is in Qwen3Weights; never fused
     * and in parts. A bias may be given in either form, whatever its projection's is. The list and the data are
     * borrowed like those of Qwen3Weights. All is checked before any data but groups is read; messages name the tensor:
     * BAD_TENSOR_SHAPE, BAD_TENSOR_STRIDES (rows or columns overlap), BAD_TENSOR_DTYPE, NULL_POINTER (data),
     * NOT_IMPLEMENTED and the feature, or BAD_PARAM, which lists all that are missing.
     */
    const Qwen3Tensor *tensors;
    size_t ntensors;
    int32_t activations; /* Qwen3Activations; on InfiniCore AUTO only */
    int32_t experts;     /* Qwen3Experts */
    /*
     * Mixture of experts: num_experts, num_experts_per_tok, moe_intermediate_size and norm_topk_prob of config.json;
     * all 0 in a dense model. A layer whose tensors have FFN_ROUTER and EXPERT_* roles has nexperts MLPs of dm inner
     * rows, of which each token goes through the nexperts_used that the router finds likeliest (ties go to the lower
     * index); other layers have one of meta.di. The router's products and softmax are in float32 on the CPU backend.
     */
    uint32_t nexperts;      /* at most 65536 */
    uint32_t nexperts_used; /* 1 to nexperts */
    uint32_t dm;            /* MLP size of an expert */
    int32_t norm_topk_prob; /* non-zero: the weights of a token's experts are divided by their sum */
} Qwen3ModelOptions;
/* clang-format off */
#define QWEN3_MODEL_OPTIONS_INIT                                                                                       \
    {sizeof(Qwen3ModelOptions), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0f, 0, 0.0f, 0.0f, 0.0f, 0, 0.0f, 0.0f, NULL, NULL,    \
     NULL, NULL, NULL, 0, 0, 0, 0, 0, 0, 0}
/* clang-format on */

/*
 * How one request's next token is chosen. Steps, in order: logit bias, allowed tokens, repetition, presence and
 * frequency penalties, temperature, top_k, top_p, min_p, one draw. Ties go to the lower token id.
 */
typedef struct {
    size_t struct_size;       /* sizeof(Qwen3SamplingParams) */
    float temperature;        /* >= 0, finite; 0: greedy */
    uint32_t top_k;           /* keep the k likeliest; 0: all; 1: greedy */
    float top_p;              /* in (0, 1]; keep the likeliest whose probabilities reach top_p */
    float min_p;              /* in [0, 1); drop tokens below min_p times the likeliest */
    float repetition_penalty; /* > 0; 1: off; over all of history */
    float presence_penalty;   /* in [-2, 2]; over the last ngenerated tokens of history */
    float frequency_penalty;  /* in [-2, 2]; likewise */
    uint64_t seed;            /* same seed, position and logits: same token */
    int32_t skip;             /* non-zero: no sampling for this request (a prefill chunk); its result is zeroed */
    const uint32_t *history;  /* [nhistory] token ids for the penalties, prompt first; NULL if nhistory is 0 */
    uint32_t nhistory;
    uint32_t ngenerated;         /* <= nhistory: how many at the end of history were generated */
    const uint32_t *bias_tokens; /* [nbias] ids < dvoc */
    const float *bias_values;    /* [nbias] added to the logits; -INFINITY bans a token */
    uint32_t nbias;
    const uint32_t *allowed_mask; /* [(dvoc + 31) / 32] words; bit t % 32 of word t / 32 allows token t; NULL: all */
    uint32_t top_logprobs;        /* 0 to 128: how many likeliest tokens to report */
    /* How many tokens at the end of this request are drafts, 0 to req_len - 1; see inferBatchEx. (A size_t, because a
     * smaller type would lie in the padding at the end of older callers' structs.) */
    size_t ndraft;
    int32_t no_logprob; /* non-zero: logprob of the result stays 0, which saves a pass over the vocabulary */
    int32_t reserved;   /* 0 */
} Qwen3SamplingParams;
/* Every member is spelled out so that -Wmissing-field-initializers stays quiet in C and C++. */
#define QWEN3_SAMPLING_PARAMS_INIT                                                                                     \
    {sizeof(Qwen3SamplingParams),                                                                                      \
     0.0f,                                                                                                             \
     0,                                                                                                                \
     1.0f,                                                                                                             \
     0.0f,                                                                                                             \
     1.0f,                                                                                                             \
     0.0f,                                                                                                             \
     0.0f,                                                                                                             \
     0,                                                                                                                \
     0,                                                                                                                \
     NULL,                                                                                                             \
     0,                                                                                                                \
     0,                                                                                                                \
     NULL,                                                                                                             \
     NULL,                                                                                                             \
     0,                                                                                                                \
     NULL,                                                                                                             \
     0,                                                                                                                \
     0,                                                                                                                \
     0,                                                                                                                \
     0}

/* What one request got. Log-probabilities are natural logs of the model's own distribution: after bias, mask and
 * penalties, before temperature and truncation. */
typedef struct {
    size_t struct_size;   /* sizeof(Qwen3SampleResult), set by the caller */
    uint32_t token;       /* the chosen token */
    uint32_t ntop;        /* entries written to the two arrays below */
    float logprob;        /* of token */
    uint32_t naccepted;   /* how many of the request's drafts were accepted; see inferBatchEx */
    uint32_t *top_tokens; /* caller's array [top_logprobs], or NULL when that is 0 */
    float *top_logprobs;  /* caller's array [top_logprobs], or NULL when that is 0 */
} Qwen3SampleResult;

/* Current use of memory by one model, in bytes unless said. */
typedef struct {
    size_t struct_size;     /* sizeof(Qwen3Stats), set by the caller */
    uint64_t weight_bytes;  /* packed weights in memory */
    uint64_t scratch_bytes; /* activations and workspace, allocated at create */
    uint64_t kv_used_bytes; /* blocks in use by all caches, shared ones once */
    uint64_t kv_limit_bytes;
    uint64_t kv_block_bytes;  /* bytes of one block */
    uint32_t kv_block_tokens; /* tokens of one block */
    uint32_t ncaches;         /* live caches */
    uint32_t nthreads;
    int32_t weight_cache;       /* Qwen3WeightCache */
    uint64_t expert_file_bytes; /* packed experts that stay on disk, not in weight_bytes */
} Qwen3Stats;

struct Qwen3Model;
struct KVCache;

/* ------------------------------------------------------------------ model */

/*
 * Creates a model with default options. Same as createQwen3ModelEx with options NULL.
 *   device   Qwen3Device
 *   ndev     1 to 1024 devices of that type. With more than one the model is cut over them (tensor parallelism), one
 *            rank per device: nh must be divisible by ndev, and one of nkvh and ndev by the other; BAD_PARAM lists the
 *            numbers that this model allows. The text is that of one device up to rounding. On CPU the ranks share the
 *            machine: options.nthreads is divided, and with several NUMA nodes each rank stays on its own.
 *   dev_ids  [ndev] distinct device indices, or NULL: 0, 1, ..., ndev - 1. On CPU only these, in this order.
 * A rank that fails fails the call; the message begins with "rank R of N: ".
 * Returns the model, or NULL: qwen3LastError says why and qwen3LastStatus its code (NULL_POINTER, BAD_PARAM,
 * BAD_TENSOR_DTYPE, BAD_WEIGHTS, OUT_OF_MEMORY, DEVICE_*, NOT_IMPLEMENTED, CANCELLED).
 * The weights may be freed when it returns. Thread-safe.
 */
QWEN3_API struct Qwen3Model *createQwen3Model(const Qwen3Meta *meta, const Qwen3Weights *weights, int32_t device,
                                              int32_t ndev, const int32_t *dev_ids);

/* As createQwen3Model, with options (NULL: all defaults). weights may be NULL when options->tensors gives the whole
 * model. Further errors: ABI_MISMATCH, BAD_TENSOR_SHAPE, BAD_TENSOR_STRIDES. */
QWEN3_API struct Qwen3Model *createQwen3ModelEx(const Qwen3Meta *meta, const Qwen3Weights *weights, int32_t device,
                                                int32_t ndev, const int32_t *dev_ids, const Qwen3ModelOptions *options);

/*
 * A Qwen3ProgressCallback that runs no code of the caller's; pass it as Qwen3ModelOptions.progress and a Qwen3LoadState
 * as progress_user_data (NULL: does nothing). For interpreters: a callback of their own would wait for a lock that
 * another of their threads may hold for long. It gives the pages of the mappings back to the system, which keeps the
 * peak of resident memory at the packed weights and one layer, and writes done and total. Mappings of anything but
 * files would lose their content.
 */
QWEN3_API int qwen3LoadProgress(void *user_data, uint64_t done, uint64_t total);

/* Frees a model and every cache of it that is still alive (their handles become invalid). NULL is a no-op; cannot
 * fail. Must not run while another thread is inside a call on this model. */
QWEN3_API void destroyQwen3Model(struct Qwen3Model *model);

/*
 * Writes the packed weights of `model` to `path` for later models with the same cache_key (NULL: ""); see
 * Qwen3ModelOptions.cache_path. The folder must exist. The file appears complete or not at all (a temporary file
 * beside it, flushed, then renamed), replacing one that is there. May run while other calls use the model, but not
 * beside destroyQwen3Model. Takes about as much disk as Qwen3Stats.weight_bytes.
 * Errors: NULL_POINTER, NOT_IMPLEMENTED (the backend cannot save its weights), IO_ERROR, OUT_OF_MEMORY.
 */
QWEN3_API int32_t qwen3SaveWeights(const struct Qwen3Model *model, const char *path, const char *cache_key);

/* ------------------------------------------------------------------ KV caches
 * A cache holds the keys and values of one token sequence. It is empty at first and grows block by block, drawn from
 * the model's pool; nothing is reserved up to dctx. */

/* Returns an empty cache of `model`, or NULL (NULL_POINTER, OUT_OF_MEMORY). Takes no KV memory yet. */
QWEN3_API struct KVCache *createKVCache(const struct Qwen3Model *model);

/* Returns a cache that holds the first seq_len tokens of `cache`, or NULL (NULL_POINTER; CACHE_MISMATCH: not a cache
 * of this model; BAD_PARAM: seq_len exceeds the cache's length; OUT_OF_MEMORY). Copy-on-write: both share blocks until
 * one of them writes, so it costs no KV memory now and takes time proportional to the number of blocks. */
QWEN3_API struct KVCache *duplicateKVCache(const struct Qwen3Model *model, const struct KVCache *cache,
                                           uint32_t seq_len);

/* Frees a cache; blocks nobody shares go back to the pool. NULL, or a handle that is not (or no longer) a cache of
 * this model, is a no-op. Cannot fail. */
QWEN3_API void dropKVCache(const struct Qwen3Model *model, struct KVCache *cache);

/* Writes the number of tokens held by `cache` to *length. Errors: NULL_POINTER, CACHE_MISMATCH. */
QWEN3_API int32_t qwen3KVCacheLength(const struct Qwen3Model *model, const struct KVCache *cache, uint32_t *length);

/*
 * Writes the first seq_len tokens of `cache` to `path`, for qwen3LoadKVCache of this or another process.
 *   tokens  [seq_len] the token ids that it holds; they are stored with the keys and values
 *   seq_len 1 to the cache's length
 * The folder must exist. The file appears complete or not at all (a temporary file beside it, flushed, then renamed),
 * replacing one that is there. Other calls on the model, also on `cache`, go on meanwhile (blocks are shared as by
 * duplicateKVCache until the file is written), but not destroyQwen3Model. It takes the size of the cache's blocks on
 * disk. The first call of this or the next two functions reads all weights once, for the fingerprint.
 * Errors: NULL_POINTER, CACHE_MISMATCH (not a cache of this model), BAD_PARAM (seq_len, a token id), NOT_IMPLEMENTED
 * (only the CPU backend can), IO_ERROR, OUT_OF_MEMORY. The cache is unchanged in any case.
 */
QWEN3_API int32_t qwen3SaveKVCache(const struct Qwen3Model *model, const struct KVCache *cache, const uint32_t *tokens,
                                   uint32_t seq_len, const char *path);

/*
 * Returns a new cache with what qwen3SaveKVCache wrote, and writes the token ids to tokens [capacity] and their number
 * to *seq_len. What is computed after it is bit for bit as if the tokens had been computed here. Every byte that is
 * used is covered by a checksum (against accidents, not against forgers). It takes KV memory of its own. Other calls on
 * the model go on while the file is read, but not destroyQwen3Model.
 * Returns NULL and writes nothing on an error: NULL_POINTER; IO_ERROR (the file is absent, truncated, changed, or no
 * such file); UNREADABLE (the system refuses to open or read it; it may be whole); CACHE_MISMATCH (saved with other
 * weights, weight or KV dtypes, sizes, rotary settings, ndev or version, or on a CPU whose kernels compute other bits;
 * the message names the first difference; a borrowed embedding is not compared); BAD_PARAM (capacity is too small);
 * CONTEXT_OVERFLOW (longer than dctx); OUT_OF_KV; NOT_IMPLEMENTED; OUT_OF_MEMORY.
 */
QWEN3_API struct KVCache *qwen3LoadKVCache(const struct Qwen3Model *model, const char *path, uint32_t *tokens,
                                           uint32_t capacity, uint32_t *seq_len);

/* Writes a number that is the same for models that can load each other's saved caches, and different for others but by
 * chance; for naming files. Errors: NULL_POINTER, NOT_IMPLEMENTED, OUT_OF_MEMORY. */
QWEN3_API int32_t qwen3KVCacheFingerprint(const struct Qwen3Model *model, uint64_t *fingerprint);

/* ------------------------------------------------------------------ running the model
 *
 * Common arguments of the four calls below:
 *   tokens    [ntok] token ids < dvoc: the new tokens of every request, one request after the other
 *   ntok      >= 1, equals the sum of req_lens
 *   req_lens  [nreq] new tokens of each request, >= 1: a whole prompt, a chunk of one, or 1 to decode
 *   nreq      >= 1
 *   req_pos   [nreq] position of each request's first new token; at most its cache's length. A smaller value rewinds:
 *             the cache's tokens from there on are replaced.
 *   kv_caches [nreq] distinct caches of this model; each grows to req_pos + req_len
 * Any mix of prefill and decode of any lengths may share a call.
 *
 * Status of all four: SUCCESS, or NULL_POINTER, BAD_PARAM (the message names argument, index, value and limit),
 * CONTEXT_OVERFLOW, CACHE_MISMATCH, OUT_OF_KV (the message says how many bytes were needed; the caches are as they
 * were), CANCELLED, OUT_OF_MEMORY, INTERNAL_ERROR or a device's status. Arguments are checked before any work. After
 * an error during the work each cache of the call still holds its tokens before req_pos, no output of inferBatch or
 * inferBatchEx has been written, and what forwardBatch and embedBatch write is unspecified.
 */

/*
 * Runs one step and chooses each request's next token.
 *   temperature [nreq] >= 0, 0 = greedy; topk [nreq] 0 = all, 1 = greedy; topp [nreq] in (0, 1]
 *   output      [nreq] the chosen tokens
 * Draws come from the model's own stream (Qwen3ModelOptions.seed); use inferBatchEx for a seed per request.
 */
QWEN3_API int32_t inferBatch(struct Qwen3Model *model, const uint32_t *tokens, uint32_t ntok, const uint32_t *req_lens,
                             uint32_t nreq, const uint32_t *req_pos, struct KVCache **kv_caches,
                             const float *temperature, const uint32_t *topk, const float *topp, uint32_t *output);

/*
 * As inferBatch, with all sampling settings: params [nreq] in, results [nreq] out.
 *
 * Drafts (speculative decoding): with params[r].ndraft = n, the last n tokens of request r are guesses of what will be
 * chosen. A token is chosen after the last token that is no guess. As long as it equals the next guess, that guess is
 * accepted, becomes part of the history, and a token is chosen after it. results[r].naccepted counts the accepted
 * guesses; token, logprob and the likeliest tokens are those of the last choice. Rejected guesses leave the cache,
 * which then holds req_pos + req_len - n + naccepted tokens. On the CPU backend the accepted guesses and the token are
 * exactly what calls with one token each would have chosen, sampled or greedy; on others they may differ by rounding.
 * A further error: ABI_MISMATCH, for a struct_size, before any work.
 */
QWEN3_API int32_t inferBatchEx(struct Qwen3Model *model, const uint32_t *tokens, uint32_t ntok,
                               const uint32_t *req_lens, uint32_t nreq, const uint32_t *req_pos,
                               struct KVCache **kv_caches, const Qwen3SamplingParams *params,
                               Qwen3SampleResult *results);

/* Runs one step and writes the logits of every token: logits is float32 [ntok, dvoc], whatever dt_logits is. */
QWEN3_API int32_t forwardBatch(struct Qwen3Model *model, const uint32_t *tokens, uint32_t ntok,
                               const uint32_t *req_lens, uint32_t nreq, const uint32_t *req_pos,
                               struct KVCache **kv_caches, float *logits);

/*
 * Runs one step and writes hidden states: what the head would be multiplied with, after the last norm. No logits are
 * computed, and the head is not read (a tied one is read as the embedding, by rows). Embedding models pool these rows
 * (Qwen3-Embedding: the last token's, then scaled to length 1), rerankers multiply them with two rows of the head.
 *   rows    [nrows] which tokens: indices < ntok in rising order; NULL: the last token of each request
 *   nrows   >= 1; nreq where rows is NULL
 *   output  float32 [nrows, d], in the order of rows, not normalised
 * On the CPU backend a row is bit for bit the same alone or in any batch, as logits are.
 */
QWEN3_API int32_t embedBatch(struct Qwen3Model *model, const uint32_t *tokens, uint32_t ntok, const uint32_t *req_lens,
                             uint32_t nreq, const uint32_t *req_pos, struct KVCache **kv_caches, const uint32_t *rows,
                             uint32_t nrows, float *output);

/* Asks the step that is running on `model` in another thread to stop; it returns QWEN3_STATUS_CANCELLED within about
 * a layer's time. Returns at once and does nothing when no step is running. NULL is a no-op. */
QWEN3_API void qwen3Cancel(struct Qwen3Model *model);

/* ------------------------------------------------------------------ information */

/* One line about this thread's latest failed call ("" if none). Valid until this thread's next failing call. */
QWEN3_API const char *qwen3LastError(void);

/* Status of this thread's latest failed call (SUCCESS if none): for functions that return NULL on failure. */
QWEN3_API int32_t qwen3LastStatus(void);

/* "QWEN3_STATUS_BAD_PARAM" and so on; "unknown status" for other numbers. Static storage, never NULL. */
QWEN3_API const char *qwen3StatusName(int32_t status);

/* The library's version, "MAJOR.MINOR.PATCH". Static storage. */
QWEN3_API const char *qwen3Version(void);

/* The library's QWEN3_ABI_VERSION. */
QWEN3_API uint32_t qwen3AbiVersion(void);

/* sizeof the struct of that Qwen3StructKind as the library was built, 0 for unknown kinds: lets a binding check its
 * own layout at load. */
QWEN3_API size_t qwen3StructSize(int32_t kind);

/* One line of key=value pairs separated by spaces: version, isa, infinicore ("none" when its module is not beside the
 * library, "not-loaded" before a model has asked for it, else the version it was compiled for, "0.1.0"), and with a
 * model also backend, device and threads (those of the first rank), on InfiniCore avoids (operators replaced) and
 * self_test (passed or skipped), step_tokens (most tokens computed at a time), and ndev if above 1. With model NULL the
 * text is static; else it lives as long as the model. */
QWEN3_API const char *qwen3BuildInfo(const struct Qwen3Model *model);

/* Fills *stats as far as its struct_size, which the caller sets. Errors: NULL_POINTER, ABI_MISMATCH. */
QWEN3_API int32_t qwen3GetStats(const struct Qwen3Model *model, Qwen3Stats *stats);

#ifdef __cplusplus
}
#endif

#endif /* INFINICORE_INFER_MODELS_QWEN3_H */
