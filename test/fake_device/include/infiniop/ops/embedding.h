/* See infinicore.h. */
#ifndef FAKE_INFINIOP_EMBEDDING_H
#define FAKE_INFINIOP_EMBEDDING_H

#include "infiniop/descriptors.h"

typedef struct InfiniopDescriptor *infiniopEmbeddingDescriptor_t;
__INFINI_C __export infiniStatus_t infiniopCreateEmbeddingDescriptor(infiniopHandle_t handle,
                                                                     infiniopEmbeddingDescriptor_t *desc_ptr,
                                                                     infiniopTensorDescriptor_t output,
                                                                     infiniopTensorDescriptor_t input,
                                                                     infiniopTensorDescriptor_t weight);
__INFINI_C __export infiniStatus_t infiniopEmbedding(infiniopEmbeddingDescriptor_t desc, void *output,
                                                     const void *input, const void *weight, void *stream);
__INFINI_C __export infiniStatus_t infiniopDestroyEmbeddingDescriptor(infiniopEmbeddingDescriptor_t desc);

#endif
