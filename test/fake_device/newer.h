// Operators that newer InfiniCore has and 0.1.0 lacks: what they accept and compute. Compiled when the headers declare
// them.
#pragma once

#include "checks.h"
#include "operators.h"

namespace fake {

// ------------------------------------------------------------------ what they accept

inline infiniStatus_t checkAddNorm(const std::vector<Layout> &t) {
    for (size_t i = 1; i < 4; ++i) {
        if (t[i].dtype != t[0].dtype) {
            return INFINI_STATUS_BAD_TENSOR_DTYPE;
        }
        if (t[i].shape != t[0].shape || t[i].strides.back() != 1) {
            return INFINI_STATUS_BAD_TENSOR_SHAPE;
        }
    }
    return checkNorm({t[0], t[2], t[4]});
}

inline infiniStatus_t checkEmbedding(const std::vector<Layout> &t) {
    const Layout &out = t[0], &ids = t[1], &table = t[2];
    if (out.dtype != table.dtype || (ids.dtype != INFINI_DTYPE_I32 && ids.dtype != INFINI_DTYPE_I64)) {
        return INFINI_STATUS_BAD_TENSOR_DTYPE;
    }
    const bool fits = ids.shape.size() == 1 && out.shape.size() == 2 && table.shape.size() == 2 &&
                      out.shape[0] == ids.shape[0] && out.shape[1] == table.shape[1];
    return !fits                                          ? INFINI_STATUS_BAD_TENSOR_SHAPE
           : out.strides[1] == 1 && table.strides[1] == 1 ? INFINI_STATUS_SUCCESS
                                                          : INFINI_STATUS_BAD_TENSOR_STRIDES;
}

inline infiniStatus_t checkSiluAndMul(const std::vector<Layout> &t) {
    const Layout &out = t[0], &in = t[1];
    if (!isFloat(out.dtype) || in.dtype != out.dtype) {
        return INFINI_STATUS_BAD_TENSOR_DTYPE;
    }
    if (out.shape.size() != 2 || in.shape.size() != 2 || in.shape[0] != out.shape[0] ||
        in.shape[1] != 2 * out.shape[1]) {
        return INFINI_STATUS_BAD_TENSOR_SHAPE;
    }
    const bool packed = out.strides == std::vector<ptrdiff_t>{ptrdiff_t(out.shape[1]), 1} &&
                        in.strides == std::vector<ptrdiff_t>{ptrdiff_t(in.shape[1]), 1};
    return packed ? INFINI_STATUS_SUCCESS : INFINI_STATUS_BAD_TENSOR_STRIDES;
}

inline bool isPagedType(infiniDtype_t dtype) {
    return dtype == INFINI_DTYPE_F16 || dtype == INFINI_DTYPE_BF16;
}

inline infiniStatus_t checkPagedCaching(const std::vector<Layout> &t) {
    const Layout &k_cache = t[0], &v_cache = t[1], &k = t[2], &v = t[3], &slots = t[4];
    if (!isPagedType(k.dtype) || k_cache.dtype != k.dtype || v_cache.dtype != k.dtype || v.dtype != k.dtype ||
        slots.dtype != INFINI_DTYPE_I64) {
        return INFINI_STATUS_BAD_TENSOR_DTYPE;
    }
    const bool fits = k_cache.shape.size() == 4 && v_cache.shape == k_cache.shape && k.shape.size() == 3 &&
                      v.shape == k.shape && slots.shape.size() == 1 && slots.shape[0] == k.shape[0] &&
                      k_cache.shape[1] == k.shape[1] && k_cache.shape[3] == k.shape[2];
    if (!fits) {
        return INFINI_STATUS_BAD_TENSOR_SHAPE;
    }
    for (const Layout *layout : {&k_cache, &v_cache, &k, &v}) {
        if (layout->strides.back() != 1) {
            return INFINI_STATUS_BAD_TENSOR_STRIDES;
        }
    }
    return INFINI_STATUS_SUCCESS;
}

// out, q, k_cache, v_cache, block_tables, seq_lens, and for prefill cum_seq_lens_q
inline infiniStatus_t checkPagedAttention(const std::vector<Layout> &t) {
    const Layout &out = t[0], &q = t[1], &k_cache = t[2], &v_cache = t[3], &tables = t[4], &lengths = t[5];
    const bool prefill = t.size() == 7;
    if (!isPagedType(q.dtype) || out.dtype != q.dtype || k_cache.dtype != q.dtype || v_cache.dtype != q.dtype ||
        isFloat(tables.dtype) || lengths.dtype != tables.dtype || (prefill && t[6].dtype != tables.dtype)) {
        return INFINI_STATUS_BAD_TENSOR_DTYPE;
    }
    const bool fits =
        q.shape.size() == 3 && out.shape == q.shape && k_cache.shape.size() == 4 && v_cache.shape == k_cache.shape &&
        k_cache.shape[3] == q.shape[2] && q.shape[1] % k_cache.shape[1] == 0 && tables.shape.size() == 2 &&
        lengths.shape.size() == 1 && tables.shape[0] == lengths.shape[0] &&
        (prefill ? t[6].shape == std::vector<size_t>{lengths.shape[0] + 1} : lengths.shape[0] == q.shape[0]);
    const size_t dh = fits ? q.shape[2] : 0;
    if (dh != 64 && dh != 128 && dh != 192 && dh != 256) {
        return INFINI_STATUS_BAD_TENSOR_SHAPE;
    }
    const bool packed = out.strides[1] == ptrdiff_t(dh) && out.strides[0] == ptrdiff_t(dh * out.shape[1]);
    return packed && q.strides[2] == 1 && out.strides[2] == 1 && k_cache.strides[3] == 1 && tables.strides[1] == 1 &&
                   k_cache.strides == v_cache.strides
               ? INFINI_STATUS_SUCCESS
               : INFINI_STATUS_BAD_TENSOR_STRIDES;
}

inline infiniStatus_t checkNewer(Op op, const std::vector<Layout> &tensors) {
    switch (op) {
    case Op::AddRMSNorm:
        return checkAddNorm(tensors);
    case Op::Embedding:
        return checkEmbedding(tensors);
    case Op::SiluAndMul:
        return checkSiluAndMul(tensors);
    case Op::PagedCaching:
        return checkPagedCaching(tensors);
    case Op::PagedAttention:
    case Op::PagedAttentionPrefill:
        return checkPagedAttention(tensors);
    default:
        return INFINI_STATUS_BAD_PARAM;
    }
}

// ------------------------------------------------------------------ what they compute

inline void addRmsNorm(const View &y, const View &sum, const View &a, const View &b, const View &w, float epsilon) {
    forEach({sum, a, b}, [&](const auto &at) { sum.set(at[0], a.get(at[1]) + b.get(at[2])); });
    rmsNorm(y, sum, w, epsilon);
}

inline infiniStatus_t embedding(const View &out, const View &ids, const View &table) {
    for (size_t row = 0; row < out.size(0); ++row) {
        const int64_t id = loadInteger(ids.layout.dtype, ids.data, ptrdiff_t(row) * ids.stride(0));
        if (id < 0 || size_t(id) >= table.size(0)) {
            return violation("infiniopEmbedding: token %lld, the table has %zu rows", static_cast<long long>(id),
                             table.size(0));
        }
        for (size_t i = 0; i < out.size(1); ++i) {
            out.set(ptrdiff_t(row) * out.stride(0) + ptrdiff_t(i), table.get(id * table.stride(0) + ptrdiff_t(i)));
        }
    }
    return INFINI_STATUS_SUCCESS;
}

inline infiniStatus_t pagedCaching(const View &k_cache, const View &v_cache, const View &k, const View &v,
                                   const View &slots) {
    const size_t block_tokens = k_cache.size(2), capacity = k_cache.size(0) * block_tokens;
    for (size_t row = 0; row < k.size(0); ++row) {
        const int64_t slot = loadInteger(slots.layout.dtype, slots.data, ptrdiff_t(row) * slots.stride(0));
        if (slot < 0 || size_t(slot) >= capacity) {
            return violation("infiniopPagedCaching: slot %lld of %zu", static_cast<long long>(slot), capacity);
        }
        for (size_t head = 0; head < k.size(1); ++head) {
            for (size_t i = 0; i < k.size(2); ++i) {
                const auto from = [&](const View &view) {
                    return ptrdiff_t(row) * view.stride(0) + ptrdiff_t(head) * view.stride(1) + ptrdiff_t(i);
                };
                const auto to = [&](const View &view) {
                    return ptrdiff_t(size_t(slot) / block_tokens) * view.stride(0) + ptrdiff_t(head) * view.stride(1) +
                           ptrdiff_t(size_t(slot) % block_tokens) * view.stride(2) + ptrdiff_t(i);
                };
                k_cache.set(to(k_cache), k.get(from(k)));
                v_cache.set(to(v_cache), v.get(from(v)));
            }
        }
    }
    return INFINI_STATUS_SUCCESS;
}

// starts: null for one row per sequence
inline infiniStatus_t pagedAttention(const View &out, const View &q, const View &k_cache, const View &v_cache,
                                     const View &tables, const View &lengths, const View *starts, float scale) {
    const size_t block_tokens = k_cache.size(2), dh = q.size(2), group = q.size(1) / k_cache.size(1);
    const auto integer = [](const View &view, size_t index) {
        return size_t(loadInteger(view.layout.dtype, view.data, ptrdiff_t(index)));
    };
    for (size_t s = 0; s < lengths.size(0); ++s) {
        const size_t first = starts == nullptr ? s : integer(*starts, s);
        const size_t end = starts == nullptr ? s + 1 : integer(*starts, s + 1);
        const size_t total = integer(lengths, s);
        if (first >= end || end > q.size(0) || total < end - first || total > tables.size(1) * block_tokens) {
            return violation("infiniopPagedAttention: sequence %zu: rows %zu to %zu, length %zu", s, first, end, total);
        }
        for (size_t row = first; row < end; ++row) {
            const size_t visible = total - (end - 1 - row);
            for (size_t head = 0; head < q.size(1); ++head) {
                std::vector<float> p(visible), sum(dh, 0.0f);
                const auto place = [&](const View &cache, size_t token) {
                    const size_t block = integer(tables, s * size_t(tables.stride(0)) + token / block_tokens);
                    return ptrdiff_t(std::min(block, cache.size(0) - 1)) * cache.stride(0) +
                           ptrdiff_t(head / group) * cache.stride(1) +
                           ptrdiff_t(token % block_tokens) * cache.stride(2);
                };
                const ptrdiff_t query = ptrdiff_t(row) * q.stride(0) + ptrdiff_t(head) * q.stride(1);
                float most = -std::numeric_limits<float>::infinity(), total_p = 0;
                for (size_t token = 0; token < visible; ++token) {
                    const ptrdiff_t at = place(k_cache, token);
                    for (size_t i = 0; i < dh; ++i) {
                        p[token] += q.get(query + ptrdiff_t(i)) * k_cache.get(at + ptrdiff_t(i));
                    }
                    p[token] *= scale;
                    most = std::max(most, p[token]);
                }
                for (size_t token = 0; token < visible; ++token) {
                    total_p += p[token] = std::exp(p[token] - most);
                    const ptrdiff_t at = place(v_cache, token);
                    for (size_t i = 0; i < dh; ++i) {
                        sum[i] += p[token] * v_cache.get(at + ptrdiff_t(i));
                    }
                }
                for (size_t i = 0; i < dh; ++i) {
                    out.set(ptrdiff_t(row) * out.stride(0) + ptrdiff_t(head) * out.stride(1) + ptrdiff_t(i),
                            sum[i] / total_p);
                }
            }
        }
    }
    return INFINI_STATUS_SUCCESS;
}

inline infiniStatus_t computeNewer(Op op, const std::vector<View> &v, float number) {
    switch (op) {
    case Op::AddRMSNorm:
        addRmsNorm(v[0], v[1], v[2], v[3], v[4], number);
        return INFINI_STATUS_SUCCESS;
    case Op::Embedding:
        return embedding(v[0], v[1], v[2]);
    case Op::SiluAndMul:
        for (size_t row = 0; row < v[0].size(0); ++row) {
            for (size_t i = 0; i < v[0].size(1); ++i) {
                const float gate = v[1].get(ptrdiff_t(row) * v[1].stride(0) + ptrdiff_t(i));
                const float up = v[1].get(ptrdiff_t(row) * v[1].stride(0) + ptrdiff_t(v[0].size(1) + i));
                v[0].set(ptrdiff_t(row) * v[0].stride(0) + ptrdiff_t(i), up * gate / (1.0f + std::exp(-gate)));
            }
        }
        return INFINI_STATUS_SUCCESS;
    case Op::PagedCaching:
        return pagedCaching(v[0], v[1], v[2], v[3], v[4]);
    case Op::PagedAttention:
        return pagedAttention(v[0], v[1], v[2], v[3], v[4], v[5], nullptr, number);
    case Op::PagedAttentionPrefill:
        return pagedAttention(v[0], v[1], v[2], v[3], v[4], v[5], &v[6], number);
    default:
        return INFINI_STATUS_BAD_PARAM;
    }
}

}  // namespace fake
