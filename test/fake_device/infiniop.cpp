// The operators of InfiniCore 0.1.0 that the library uses, on the fake accelerator: float32 inside, arguments checked
// as strictly as the strictest device does.
#include "infiniop.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>

#include "core.h"
#include "numerics.h"

struct InfiniopHandle {
    int device = 0;
    std::atomic<int> descriptors{0};
};

struct InfiniopTensorDescriptor {
    infiniDtype_t dtype;
    std::vector<size_t> shape;
    std::vector<ptrdiff_t> strides;  // in elements
};

struct InfiniopDescriptor {
    enum class Op { Gemm, Add, RMSNorm, RoPE, CausalSoftmax, SwiGLU, Rearrange } op;
    InfiniopHandle *handle;
    int device;
    std::vector<InfiniopTensorDescriptor> tensors;  // the first is the output
    float epsilon = 0;
    int algorithm = 0;
    size_t workspace = 0;
};

namespace fake {
namespace {

using Op = InfiniopDescriptor::Op;
using Layout = InfiniopTensorDescriptor;
constexpr const char *kOps[] = {"gemm", "add", "rms_norm", "rope", "causal_softmax", "swiglu", "rearrange"};

struct View {
    const Layout &layout;
    char *data;
    ptrdiff_t stride(size_t dim) const { return layout.strides[dim]; }
    size_t size(size_t dim) const { return layout.shape[dim]; }
    float get(ptrdiff_t index) const { return load(layout.dtype, data, index); }
    void set(ptrdiff_t index, float value) const { store(layout.dtype, data, index, value); }
};

// Calls f with the offsets of every element in all views; their shapes are equal.
template <class F> void forEach(const std::vector<View> &views, F f) {
    const std::vector<size_t> &shape = views[0].layout.shape;
    std::vector<size_t> index(shape.size(), 0);
    std::vector<ptrdiff_t> offsets(views.size(), 0);
    size_t left = 1;
    for (size_t n : shape) {
        left *= n;
    }
    for (; left > 0; --left) {
        f(offsets);
        for (size_t dim = shape.size(); dim-- > 0;) {
            const bool carry = ++index[dim] == shape[dim];
            for (size_t i = 0; i < views.size(); ++i) {
                offsets[i] += carry ? -views[i].stride(dim) * ptrdiff_t(shape[dim] - 1) : views[i].stride(dim);
            }
            if (!carry) {
                break;
            }
            index[dim] = 0;
        }
    }
}

float dot(const float *a, const float *b, size_t n) {
    float sums[16] = {};
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (size_t j = 0; j < 16; ++j) {
            sums[j] += a[i + j] * b[i + j];
        }
    }
    float sum = 0;
    for (float part : sums) {
        sum += part;
    }
    for (; i < n; ++i) {
        sum += a[i] * b[i];
    }
    return sum;
}

// ------------------------------------------------------------------ what the operators compute

void gemm(const View &c, const View &a, const View &b, float alpha, float beta) {
    const size_t dims = c.layout.shape.size(), first = dims - 2, batches = dims == 3 ? c.size(0) : 1;
    const size_t m = c.size(first), n = c.size(first + 1), k = a.size(first + 1);
    const auto offset = [&](const View &view, size_t i) {
        return dims == 3 && view.size(0) > 1 ? ptrdiff_t(i) * view.stride(0) : ptrdiff_t(0);
    };
    std::vector<float> left(m * k), right(n * k);
    for (size_t i = 0; i < batches; ++i) {
        for (size_t row = 0; row < m; ++row) {
            for (size_t x = 0; x < k; ++x) {
                left[row * k + x] =
                    a.get(offset(a, i) + ptrdiff_t(row) * a.stride(first) + ptrdiff_t(x) * a.stride(first + 1));
            }
        }
        for (size_t col = 0; col < n; ++col) {
            for (size_t x = 0; x < k; ++x) {
                right[col * k + x] =
                    b.get(offset(b, i) + ptrdiff_t(x) * b.stride(first) + ptrdiff_t(col) * b.stride(first + 1));
            }
        }
        for (size_t row = 0; row < m; ++row) {
            for (size_t col = 0; col < n; ++col) {
                const ptrdiff_t at =
                    offset(c, i) + ptrdiff_t(row) * c.stride(first) + ptrdiff_t(col) * c.stride(first + 1);
                const float product = alpha * dot(&left[row * k], &right[col * k], k);
                c.set(at, beta == 0.0f ? product : product + beta * c.get(at));
            }
        }
    }
}

void rmsNorm(const View &y, const View &x, const View &w, float epsilon) {
    const bool wide = x.layout.shape.size() == 3;
    const size_t rows = x.size(0), heads = wide ? x.size(1) : 1, n = w.size(0);
    for (size_t row = 0; row < rows; ++row) {
        for (size_t head = 0; head < heads; ++head) {
            const auto start = [&](const View &view) {
                return ptrdiff_t(row) * view.stride(0) + (wide ? ptrdiff_t(head) * view.stride(1) : 0);
            };
            float sum = 0;
            for (size_t i = 0; i < n; ++i) {
                const float value = x.get(start(x) + ptrdiff_t(i));
                sum += value * value;
            }
            const float scale = 1.0f / std::sqrt(sum / float(n) + epsilon);
            for (size_t i = 0; i < n; ++i) {
                y.set(start(y) + ptrdiff_t(i), x.get(start(x) + ptrdiff_t(i)) * scale * w.get(ptrdiff_t(i)));
            }
        }
    }
}

infiniStatus_t rope(const View &y, const View &x, const View &pos, const View &sin, const View &cos, int algorithm) {
    const size_t half = x.size(2) / 2;
    for (size_t row = 0; row < x.size(0); ++row) {
        const int64_t position = loadInteger(pos.layout.dtype, pos.data, ptrdiff_t(row) * pos.stride(0));
        if (position < 0 || size_t(position) >= sin.size(0)) {
            return violation("infiniopRoPE: position %lld, the table has %zu rows", static_cast<long long>(position),
                             sin.size(0));
        }
        for (size_t head = 0; head < x.size(1); ++head) {
            const auto at = [&](const View &view, size_t i) {
                return ptrdiff_t(row) * view.stride(0) + ptrdiff_t(head) * view.stride(1) + ptrdiff_t(i);
            };
            for (size_t i = 0; i < half; ++i) {
                const bool neox = algorithm == INFINIOP_ROPE_ALGO_GPT_NEOX;
                const size_t first = neox ? i : 2 * i, second = neox ? half + i : 2 * i + 1;
                const ptrdiff_t entry = ptrdiff_t(position) * sin.stride(0) + ptrdiff_t(i);
                const float s = sin.get(entry), c = cos.get(entry), u = x.get(at(x, first)), v = x.get(at(x, second));
                y.set(at(y, first), u * c - v * s);
                y.set(at(y, second), u * s + v * c);
            }
        }
    }
    return INFINI_STATUS_SUCCESS;
}

// `block`: as 0.1.0's CUDA kernel does it, which compares the thread's index, the column modulo the block's size, with
// the causal edge. 0: correct.
void causalSoftmax(const View &y, const View &x, size_t block) {
    const bool wide = x.layout.shape.size() == 3;
    const size_t first = wide ? 1 : 0, batches = wide ? x.size(0) : 1;
    const size_t height = x.size(first), width = x.size(first + 1);
    std::vector<float> values(width);
    for (size_t i = 0; i < batches; ++i) {
        for (size_t row = 0; row < height; ++row) {
            const auto start = [&](const View &view) {
                return (wide ? ptrdiff_t(i) * view.stride(0) : 0) + ptrdiff_t(row) * view.stride(first);
            };
            const size_t visible = width - height + 1 + row;
            float most = -std::numeric_limits<float>::infinity(), sum = 0;
            for (size_t col = 0; col < visible; ++col) {
                most = std::max(most, x.get(start(x) + ptrdiff_t(col)));
            }
            for (size_t col = 0; col < width; ++col) {
                const size_t compared = block != 0 ? col % block : col;
                values[col] = compared < visible ? std::exp(x.get(start(x) + ptrdiff_t(col)) - most) : 0.0f;
                sum += values[col];
            }
            for (size_t col = 0; col < width; ++col) {
                y.set(start(y) + ptrdiff_t(col), values[col] / sum);
            }
        }
    }
}

// ------------------------------------------------------------------ descriptors

// The elements that a layout reaches, relative to its pointer.
void extent(const Layout &layout, ptrdiff_t &low, ptrdiff_t &high) {
    low = high = 0;
    for (size_t dim = 0; dim < layout.shape.size(); ++dim) {
        (layout.strides[dim] < 0 ? low : high) += layout.strides[dim] * ptrdiff_t(layout.shape[dim] - 1);
    }
}

bool unitLast(const Layout &layout) {
    return layout.strides.back() == 1 || layout.shape.back() == 1;
}

// An output element must have one place only.
bool overlapsItself(const Layout &layout) {
    std::vector<std::pair<ptrdiff_t, size_t>> dims;
    for (size_t dim = 0; dim < layout.shape.size(); ++dim) {
        if (layout.shape[dim] > 1) {
            dims.emplace_back(std::abs(layout.strides[dim]), layout.shape[dim]);
        }
    }
    std::sort(dims.begin(), dims.end());
    ptrdiff_t reach = 0;
    for (const auto &[stride, n] : dims) {
        if (stride <= reach) {
            return true;
        }
        reach += stride * ptrdiff_t(n - 1);
    }
    return false;
}

infiniStatus_t checkGemm(const std::vector<Layout> &t) {
    const size_t dims = t[0].shape.size();
    for (const Layout &layout : t) {
        if (!isFloat(layout.dtype) || layout.dtype != t[0].dtype) {
            return INFINI_STATUS_BAD_TENSOR_DTYPE;
        }
        if (layout.shape.size() != dims || dims < 2 || dims > 3) {
            return INFINI_STATUS_BAD_TENSOR_SHAPE;
        }
        if (dims == 3 && layout.shape[0] != t[0].shape[0] && (&layout == &t[0] || layout.shape[0] != 1)) {
            return INFINI_STATUS_BAD_TENSOR_SHAPE;
        }
        // As BLAS wants it: one unit stride, and the other at least as long as the unit dimension.
        const ptrdiff_t rows = ptrdiff_t(layout.shape[dims - 2]), cols = ptrdiff_t(layout.shape[dims - 1]);
        const ptrdiff_t row_stride = layout.strides[dims - 2], col_stride = layout.strides[dims - 1];
        if (!(col_stride == 1 && row_stride >= cols) && !(row_stride == 1 && col_stride >= rows)) {
            return INFINI_STATUS_BAD_TENSOR_STRIDES;
        }
    }
    const auto size = [&](size_t tensor, size_t dim) { return t[tensor].shape[dims - 2 + dim]; };
    return size(0, 0) == size(1, 0) && size(1, 1) == size(2, 0) && size(0, 1) == size(2, 1)
               ? INFINI_STATUS_SUCCESS
               : INFINI_STATUS_BAD_TENSOR_SHAPE;
}

infiniStatus_t checkNorm(const std::vector<Layout> &t) {
    const Layout &y = t[0], &x = t[1], &w = t[2];
    if (!isFloat(x.dtype) || y.dtype != x.dtype || !isFloat(w.dtype) ||
        (x.dtype == INFINI_DTYPE_F32 && w.dtype != INFINI_DTYPE_F32)) {
        return INFINI_STATUS_BAD_TENSOR_DTYPE;
    }
    if (y.shape != x.shape || x.shape.size() < 2 || x.shape.size() > 3 || w.shape.size() != 1 ||
        w.shape[0] != x.shape.back()) {
        return INFINI_STATUS_BAD_TENSOR_SHAPE;
    }
    return y.strides.back() == 1 && x.strides.back() == 1 && w.strides[0] == 1 ? INFINI_STATUS_SUCCESS
                                                                               : INFINI_STATUS_BAD_TENSOR_STRIDES;
}

infiniStatus_t checkRope(const std::vector<Layout> &t, int algorithm) {
    const Layout &y = t[0], &x = t[1], &pos = t[2], &sin = t[3], &cos = t[4];
    if (algorithm < 0 || algorithm >= INFINIOP_ROPE_ALGO_COUNT) {
        return INFINI_STATUS_BAD_PARAM;
    }
    if (algorithm == INFINIOP_ROPE_ALGO_GPT_NEOX && quirk("no_rope_neox") != 0) {
        return INFINI_STATUS_NOT_IMPLEMENTED;
    }
    if (!isFloat(x.dtype) || y.dtype != x.dtype || sin.dtype != x.dtype || cos.dtype != x.dtype || isFloat(pos.dtype) ||
        elementSize(pos.dtype) < 4) {
        return INFINI_STATUS_BAD_TENSOR_DTYPE;
    }
    if (x.shape.size() != 3 || y.shape != x.shape || pos.shape.size() != 1 || pos.shape[0] != x.shape[0] ||
        sin.shape.size() != 2 || cos.shape != sin.shape || sin.shape[1] * 2 != x.shape[2]) {
        return INFINI_STATUS_BAD_TENSOR_SHAPE;
    }
    const bool packed = sin.strides[0] == ptrdiff_t(sin.shape[1]) && cos.strides == sin.strides;
    return packed && unitLast(sin) && y.strides[2] == 1 && x.strides[2] == 1 ? INFINI_STATUS_SUCCESS
                                                                             : INFINI_STATUS_BAD_TENSOR_STRIDES;
}

infiniStatus_t checkSoftmax(const std::vector<Layout> &t) {
    const Layout &y = t[0], &x = t[1];
    if (!isFloat(x.dtype) || y.dtype != x.dtype) {
        return INFINI_STATUS_BAD_TENSOR_DTYPE;
    }
    const size_t dims = x.shape.size();
    if (y.shape != x.shape || dims < 2 || dims > 3 || x.shape[dims - 1] < x.shape[dims - 2]) {
        return INFINI_STATUS_BAD_TENSOR_SHAPE;
    }
    return y.strides.back() == 1 && x.strides.back() == 1 ? INFINI_STATUS_SUCCESS : INFINI_STATUS_BAD_TENSOR_STRIDES;
}

infiniStatus_t checkElementwise(const std::vector<Layout> &t, bool floats) {
    for (const Layout &layout : t) {
        if (layout.dtype != t[0].dtype || (floats && !isFloat(layout.dtype))) {
            return INFINI_STATUS_BAD_TENSOR_DTYPE;
        }
        if (layout.shape != t[0].shape) {
            return INFINI_STATUS_BAD_TENSOR_SHAPE;
        }
    }
    return INFINI_STATUS_SUCCESS;
}

infiniStatus_t checkTensors(Op op, const std::vector<Layout> &tensors, int algorithm) {
    switch (op) {
    case Op::Gemm:
        return checkGemm(tensors);
    case Op::RMSNorm:
        return checkNorm(tensors);
    case Op::RoPE:
        return checkRope(tensors, algorithm);
    case Op::CausalSoftmax:
        return checkSoftmax(tensors);
    case Op::Add:
        return quirk("no_add") != 0 ? INFINI_STATUS_DEVICE_TYPE_NOT_SUPPORTED : checkElementwise(tensors, true);
    case Op::SwiGLU:
        return checkElementwise(tensors, true);
    case Op::Rearrange:
        return checkElementwise(tensors, false);
    }
    return INFINI_STATUS_BAD_PARAM;
}

infiniStatus_t create(const char *function, Op op, infiniopHandle_t handle, InfiniopDescriptor **result,
                      std::initializer_list<infiniopTensorDescriptor_t> tensors, float epsilon = 0, int algorithm = 0) {
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
    const infiniStatus_t status = checkTensors(op, layouts, algorithm);
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
    descriptor->epsilon = epsilon;
    descriptor->algorithm = algorithm;
    descriptor->workspace = op == Op::Rearrange ? 0 : 64 + elements / 8;  // grows, so that growth is tested
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
        gemm(v[0], v[1], v[2], alpha, beta);
        break;
    case Op::Add:
        forEach(v, [&](const auto &at) { v[0].set(at[0], v[1].get(at[1]) + v[2].get(at[2])); });
        break;
    case Op::RMSNorm:
        rmsNorm(v[0], v[1], v[2], d.epsilon);
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
        forEach(v, [&](const auto &at) {
            std::memcpy(v[0].data + at[0] * ptrdiff_t(size), v[1].data + at[1] * ptrdiff_t(size), size);
        });
        break;
    }
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
    if (!alive(Kind::Descriptor, descriptor) || descriptor->op != op) {
        return violation("%s: no such descriptor", function);
    }
    const int device = descriptor->device;
    if (currentDevice() != device) {
        return violation("%s: descriptor of device %d used while device %d is current", function, device,
                         currentDevice());
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
        data.push_back(memory - low * size);
    }
    // Inputs may be the output itself, element by element, but not partly overlap it.
    const bool in_place = op != Op::Gemm && op != Op::Rearrange;
    for (size_t i = 1; i < ranges.size(); ++i) {
        const bool overlap = ranges[0].begin < ranges[i].end && ranges[i].begin < ranges[0].end;
        const bool same = data[0] == data[i] && descriptor->tensors[0].strides == descriptor->tensors[i].strides;
        if (overlap && !(in_place && same)) {
            return violation("%s: output and input %zu overlap", function, i);
        }
    }
    task.uses.insert(task.uses.end(), ranges.begin(), ranges.end());
    task.run = [=] {
        if (scratch != nullptr) {
            std::memset(scratch, 0xff, descriptor->workspace);
        }
        return compute(*descriptor, data, alpha, beta);
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
