// InfiniCore's functions, as pointers that library.cpp sets. They have the names of the functions, so that code in
// this namespace calls them as if it were linked to InfiniCore. Nothing is: InfiniCore is found when a model asks for
// it, and a missing or broken one is an error of that model alone.
#pragma once

#include "infiniccl.h"
#include "infinirt.h"
#include "ops/infinicore/device/api.h"

// X(library, function)
#define Q3_INFINICORE_FUNCTIONS(X)                                                                                     \
    X(infinirt, infinirtInit)                                                                                          \
    X(infinirt, infinirtGetDeviceCount)                                                                                \
    X(infinirt, infinirtGetDevice)                                                                                     \
    X(infinirt, infinirtSetDevice)                                                                                     \
    X(infinirt, infinirtStreamCreate)                                                                                  \
    X(infinirt, infinirtStreamDestroy)                                                                                 \
    X(infinirt, infinirtStreamSynchronize)                                                                             \
    X(infinirt, infinirtMalloc)                                                                                        \
    X(infinirt, infinirtMallocHost)                                                                                    \
    X(infinirt, infinirtFree)                                                                                          \
    X(infinirt, infinirtFreeHost)                                                                                      \
    X(infinirt, infinirtMemcpyAsync)                                                                                   \
    X(infiniop, infiniopCreateHandle)                                                                                  \
    X(infiniop, infiniopDestroyHandle)                                                                                 \
    X(infiniop, infiniopCreateTensorDescriptor)                                                                        \
    X(infiniop, infiniopDestroyTensorDescriptor)                                                                       \
    X(infiniop, infiniopCreateGemmDescriptor)                                                                          \
    X(infiniop, infiniopGetGemmWorkspaceSize)                                                                          \
    X(infiniop, infiniopGemm)                                                                                          \
    X(infiniop, infiniopDestroyGemmDescriptor)                                                                         \
    X(infiniop, infiniopCreateAddDescriptor)                                                                           \
    X(infiniop, infiniopGetAddWorkspaceSize)                                                                           \
    X(infiniop, infiniopAdd)                                                                                           \
    X(infiniop, infiniopDestroyAddDescriptor)                                                                          \
    X(infiniop, infiniopCreateRMSNormDescriptor)                                                                       \
    X(infiniop, infiniopGetRMSNormWorkspaceSize)                                                                       \
    X(infiniop, infiniopRMSNorm)                                                                                       \
    X(infiniop, infiniopDestroyRMSNormDescriptor)                                                                      \
    X(infiniop, infiniopCreateRoPEDescriptor)                                                                          \
    X(infiniop, infiniopGetRoPEWorkspaceSize)                                                                          \
    X(infiniop, infiniopRoPE)                                                                                          \
    X(infiniop, infiniopDestroyRoPEDescriptor)                                                                         \
    X(infiniop, infiniopCreateCausalSoftmaxDescriptor)                                                                 \
    X(infiniop, infiniopGetCausalSoftmaxWorkspaceSize)                                                                 \
    X(infiniop, infiniopCausalSoftmax)                                                                                 \
    X(infiniop, infiniopDestroyCausalSoftmaxDescriptor)                                                                \
    X(infiniop, infiniopCreateSwiGLUDescriptor)                                                                        \
    X(infiniop, infiniopGetSwiGLUWorkspaceSize)                                                                        \
    X(infiniop, infiniopSwiGLU)                                                                                        \
    X(infiniop, infiniopDestroySwiGLUDescriptor)                                                                       \
    X(infiniop, infiniopCreateRearrangeDescriptor)                                                                     \
    X(infiniop, infiniopRearrange)                                                                                     \
    X(infiniop, infiniopDestroyRearrangeDescriptor)                                                                    \
    X(infiniccl, infinicclCommInitAll)                                                                                 \
    X(infiniccl, infinicclCommDestroy)                                                                                 \
    X(infiniccl, infinicclAllReduce)

#if Q3_HAS_ADD_RMS_NORM
#define Q3_ADD_RMS_NORM_FUNCTIONS(X)                                                                                   \
    X(infiniop, infiniopCreateAddRMSNormDescriptor)                                                                    \
    X(infiniop, infiniopGetAddRMSNormWorkspaceSize)                                                                    \
    X(infiniop, infiniopAddRMSNorm)                                                                                    \
    X(infiniop, infiniopDestroyAddRMSNormDescriptor)
#else
#define Q3_ADD_RMS_NORM_FUNCTIONS(X)
#endif

