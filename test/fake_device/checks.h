// What the operators accept: as strict as the strictest device.
#pragma once

#include <algorithm>

#include "core.h"
#include "descriptors.h"
#include "numerics.h"

namespace fake {

// The elements that a layout reaches, relative to its pointer.
inline void extent(const Layout &layout, ptrdiff_t &low, ptrdiff_t &high) {
    low = high = 0;
    for (size_t dim = 0; dim < layout.shape.size(); ++dim) {
        (layout.strides[dim] < 0 ? low : high) += layout.strides[dim] * ptrdiff_t(layout.shape[dim] - 1);
    }
}

inline bool unitLast(const Layout &layout) {
    return layout.strides.back() == 1 || layout.shape.back() == 1;
}

// An output element must have one place only.
inline bool overlapsItself(const Layout &layout) {
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

inline infiniStatus_t checkGemm(const std::vector<Layout> &t) {
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

inline infiniStatus_t checkNorm(const std::vector<Layout> &t) {
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

inline infiniStatus_t checkRope(const std::vector<Layout> &t, int algorithm) {
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

inline infiniStatus_t checkSoftmax(const std::vector<Layout> &t) {
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

inline infiniStatus_t checkElementwise(const std::vector<Layout> &t, bool floats) {
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

inline infiniStatus_t checkRearrange(const std::vector<Layout> &t) {
    const auto dims = size_t(std::count_if(t[0].shape.begin(), t[0].shape.end(), [](size_t n) { return n > 1; }));
    if (quirk("rearrange_dims") != 0 && dims > size_t(quirk("rearrange_dims"))) {
        return INFINI_STATUS_BAD_TENSOR_STRIDES;
    }
    return checkElementwise(t, false);
}

inline infiniStatus_t checkTensors(Op op, const std::vector<Layout> &tensors, int algorithm) {
    if (quirk((std::string("no_") + kOps[int(op)]).c_str()) != 0) {
        return INFINI_STATUS_DEVICE_TYPE_NOT_SUPPORTED;
    }
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
    case Op::SwiGLU:
        return checkElementwise(tensors, true);
    case Op::Rearrange:
        return checkRearrange(tensors);
    default:
        return INFINI_STATUS_BAD_PARAM;
    }
}

}  // namespace fake
