// What the operators compute, in float32.
#pragma once

#include <algorithm>
#include <limits>

#include "core.h"
#include "descriptors.h"
#include "numerics.h"

namespace fake {

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

// Each element has its lane, so that zeros behind the others do not change the sum: a row of probabilities gives the
// same bits whether or not keys of the future follow. Tests compare requests in a batch with the same alone.
inline float dot(const float *a, const float *b, size_t n) {
    float sums[16] = {};
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (size_t j = 0; j < 16; ++j) {
            sums[j] += a[i + j] * b[i + j];
        }
    }
    for (size_t j = 0; i + j < n; ++j) {
        sums[j] += a[i + j] * b[i + j];
    }
    float sum = 0;
    for (float part : sums) {
        sum += part;
    }
    return sum;
}

// ------------------------------------------------------------------ what the operators compute

// reads_c: C is multiplied by beta even when that is 0, so that a NaN in it stays.
inline void gemm(const View &c, const View &a, const View &b, float alpha, float beta, bool reads_c) {
    const size_t dims = c.layout.shape.size(), first = dims - 2, batches = dims == 3 ? c.size(0) : 1;
    const size_t m = c.size(first), n = c.size(first + 1), k = a.size(first + 1);
    const auto offset = [&](const View &view, size_t i) {
        return dims == 3 && view.size(0) > 1 ? ptrdiff_t(i) * view.stride(0) : ptrdiff_t(0);
    };
    std::vector<float> left(m * k), right(n * k);
    for (size_t i = 0; i < batches; ++i) {
        for (size_t row = 0; row < m; ++row) {
            loadRow(a.layout.dtype, a.data, offset(a, i) + ptrdiff_t(row) * a.stride(first), a.stride(first + 1), k,
                    &left[row * k]);
        }
        for (size_t col = 0; col < n; ++col) {
            loadRow(b.layout.dtype, b.data, offset(b, i) + ptrdiff_t(col) * b.stride(first + 1), b.stride(first), k,
                    &right[col * k]);
        }
        for (size_t row = 0; row < m; ++row) {
            for (size_t col = 0; col < n; ++col) {
                const ptrdiff_t at =
                    offset(c, i) + ptrdiff_t(row) * c.stride(first) + ptrdiff_t(col) * c.stride(first + 1);
                const float product = alpha * dot(&left[row * k], &right[col * k], k);
                c.set(at, beta == 0.0f && !reads_c ? product : product + beta * c.get(at));
            }
        }
    }
}

inline void rmsNorm(const View &y, const View &x, const View &w, float epsilon) {
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

inline infiniStatus_t rope(const View &y, const View &x, const View &pos, const View &sin, const View &cos,
                           int algorithm) {
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

// The bytes that 0.1.0's rearrange for CUDA moves at a time: the largest power of two up to 32 that divides the part of
// a row that is contiguous in both tensors.
inline size_t vectorBytes(const View &dst, const View &src) {
    size_t run = elementSize(dst.layout.dtype);
    for (size_t dim = dst.layout.shape.size(); dim-- > 0;) {
        const auto here = ptrdiff_t(run / elementSize(dst.layout.dtype));
        if (dst.size(dim) != 1 && (dst.stride(dim) != here || src.stride(dim) != here)) {
            break;
        }
        run *= dst.size(dim);
    }
    size_t bytes = 32;
    while (run % bytes != 0) {
        bytes /= 2;
    }
    return bytes;
}

// `block`: as 0.1.0's CUDA kernel does it, which compares the thread's index, the column modulo the block's size, with
// the causal edge. 0: correct.
inline void causalSoftmax(const View &y, const View &x, size_t block) {
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

}  // namespace fake
