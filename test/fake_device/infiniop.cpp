// The operators of InfiniCore that the library uses, on the fake accelerator: float32 inside, arguments checked as
// strictly as the strictest device does. Those that 0.1.0 lacks are there when the headers declare them.
#include "infiniop.h"

#include <memory>

#include "checks.h"
#include "core.h"
#include "operators.h"
#if FAKE_NEWER
#include "newer.h"
#endif

namespace fake {
namespace {

// ------------------------------------------------------------------ descriptors

infiniStatus_t create(const char *function, Op op, infiniopHandle_t handle, InfiniopDescriptor **result,
                      std::initializer_list<infiniopTensorDescriptor_t> tensors, float number = 0, int algorithm = 0) {
    if (!enter(function) || injected("descriptor")) {
        return INFINI_STATUS_INTERNAL_ERROR;
    }
    if (!alive(Kind::Handle, handle)) {
        return violation("%s: no such handle", function);
    }
    if (currentDevice() != handle->device) {
        return violation("%s: handle of device %d used while device %d is current", function, handle->device,
                         currentDevice());
    }
    std::vector<Layout> layouts;
    size_t elements = 1;
    for (const infiniopTensorDescriptor_t tensor : tensors) {
        if (!alive(Kind::Tensor, tensor)) {
            return violation("%s: no such tensor descriptor", function);
        }
        layouts.push_back(*tensor);
    }
    for (size_t n : layouts[0].shape) {
        elements *= n;
    }
    infiniStatus_t status = checkTensors(op, layouts, algorithm);
#if FAKE_NEWER
    if (op >= Op::AddRMSNorm && status == INFINI_STATUS_BAD_PARAM) {
        status = checkNewer(op, layouts);
    }
#endif
    if (status != INFINI_STATUS_SUCCESS) {
        return status;
    }
    if (elements == 0) {
        return INFINI_STATUS_BAD_TENSOR_SHAPE;
    }
    if (overlapsItself(layouts[0])) {
        return INFINI_STATUS_BAD_TENSOR_STRIDES;
    }
    auto descriptor = std::make_unique<InfiniopDescriptor>();
    descriptor->op = op;
    descriptor->handle = handle;
    descriptor->device = handle->device;
    descriptor->tensors = std::move(layouts);
    descriptor->number = number;
    descriptor->algorithm = algorithm;
    descriptor->workspace = op == Op::Rearrange || op == Op::Embedding ? 0
                            : op == Op::PagedCaching                   ? 64  // its output is the whole cache
                                                                       : 64 + elements / 8;  // grows: growth is tested
    ++handle->descriptors;
    born(Kind::Descriptor, descriptor.get());
    *result = descriptor.release();
    return INFINI_STATUS_SUCCESS;
}

infiniStatus_t workspaceSize(const char *function, const InfiniopDescriptor *descriptor, size_t *size) {
    if (!enter(function) || injected("workspace")) {
        return INFINI_STATUS_INTERNAL_ERROR;
    }
    if (!alive(Kind::Descriptor, descriptor)) {
        return violation("%s: no such descriptor", function);
    }
    *size = descriptor->workspace;
    return INFINI_STATUS_SUCCESS;
}

infiniStatus_t destroy(const char *function, InfiniopDescriptor *descriptor) {
    const bool ok = enter(function);
    if (!alive(Kind::Descriptor, descriptor)) {
        return violation("%s: no such descriptor", function);
    }
    if (currentDevice() != descriptor->device) {
        violation("%s: descriptor of device %d destroyed while device %d is current", function, descriptor->device,
                  currentDevice());
    }
    checkUnused(descriptor, function);
    if (alive(Kind::Handle, descriptor->handle)) {
        --descriptor->handle->descriptors;
    } else {
        violation("%s: the descriptor's handle is gone", function);
    }
    died(Kind::Descriptor, descriptor);
    delete descriptor;
    return ok ? INFINI_STATUS_SUCCESS : INFINI_STATUS_INTERNAL_ERROR;
}

// ------------------------------------------------------------------ launches

infiniStatus_t compute(const InfiniopDescriptor &d, const std::vector<char *> &data, float alpha, float beta) {
    std::vector<View> v;
    for (size_t i = 0; i < data.size(); ++i) {
        v.push_back({d.tensors[i], data[i]});
    }
    infiniStatus_t status = INFINI_STATUS_SUCCESS;
    switch (d.op) {
    case Op::Gemm:
        gemm(v[0], v[1], v[2], alpha, beta, quirk("gemm_reads_c") != 0);
        break;
    case Op::Add:
        forEach(v, [&](const auto &at) { v[0].set(at[0], v[1].get(at[1]) + v[2].get(at[2])); });
        break;
    case Op::RMSNorm:
        rmsNorm(v[0], v[1], v[2], d.number);
        break;
    case Op::RoPE:
        status = rope(v[0], v[1], v[2], v[3], v[4], d.algorithm);
        break;
    case Op::CausalSoftmax:
        causalSoftmax(v[0], v[1], size_t(quirk("softmax_block")));
        break;
    case Op::SwiGLU:  // out, up, gate
        forEach(v, [&](const auto &at) {
            const float gate = v[2].get(at[2]);
            v[0].set(at[0], v[1].get(at[1]) * gate / (1.0f + std::exp(-gate)));
        });
        break;
    case Op::Rearrange: {
        const size_t size = elementSize(d.tensors[0].dtype);
        if (quirk("rearrange_vectors") != 0) {
            const size_t bytes = vectorBytes(v[0], v[1]);
            bool aligned = true;
            forEach(v, [&](const auto &at) {
                const auto place = [&](size_t i) { return uintptr_t(v[i].data) + uintptr_t(at[i]) * size; };
                // Vectors start where the destination has a whole number of them.
                aligned = aligned && (place(0) % bytes != 0 || place(1) % bytes == 0);
            });
            if (!aligned || uintptr_t(v[0].data) % bytes != 0) {
                return violation("infiniopRearrange: vectors of %zu bytes at addresses that are no multiples", bytes);
            }
        }
        forEach(v, [&](const auto &at) {
            std::memcpy(v[0].data + at[0] * ptrdiff_t(size), v[1].data + at[1] * ptrdiff_t(size), size);
        });
        break;
    }
    default:
#if FAKE_NEWER
        status = computeNewer(d.op, v, d.number);
        break;
#else
        return INFINI_STATUS_BAD_PARAM;
#endif
    }
    if (quirk((std::string("wrong_") + kOps[int(d.op)]).c_str()) != 0) {
        forEach({v[0]}, [&](const auto &at) { v[0].set(at[0], v[0].get(at[0]) * 1.5f + 0.25f); });
    }
    return status;
}

infiniStatus_t launch(const char *function, Op op, const InfiniopDescriptor *descriptor, const void *workspace,
                      size_t workspace_size, std::initializer_list<const void *> pointers, void *stream,
                      float alpha = 1, float beta = 0) {
    if (!enter(function) || injected("launch")) {
        return INFINI_STATUS_INTERNAL_ERROR;
    }
    // Without code for the device: products are cuBLAS's, rearrange alone looks at what its launch returned.
    const bool no_code = op != Op::Gemm && quirk("other_architecture") != 0;
    if (no_code && op == Op::Rearrange) {
        return INFINI_STATUS_INTERNAL_ERROR;
    }
    if (!alive(Kind::Descriptor, descriptor) || descriptor->op != op) {
        return violation("%s: no such descriptor", function);
    }
    const int device = descriptor->device;
    if (currentDevice() != device) {
        return violation("%s: descriptor of device %d used while device %d is current", function, device,
                         currentDevice());
    }
    // They send the places and strides of their tensors to the device first, from memory of their own.
    if (op == Op::Add || op == Op::SwiGLU) {
        count("copies.hidden", 2);
        if (capturing(stream)) {
            forbidCapture("an elementwise operator, whose arguments a graph would read again from freed memory,");
            return INFINI_STATUS_INTERNAL_ERROR;
        }
    }
    Task task;
    task.name = function;
    task.descriptor = descriptor;
    char *scratch = nullptr;
    if (descriptor->workspace > 0) {
        if (workspace_size < descriptor->workspace) {
            return INFINI_STATUS_INSUFFICIENT_WORKSPACE;
        }
        scratch = backing(device, workspace, descriptor->workspace, "workspace");
        if (scratch == nullptr) {
            return INFINI_STATUS_INTERNAL_ERROR;
        }
        task.uses.push_back({uintptr_t(workspace), uintptr_t(workspace) + descriptor->workspace});
    }
    std::vector<char *> data;
    std::vector<Range> ranges;
    for (const void *pointer : pointers) {
        const Layout &layout = descriptor->tensors[data.size()];
        const auto size = ptrdiff_t(elementSize(layout.dtype));
        ptrdiff_t low, high;
        extent(layout, low, high);
        const char *const begin = static_cast<const char *>(pointer) + low * size;
        const auto bytes = size_t((high - low + 1) * size);
        const std::string what = std::string(function) + ", tensor " + std::to_string(data.size());
        char *const memory = backing(device, begin, bytes, what.c_str());
        if (memory == nullptr) {
            return INFINI_STATUS_INTERNAL_ERROR;
        }
        ranges.push_back({uintptr_t(begin), uintptr_t(begin) + bytes});
        size_t elements = 1;
        for (size_t dim = 0; dim < layout.shape.size(); ++dim) {
            elements *= layout.strides[dim] == 0 ? 1 : layout.shape[dim];
        }
        count("bytes.launched", int64_t(elements * size_t(size)));
        data.push_back(memory - low * size);
    }
    // Inputs may be the output itself, element by element, but not partly overlap it.
    const bool in_place = op != Op::Gemm && op != Op::Rearrange;
    for (size_t i = 1; i < ranges.size(); ++i) {
        const bool overlap = ranges[0].begin < ranges[i].end && ranges[i].begin < ranges[0].end;
        const bool same = data[0] == data[i] && descriptor->tensors[0].strides == descriptor->tensors[i].strides;
        const bool interleaved = op == Op::PagedCaching && i == 1;  // keys and values of a block follow each other
        if (overlap && !(in_place && same) && !interleaved) {
            return violation("%s: output and input %zu overlap", function, i);
        }
    }
    task.uses.insert(task.uses.end(), ranges.begin(), ranges.end());
    task.run = [=] {
        if (scratch != nullptr) {
            std::memset(scratch, 0xff, descriptor->workspace);
        }
        return no_code ? INFINI_STATUS_SUCCESS : compute(*descriptor, data, alpha, beta);
    };
    return enqueue(stream, std::move(task), function);
}

}  // namespace
}  // namespace fake

