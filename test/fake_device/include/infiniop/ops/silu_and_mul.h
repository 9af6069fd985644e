/* See infinicore.h. */
#ifndef FAKE_INFINIOP_SILU_AND_MUL_H
#define FAKE_INFINIOP_SILU_AND_MUL_H

#include "infiniop/descriptors.h"

typedef struct InfiniopDescriptor *infiniopSiluAndMulDescriptor_t;
__INFINI_C __export infiniStatus_t infiniopCreateSiluAndMulDescriptor(infiniopHandle_t handle,
                                                                      infiniopSiluAndMulDescriptor_t *desc_ptr,
                                                                      infiniopTensorDescriptor_t output,
                                                                      infiniopTensorDescriptor_t input);
__INFINI_C __export infiniStatus_t infiniopGetSiluAndMulWorkspaceSize(infiniopSiluAndMulDescriptor_t desc,
                                                                      size_t *size);
__INFINI_C __export infiniStatus_t infiniopSiluAndMul(infiniopSiluAndMulDescriptor_t desc, void *workspace,
                                                      size_t workspace_size, void *output, const void *input,
                                                      void *stream);
__INFINI_C __export infiniStatus_t infiniopDestroySiluAndMulDescriptor(infiniopSiluAndMulDescriptor_t desc);

#endif
