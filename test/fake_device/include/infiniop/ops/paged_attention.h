/* See infinicore.h. */
#ifndef FAKE_INFINIOP_PAGED_ATTENTION_H
#define FAKE_INFINIOP_PAGED_ATTENTION_H

#include "infiniop/descriptors.h"

typedef struct InfiniopDescriptor *infiniopPagedAttentionDescriptor_t;
__INFINI_C __export infiniStatus_t infiniopCreatePagedAttentionDescriptor(
    infiniopHandle_t handle, infiniopPagedAttentionDescriptor_t *desc_ptr, infiniopTensorDescriptor_t out,
    infiniopTensorDescriptor_t q, infiniopTensorDescriptor_t k_cache, infiniopTensorDescriptor_t v_cache,
    infiniopTensorDescriptor_t block_tables, infiniopTensorDescriptor_t seq_lens,
    infiniopTensorDescriptor_t alibi_slopes, float scale);
__INFINI_C __export infiniStatus_t infiniopGetPagedAttentionWorkspaceSize(infiniopPagedAttentionDescriptor_t desc,
                                                                          size_t *size);
__INFINI_C __export infiniStatus_t infiniopPagedAttention(infiniopPagedAttentionDescriptor_t desc, void *workspace,
                                                          size_t workspace_size, void *out, const void *q,
                                                          const void *k_cache, const void *v_cache,
                                                          const void *block_tables, const void *seq_lens,
                                                          const void *alibi_slopes, void *stream);
__INFINI_C __export infiniStatus_t infiniopDestroyPagedAttentionDescriptor(infiniopPagedAttentionDescriptor_t desc);

#endif