// ------------------------------------------------------------------ C API

using fake::Op;

infiniStatus_t infiniopCreateHandle(infiniopHandle_t *handle_ptr) {
    if (!fake::enter(__func__) || fake::injected("handle")) {
        return INFINI_STATUS_INTERNAL_ERROR;
    }
    const int device = fake::currentDevice();
    if (device < 0) {
        return fake::violation("%s: the calling thread has set no device", __func__);
    }
    auto *const handle = new InfiniopHandle;
    handle->device = device;
    fake::born(fake::Kind::Handle, handle);
    *handle_ptr = handle;
    return INFINI_STATUS_SUCCESS;
}

infiniStatus_t infiniopDestroyHandle(infiniopHandle_t handle) {
    const bool ok = fake::enter(__func__);
    if (!fake::alive(fake::Kind::Handle, handle)) {
        return fake::violation("%s: no such handle", __func__);
    }
    if (handle->descriptors != 0) {
        fake::violation("%s: %d descriptors outlive the handle", __func__, handle->descriptors.load());
    }
    fake::died(fake::Kind::Handle, handle);
    delete handle;
    return ok ? INFINI_STATUS_SUCCESS : INFINI_STATUS_INTERNAL_ERROR;
}

infiniStatus_t infiniopCreateTensorDescriptor(infiniopTensorDescriptor_t *desc_ptr, size_t ndim, const size_t *shape,
                                              const ptrdiff_t *strides, infiniDtype_t dtype) {
    if (!fake::enter(__func__) || fake::injected("tensor")) {
        return INFINI_STATUS_INTERNAL_ERROR;
    }
    if (fake::elementSize(dtype) == 0) {
        return INFINI_STATUS_BAD_TENSOR_DTYPE;
    }
    auto *const tensor = new InfiniopTensorDescriptor{dtype, {shape, shape + ndim}, {}};
    if (strides != nullptr) {
        tensor->strides.assign(strides, strides + ndim);
    } else {
        ptrdiff_t stride = 1;
        tensor->strides.resize(ndim);
        for (size_t dim = ndim; dim-- > 0;) {
            tensor->strides[dim] = stride;
            stride *= ptrdiff_t(shape[dim]);
        }
    }
    fake::born(fake::Kind::Tensor, tensor);
    *desc_ptr = tensor;
    return INFINI_STATUS_SUCCESS;
}

