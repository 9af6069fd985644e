/* See infinicore.h. */
#ifndef FAKE_INFINIOP_PAGED_CACHING_H
#define FAKE_INFINIOP_PAGED_CACHING_H

#include "infiniop/descriptors.h"

typedef struct InfiniopDescriptor *infiniopPagedCachingDescriptor_t;
__INFINI_C __export infiniStatus_t infiniopCreatePagedCachingDescriptor(
    infiniopHandle_t handle, infiniopPagedCachingDescriptor_t *desc_ptr, infiniopTensorDescriptor_t k_cache,
    infiniopTensorDescriptor_t v_cache, infiniopTensorDescriptor_t k, infiniopTensorDescriptor_t v,
    infiniopTensorDescriptor_t slot_mapping);
__INFINI_C __export infiniStatus_t infiniopGetPagedCachingWorkspaceSize(infiniopPagedCachingDescriptor_t desc,
                                                                        size_t *size);
__INFINI_C __export infiniStatus_t infiniopPagedCaching(infiniopPagedCachingDescriptor_t desc, void *workspace,
                                                        size_t workspace_size, void *k_cache, void *v_cache,
                                                        const void *k, const void *v, const void *slot_mapping,
                                                        void *stream);
__INFINI_C __export infiniStatus_t infiniopDestroyPagedCachingDescriptor(infiniopPagedCachingDescriptor_t desc);

#endif
