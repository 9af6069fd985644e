/* See infinicore.h. InfiniCore's own header includes one file per operator; here the operators of 0.1.0 are together.
 */
#ifndef FAKE_INFINIOP_H
#define FAKE_INFINIOP_H

#include "infiniop/descriptors.h"
#include "infiniop/ops/add_rms_norm.h"
#include "infiniop/ops/embedding.h"
#include "infiniop/ops/paged_attention.h"
#include "infiniop/ops/paged_attention_prefill.h"
#include "infiniop/ops/paged_caching.h"
#include "infiniop/ops/silu_and_mul.h"

typedef struct InfiniopDescriptor *infiniopGemmDescriptor_t;
__INFINI_C __export infiniStatus_t infiniopCreateGemmDescriptor(infiniopHandle_t handle,
                                                                infiniopGemmDescriptor_t *desc_ptr,
                                                                infiniopTensorDescriptor_t c,
                                                                infiniopTensorDescriptor_t a,
                                                                infiniopTensorDescriptor_t b);
__INFINI_C __export infiniStatus_t infiniopGetGemmWorkspaceSize(infiniopGemmDescriptor_t desc, size_t *size);
__INFINI_C __export infiniStatus_t infiniopGemm(infiniopGemmDescriptor_t desc, void *workspace, size_t workspace_size,
                                                void *c, const void *a, const void *b, float alpha, float beta,
                                                void *stream);
__INFINI_C __export infiniStatus_t infiniopDestroyGemmDescriptor(infiniopGemmDescriptor_t desc);

typedef struct InfiniopDescriptor *infiniopAddDescriptor_t;
__INFINI_C __export infiniStatus_t infiniopCreateAddDescriptor(infiniopHandle_t handle,
                                                               infiniopAddDescriptor_t *desc_ptr,
                                                               infiniopTensorDescriptor_t c,
                                                               infiniopTensorDescriptor_t a,
                                                               infiniopTensorDescriptor_t b);
__INFINI_C __export infiniStatus_t infiniopGetAddWorkspaceSize(infiniopAddDescriptor_t desc, size_t *size);
__INFINI_C __export infiniStatus_t infiniopAdd(infiniopAddDescriptor_t desc, void *workspace, size_t workspace_size,
                                               void *c, const void *a, const void *b, void *stream);
__INFINI_C __export infiniStatus_t infiniopDestroyAddDescriptor(infiniopAddDescriptor_t desc);

typedef struct InfiniopDescriptor *infiniopRMSNormDescriptor_t;
__INFINI_C __export infiniStatus_t infiniopCreateRMSNormDescriptor(infiniopHandle_t handle,
                                                                   infiniopRMSNormDescriptor_t *desc_ptr,
                                                                   infiniopTensorDescriptor_t y,
                                                                   infiniopTensorDescriptor_t x,
                                                                   infiniopTensorDescriptor_t w, float epsilon);
__INFINI_C __export infiniStatus_t infiniopGetRMSNormWorkspaceSize(infiniopRMSNormDescriptor_t desc, size_t *size);
__INFINI_C __export infiniStatus_t infiniopRMSNorm(infiniopRMSNormDescriptor_t desc, void *workspace,
                                                   size_t workspace_size, void *y, const void *x, const void *w,
                                                   void *stream);
__INFINI_C __export infiniStatus_t infiniopDestroyRMSNormDescriptor(infiniopRMSNormDescriptor_t desc);

typedef enum {
    INFINIOP_ROPE_ALGO_GPT_J = 0,
    INFINIOP_ROPE_ALGO_GPT_NEOX = 1,
    INFINIOP_ROPE_ALGO_COUNT = 2
} infiniopRoPEAlgo_t;
typedef struct InfiniopDescriptor *infiniopRoPEDescriptor_t;
__INFINI_C __export infiniStatus_t infiniopCreateRoPEDescriptor(
    infiniopHandle_t handle, infiniopRoPEDescriptor_t *desc_ptr, infiniopTensorDescriptor_t y,
    infiniopTensorDescriptor_t x, infiniopTensorDescriptor_t pos_ids, infiniopTensorDescriptor_t sin_table,
    infiniopTensorDescriptor_t cos_table, infiniopRoPEAlgo_t algo);
__INFINI_C __export infiniStatus_t infiniopGetRoPEWorkspaceSize(infiniopRoPEDescriptor_t desc, size_t *size);
__INFINI_C __export infiniStatus_t infiniopRoPE(infiniopRoPEDescriptor_t desc, void *workspace, size_t workspace_size,
                                                void *y, const void *x, const void *pos_ids, const void *sin_table,
                                                const void *cos_table, void *stream);
__INFINI_C __export infiniStatus_t infiniopDestroyRoPEDescriptor(infiniopRoPEDescriptor_t desc);

typedef struct InfiniopDescriptor *infiniopCausalSoftmaxDescriptor_t;
__INFINI_C __export infiniStatus_t infiniopCreateCausalSoftmaxDescriptor(infiniopHandle_t handle,
                                                                         infiniopCausalSoftmaxDescriptor_t *desc_ptr,
                                                                         infiniopTensorDescriptor_t y,
                                                                         infiniopTensorDescriptor_t x);
__INFINI_C __export infiniStatus_t infiniopGetCausalSoftmaxWorkspaceSize(infiniopCausalSoftmaxDescriptor_t desc,
                                                                         size_t *size);
__INFINI_C __export infiniStatus_t infiniopCausalSoftmax(infiniopCausalSoftmaxDescriptor_t desc, void *workspace,
                                                         size_t workspace_size, void *y, const void *x, void *stream);
__INFINI_C __export infiniStatus_t infiniopDestroyCausalSoftmaxDescriptor(infiniopCausalSoftmaxDescriptor_t desc);

typedef struct InfiniopDescriptor *infiniopSwiGLUDescriptor_t;
__INFINI_C __export infiniStatus_t infiniopCreateSwiGLUDescriptor(infiniopHandle_t handle,
                                                                  infiniopSwiGLUDescriptor_t *desc_ptr,
                                                                  infiniopTensorDescriptor_t c,
                                                                  infiniopTensorDescriptor_t a,
                                                                  infiniopTensorDescriptor_t b);
__INFINI_C __export infiniStatus_t infiniopGetSwiGLUWorkspaceSize(infiniopSwiGLUDescriptor_t desc, size_t *size);
__INFINI_C __export infiniStatus_t infiniopSwiGLU(infiniopSwiGLUDescriptor_t desc, void *workspace,
                                                  size_t workspace_size, void *c, const void *a, const void *b,
                                                  void *stream);
__INFINI_C __export infiniStatus_t infiniopDestroySwiGLUDescriptor(infiniopSwiGLUDescriptor_t desc);

typedef struct InfiniopDescriptor *infiniopRearrangeDescriptor_t;
__INFINI_C __export infiniStatus_t infiniopCreateRearrangeDescriptor(infiniopHandle_t handle,
                                                                     infiniopRearrangeDescriptor_t *desc_ptr,
                                                                     infiniopTensorDescriptor_t dst,
                                                                     infiniopTensorDescriptor_t src);
__INFINI_C __export infiniStatus_t infiniopRearrange(infiniopRearrangeDescriptor_t desc, void *dst, const void *src,
                                                     void *stream);
__INFINI_C __export infiniStatus_t infiniopDestroyRearrangeDescriptor(infiniopRearrangeDescriptor_t desc);

#endif