infiniStatus_t infiniopDestroyTensorDescriptor(infiniopTensorDescriptor_t desc) {
    const bool ok = fake::enter(__func__);
    if (!fake::alive(fake::Kind::Tensor, desc)) {
        return fake::violation("%s: no such tensor descriptor", __func__);
    }
    fake::died(fake::Kind::Tensor, desc);
    delete desc;
    return ok ? INFINI_STATUS_SUCCESS : INFINI_STATUS_INTERNAL_ERROR;
}

infiniStatus_t infiniopGetDescriptorDeviceType(const InfiniopDescriptor *desc, infiniDevice_t *device_type) {
    if (!fake::alive(fake::Kind::Descriptor, desc)) {
        return fake::violation("%s: no such descriptor", __func__);
    }
    *device_type = fake::deviceType();
    return INFINI_STATUS_SUCCESS;
}

infiniStatus_t infiniopGetDescriptorDeviceId(const InfiniopDescriptor *desc, int *device_id) {
    if (!fake::alive(fake::Kind::Descriptor, desc)) {
        return fake::violation("%s: no such descriptor", __func__);
    }
    *device_id = desc->device;
    return INFINI_STATUS_SUCCESS;
}

#define FAKE_OPERATOR(Name)                                                                                            \
    infiniStatus_t infiniopDestroy##Name##Descriptor(infiniop##Name##Descriptor_t desc) {                              \
        return fake::destroy(__func__, desc);                                                                          \
    }                                                                                                                  \
    infiniStatus_t infiniopGet##Name##WorkspaceSize(infiniop##Name##Descriptor_t desc, size_t *size) {                 \
        return fake::workspaceSize(__func__, desc, size);                                                              \
    }

