/* See infinicore.h. */
#ifndef FAKE_INFINIOP_DESCRIPTORS_H
#define FAKE_INFINIOP_DESCRIPTORS_H

#include "infinicore.h"

typedef struct InfiniopHandle *infiniopHandle_t;
__INFINI_C __export infiniStatus_t infiniopCreateHandle(infiniopHandle_t *handle_ptr);
__INFINI_C __export infiniStatus_t infiniopDestroyHandle(infiniopHandle_t handle);

typedef struct InfiniopTensorDescriptor *infiniopTensorDescriptor_t;
__INFINI_C __export infiniStatus_t infiniopCreateTensorDescriptor(infiniopTensorDescriptor_t *desc_ptr, size_t ndim,
                                                                  const size_t *shape, const ptrdiff_t *strides,
                                                                  infiniDtype_t dtype);
__INFINI_C __export infiniStatus_t infiniopDestroyTensorDescriptor(infiniopTensorDescriptor_t desc);

struct InfiniopDescriptor;
__INFINI_C __export infiniStatus_t infiniopGetDescriptorDeviceType(const struct InfiniopDescriptor *desc_ptr,
                                                                   infiniDevice_t *device_type);
__INFINI_C __export infiniStatus_t infiniopGetDescriptorDeviceId(const struct InfiniopDescriptor *desc_ptr,
                                                                 int *device_id);

#endif