#if Q3_HAS_EMBEDDING
#define Q3_EMBEDDING_FUNCTIONS(X)                                                                                      \
    X(infiniop, infiniopCreateEmbeddingDescriptor)                                                                     \
    X(infiniop, infiniopEmbedding)                                                                                     \
    X(infiniop, infiniopDestroyEmbeddingDescriptor)
#else
#define Q3_EMBEDDING_FUNCTIONS(X)
#endif

#if Q3_HAS_SILU_AND_MUL
#define Q3_SILU_AND_MUL_FUNCTIONS(X)                                                                                   \
    X(infiniop, infiniopCreateSiluAndMulDescriptor)                                                                    \
    X(infiniop, infiniopGetSiluAndMulWorkspaceSize)                                                                    \
    X(infiniop, infiniopSiluAndMul)                                                                                    \
    X(infiniop, infiniopDestroySiluAndMulDescriptor)
#else
#define Q3_SILU_AND_MUL_FUNCTIONS(X)
#endif

#if Q3_HAS_PAGED_ATTENTION
#define Q3_PAGED_ATTENTION_FUNCTIONS(X)                                                                                \
    X(infiniop, infiniopCreatePagedCachingDescriptor)                                                                  \
    X(infiniop, infiniopGetPagedCachingWorkspaceSize)                                                                  \
    X(infiniop, infiniopPagedCaching)                                                                                  \
    X(infiniop, infiniopDestroyPagedCachingDescriptor)                                                                 \
    X(infiniop, infiniopCreatePagedAttentionDescriptor)                                                                \
    X(infiniop, infiniopGetPagedAttentionWorkspaceSize)                                                                \
    X(infiniop, infiniopPagedAttention)                                                                                \
    X(infiniop, infiniopDestroyPagedAttentionDescriptor)                                                               \
    X(infiniop, infiniopCreatePagedAttentionPrefillDescriptor)                                                         \
    X(infiniop, infiniopGetPagedAttentionPrefillWorkspaceSize)                                                         \
    X(infiniop, infiniopPagedAttentionPrefill)                                                                         \
    X(infiniop, infiniopDestroyPagedAttentionPrefillDescriptor)
#else
#define Q3_PAGED_ATTENTION_FUNCTIONS(X)
#endif

// Null when the installed InfiniCore is older than the headers of this build.
#define Q3_NEWER_FUNCTIONS(X)                                                                                          \
    Q3_ADD_RMS_NORM_FUNCTIONS(X)                                                                                       \
    Q3_EMBEDDING_FUNCTIONS(X)                                                                                          \
    Q3_SILU_AND_MUL_FUNCTIONS(X)                                                                                       \
    Q3_PAGED_ATTENTION_FUNCTIONS(X)

// Graphs, which 0.1.0's infinirt.h does not declare: our own declarations of main's functions, all of whose types are
// pointers and integers. X(function, parameters). The spelling of the last is InfiniCore's.
#define Q3_GRAPH_FUNCTIONS(X)                                                                                          \
    X(infinirtStreamBeginCapture, (infinirtStream_t, int mode))                                                        \
    X(infinirtStreamEndCapture, (infinirtStream_t, void **graph))                                                      \
    X(infinirtGraphInstantiate, (void **exec, void *graph, void **node, char *log, size_t log_size))                   \
    X(infinirtGraphDestroy, (void *graph))                                                                             \
    X(infinirtGraphExecDestroy, (void *exec))                                                                          \
    X(infinirtGraphLuanch, (void *exec, infinirtStream_t))

namespace q3::infinicore {

// NOLINTNEXTLINE(bugprone-macro-parentheses): a name that is declared takes none
#define Q3_DECLARE(library, function) extern decltype(&::function) function;
Q3_INFINICORE_FUNCTIONS(Q3_DECLARE)
Q3_NEWER_FUNCTIONS(Q3_DECLARE)
#undef Q3_DECLARE
// Null where the installed InfiniCore has no graphs.
// NOLINTNEXTLINE(bugprone-macro-parentheses): neither a name nor a list of parameters takes any
#define Q3_DECLARE(function, parameters) extern infiniStatus_t(*function) parameters;
Q3_GRAPH_FUNCTIONS(Q3_DECLARE)
#undef Q3_DECLARE

// Read and set how many threads the calling thread's loops get in the OpenMP that InfiniCore's CPU operators use. When
// InfiniCore was built without OpenMP, the number is 1 and setting it has no effect.
int maxThreads();
void setThreads(int threads);

}  // namespace q3::infinicore