FAKE_OPERATOR(Gemm)
FAKE_OPERATOR(Add)
FAKE_OPERATOR(RMSNorm)
FAKE_OPERATOR(RoPE)
FAKE_OPERATOR(CausalSoftmax)
FAKE_OPERATOR(SwiGLU)

infiniStatus_t infiniopDestroyRearrangeDescriptor(infiniopRearrangeDescriptor_t desc) {
    return fake::destroy(__func__, desc);
}

infiniStatus_t infiniopCreateGemmDescriptor(infiniopHandle_t handle, infiniopGemmDescriptor_t *desc_ptr,
                                            infiniopTensorDescriptor_t c, infiniopTensorDescriptor_t a,
                                            infiniopTensorDescriptor_t b) {
    return fake::create(__func__, Op::Gemm, handle, desc_ptr, {c, a, b});
}

infiniStatus_t infiniopCreateAddDescriptor(infiniopHandle_t handle, infiniopAddDescriptor_t *desc_ptr,
                                           infiniopTensorDescriptor_t c, infiniopTensorDescriptor_t a,
                                           infiniopTensorDescriptor_t b) {
    return fake::create(__func__, Op::Add, handle, desc_ptr, {c, a, b});
}

infiniStatus_t infiniopCreateRMSNormDescriptor(infiniopHandle_t handle, infiniopRMSNormDescriptor_t *desc_ptr,
                                               infiniopTensorDescriptor_t y, infiniopTensorDescriptor_t x,
                                               infiniopTensorDescriptor_t w, float epsilon) {
    return fake::create(__func__, Op::RMSNorm, handle, desc_ptr, {y, x, w}, epsilon);
}

