/* See infinicore.h. */
#ifndef FAKE_INFINIOP_PAGED_ATTENTION_PREFILL_H
#define FAKE_INFINIOP_PAGED_ATTENTION_PREFILL_H

#include "infiniop/descriptors.h"

typedef struct InfiniopDescriptor *infiniopPagedAttentionPrefillDescriptor_t;
__INFINI_C __export infiniStatus_t infiniopCreatePagedAttentionPrefillDescriptor(
    infiniopHandle_t handle, infiniopPagedAttentionPrefillDescriptor_t *desc_ptr, infiniopTensorDescriptor_t out,
    infiniopTensorDescriptor_t q, infiniopTensorDescriptor_t k_cache, infiniopTensorDescriptor_t v_cache,
    infiniopTensorDescriptor_t block_tables, infiniopTensorDescriptor_t seq_lens,
    infiniopTensorDescriptor_t cum_seq_lens_q, infiniopTensorDescriptor_t alibi_slopes, float scale);
__INFINI_C __export infiniStatus_t
infiniopGetPagedAttentionPrefillWorkspaceSize(infiniopPagedAttentionPrefillDescriptor_t desc, size_t *size);
__INFINI_C __export infiniStatus_t infiniopPagedAttentionPrefill(infiniopPagedAttentionPrefillDescriptor_t desc,
                                                                 void *workspace, size_t workspace_size, void *out,
                                                                 const void *q, const void *k_cache,
                                                                 const void *v_cache, const void *block_tables,
                                                                 const void *seq_lens, const void *cum_seq_lens_q,
                                                                 const void *alibi_slopes, void *stream);
__INFINI_C __export infiniStatus_t
infiniopDestroyPagedAttentionPrefillDescriptor(infiniopPagedAttentionPrefillDescriptor_t desc);

#endif
