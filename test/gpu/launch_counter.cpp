// Counts what a program hands to a device: preload it before a program that uses InfiniCore. Calls go on to the real
// libraries. Counters are read and cleared through gpu_count and gpu_reset (ctypes.CDLL(None) finds them).
#include <dlfcn.h>

#include <cstring>

#include "infiniop.h"
#include "infinirt.h"

#if __has_include("infiniop/ops/paged_caching.h")  // 0.1.0 has none of these
#include "infiniop/ops/add_rms_norm.h"
#include "infiniop/ops/embedding.h"
#include "infiniop/ops/paged_attention.h"
#include "infiniop/ops/paged_attention_prefill.h"
#include "infiniop/ops/paged_caching.h"
#include "infiniop/ops/silu_and_mul.h"
#define NEWER 1
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))
static constexpr int kCounters = 32;
static struct {
    const char *name;
    long count;
} counters[kCounters];

static void *next_function(const char *name, int *slot) {
    for (int i = 0; i < kCounters; ++i) {
        if (counters[i].name == nullptr || std::strcmp(counters[i].name, name) == 0) {
            counters[i].name = name;
            *slot = i;
            break;
        }
    }
    return dlsym(RTLD_NEXT, name);
}

// Calls since the last gpu_reset; "": of all operators. For one thread at a time.
EXPORT long gpu_count(const char *name) {
    long sum = 0;
    for (int i = 0; i < kCounters && counters[i].name != nullptr; ++i) {
        if (name[0] == '\0' ? std::strncmp(counters[i].name, "infiniop", 8) == 0
                            : std::strcmp(counters[i].name, name) == 0) {
            sum += counters[i].count;
        }
    }
    return sum;
}

EXPORT void gpu_reset(void) {
    for (int i = 0; i < kCounters; ++i) {
        counters[i].count = 0;
    }
}

#define COUNTED(function, parameters, arguments)                                                                       \
    EXPORT infiniStatus_t function parameters {                                                                        \
        static infiniStatus_t(*real) parameters;                                                                       \
        static int slot;                                                                                               \
        if (real == nullptr) {                                                                                         \
            *reinterpret_cast<void **>(&real) = next_function(#function, &slot);                                       \
        }                                                                                                              \
        ++counters[slot].count;                                                                                        \
        return real arguments;                                                                                         \
    }

COUNTED(infiniopGemm,
        (infiniopGemmDescriptor_t d, void *w, size_t n, void *c, const void *a, const void *b, float alpha, float beta,
         void *stream),
        (d, w, n, c, a, b, alpha, beta, stream))
COUNTED(infiniopAdd,
        (infiniopAddDescriptor_t d, void *w, size_t n, void *c, const void *a, const void *b, void *stream),
        (d, w, n, c, a, b, stream))
COUNTED(infiniopRMSNorm,
        (infiniopRMSNormDescriptor_t d, void *w, size_t n, void *y, const void *x, const void *g, void *stream),
        (d, w, n, y, x, g, stream))
COUNTED(infiniopRoPE,
        (infiniopRoPEDescriptor_t d, void *w, size_t n, void *y, const void *x, const void *p, const void *s,
         const void *c, void *stream),
        (d, w, n, y, x, p, s, c, stream))
COUNTED(infiniopCausalSoftmax,
        (infiniopCausalSoftmaxDescriptor_t d, void *w, size_t n, void *y, const void *x, void *stream),
        (d, w, n, y, x, stream))
COUNTED(infiniopSwiGLU,
        (infiniopSwiGLUDescriptor_t d, void *w, size_t n, void *c, const void *a, const void *b, void *stream),
        (d, w, n, c, a, b, stream))
COUNTED(infiniopRearrange, (infiniopRearrangeDescriptor_t d, void *y, const void *x, void *stream), (d, y, x, stream))
COUNTED(infinirtMemcpyAsync, (void *dst, const void *src, size_t n, infinirtMemcpyKind_t kind, infinirtStream_t stream),
        (dst, src, n, kind, stream))
COUNTED(infinirtStreamSynchronize, (infinirtStream_t stream), (stream))

// What the operators hand to CUDA themselves, hidden copies included. cuBLAS's launches go another way.
struct Dim3 {
    unsigned x, y, z;
};
#define COUNTED_CUDA(function, parameters, arguments)                                                                  \
    EXPORT int function parameters {                                                                                   \
        static int(*real) parameters;                                                                                  \
        static int slot;                                                                                               \
        if (real == nullptr) {                                                                                         \
            *reinterpret_cast<void **>(&real) = next_function(#function, &slot);                                       \
        }                                                                                                              \
        ++counters[slot].count;                                                                                        \
        return real arguments;                                                                                         \
    }
COUNTED_CUDA(cudaMemcpyAsync, (void *dst, const void *src, size_t n, int kind, void *stream),
             (dst, src, n, kind, stream))
COUNTED_CUDA(cudaLaunchKernel,
             (const void *kernel, Dim3 grid, Dim3 block, void **arguments, size_t shared, void *stream),
             (kernel, grid, block, arguments, shared, stream))
// Of newer versions; looked up when it is called.
COUNTED(infinirtGraphLuanch, (void *exec, infinirtStream_t stream), (exec, stream))
#ifdef NEWER
COUNTED(infiniopSiluAndMul, (infiniopSiluAndMulDescriptor_t d, void *w, size_t n, void *y, const void *x, void *stream),
        (d, w, n, y, x, stream))
COUNTED(infiniopAddRMSNorm,
        (infiniopAddRMSNormDescriptor_t d, void *w, size_t n, void *y, void *r, const void *a, const void *b,
         const void *g, void *stream),
        (d, w, n, y, r, a, b, g, stream))
COUNTED(infiniopEmbedding, (infiniopEmbeddingDescriptor_t d, void *y, const void *x, const void *t, void *stream),
        (d, y, x, t, stream))
COUNTED(infiniopPagedCaching,
        (infiniopPagedCachingDescriptor_t d, void *w, size_t n, void *kc, void *vc, const void *k, const void *v,
         const void *s, void *stream),
        (d, w, n, kc, vc, k, v, s, stream))
COUNTED(infiniopPagedAttention,
        (infiniopPagedAttentionDescriptor_t d, void *w, size_t n, void *o, const void *q, const void *k, const void *v,
         const void *t, const void *l, const void *a, void *stream),
        (d, w, n, o, q, k, v, t, l, a, stream))
COUNTED(infiniopPagedAttentionPrefill,
        (infiniopPagedAttentionPrefillDescriptor_t d, void *w, size_t n, void *o, const void *q, const void *k,
         const void *v, const void *t, const void *l, const void *c, const void *a, void *stream),
        (d, w, n, o, q, k, v, t, l, c, a, stream))
#endif