infiniStatus_t infiniopCreateRoPEDescriptor(infiniopHandle_t handle, infiniopRoPEDescriptor_t *desc_ptr,
                                            infiniopTensorDescriptor_t y, infiniopTensorDescriptor_t x,
                                            infiniopTensorDescriptor_t pos, infiniopTensorDescriptor_t sin,
                                            infiniopTensorDescriptor_t cos, infiniopRoPEAlgo_t algo) {
    return fake::create(__func__, Op::RoPE, handle, desc_ptr, {y, x, pos, sin, cos}, 0, int(algo));
}

infiniStatus_t infiniopCreateCausalSoftmaxDescriptor(infiniopHandle_t handle,
                                                     infiniopCausalSoftmaxDescriptor_t *desc_ptr,
                                                     infiniopTensorDescriptor_t y, infiniopTensorDescriptor_t x) {
    return fake::create(__func__, Op::CausalSoftmax, handle, desc_ptr, {y, x});
}

infiniStatus_t infiniopCreateSwiGLUDescriptor(infiniopHandle_t handle, infiniopSwiGLUDescriptor_t *desc_ptr,
                                              infiniopTensorDescriptor_t c, infiniopTensorDescriptor_t a,
                                              infiniopTensorDescriptor_t b) {
    return fake::create(__func__, Op::SwiGLU, handle, desc_ptr, {c, a, b});
}

infiniStatus_t infiniopCreateRearrangeDescriptor(infiniopHandle_t handle, infiniopRearrangeDescriptor_t *desc_ptr,
                                                 infiniopTensorDescriptor_t dst, infiniopTensorDescriptor_t src) {
    return fake::create(__func__, Op::Rearrange, handle, desc_ptr, {dst, src});
}

infiniStatus_t infiniopGemm(infiniopGemmDescriptor_t desc, void *workspace, size_t workspace_size, void *c,
                            void const *a, void const *b, float alpha, float beta, void *stream) {
    return fake::launch(__func__, Op::Gemm, desc, workspace, workspace_size, {c, a, b}, stream, alpha, beta);
}

infiniStatus_t infiniopAdd(infiniopAddDescriptor_t desc, void *workspace, size_t workspace_size, void *c, const void *a,
                           const void *b, void *stream) {
    return fake::launch(__func__, Op::Add, desc, workspace, workspace_size, {c, a, b}, stream);
}

infiniStatus_t infiniopRMSNorm(infiniopRMSNormDescriptor_t desc, void *workspace, size_t workspace_size, void *y,
                               const void *x, const void *w, void *stream) {
    return fake::launch(__func__, Op::RMSNorm, desc, workspace, workspace_size, {y, x, w}, stream);
}

infiniStatus_t infiniopRoPE(infiniopRoPEDescriptor_t desc, void *workspace, size_t workspace_size, void *y,
                            const void *x, void const *pos_ids, void const *sin_table, void const *cos_table,
                            void *stream) {
    return fake::launch(__func__, Op::RoPE, desc, workspace, workspace_size, {y, x, pos_ids, sin_table, cos_table},
                        stream);
}

infiniStatus_t infiniopCausalSoftmax(infiniopCausalSoftmaxDescriptor_t desc, void *workspace, size_t workspace_size,
                                     void *y, const void *x, void *stream) {
    return fake::launch(__func__, Op::CausalSoftmax, desc, workspace, workspace_size, {y, x}, stream);
}

infiniStatus_t infiniopSwiGLU(infiniopSwiGLUDescriptor_t desc, void *workspace, size_t workspace_size, void *c,
                              void const *a, void const *b, void *stream) {
    return fake::launch(__func__, Op::SwiGLU, desc, workspace, workspace_size, {c, a, b}, stream);
}

infiniStatus_t infiniopRearrange(infiniopRearrangeDescriptor_t desc, void *dst, const void *src, void *stream) {
    return fake::launch(__func__, Op::Rearrange, desc, nullptr, 0, {dst, src}, stream);
}

#if FAKE_NEWER
#include "newer_api.inc"
#endif
