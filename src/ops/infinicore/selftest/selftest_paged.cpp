#include "ops/infinicore/selftest/selftest_paged.h"

#include <cmath>

namespace q3::infinicore {
namespace {

constexpr infiniDtype_t kOwn = INFINI_DTYPE_INVALID;

using Index = std::array<size_t, 4>;

TensorLayout rows3d(size_t n, size_t rows, size_t cols, size_t stride, size_t ld) {
    return batch(nullptr, kOwn, n, rows, cols, stride, ld).layout;
}

}  // namespace

// Three blocks of one layer: [blocks, keys and values by heads, tokens, dh]
void tryPagedOperators(Trial &t, Operators &operators, const ModelConfig &config, uint32_t block_tokens,
                       const std::function<void(const Verdict &)> &judge) {
    const size_t T = block_tokens;
    const size_t group = config.nh / config.nkvh;
    const size_t dh = config.dh;
    const size_t nkvh = config.nkvh;
    const size_t head = T * dh;
    const size_t block = 2 * nkvh * head;
    Operand cache = t.random(tensor4d(nullptr, kOwn, {3, 2 * nkvh, T, dh}, {block, head, dh}).layout);
    const auto half = [&](size_t first) {
        Tensor part = t.tensor(cache, first * nkvh * head);
        part.layout.shape[1] = nkvh;
        return part;
    };
    // storing three tokens
    const std::vector<int64_t> slots = {static_cast<int64_t>(T) + 5 % static_cast<int64_t>(T),
                                        2 * static_cast<int64_t>(T), 7 % static_cast<int64_t>(T)};
    const size_t width = config.qkvWidth();
    Operand kv = t.random(rows3d(3, 2 * nkvh, dh, width, dh));
    Operand slot_ids = t.integers(INFINI_DTYPE_I64, slots);
    const Verdict stored = t.run(
        OpKind::kPagedCaching, {&cache, &kv, &slot_ids},
        [&] {
            Tensor k = t.tensor(kv);
            Tensor v = t.tensor(kv, nkvh * dh);
            k.layout.shape[1] = v.layout.shape[1] = nkvh;
            operators.pagedCaching(half(0), half(1), k, v, t.tensor(slot_ids));
        },
        [&](const Index &i) -> Expected {
            for (size_t s = 0; s < slots.size(); ++s) {
                if (slots[s] == static_cast<int64_t>(i[0] * T + i[2])) {
                    return {kv.get(s, i[1], i[3]), 0};
                }
            }
            return {cache.get(i[0], i[1], i[2], i[3]), 0};
        });
    judge(stored);

    // two sequences, the first in blocks 2 and 0
    const std::vector<int64_t> lengths = {static_cast<int64_t>(T) + 1 + 6 % static_cast<int64_t>(T),
                                          1 + 8 % static_cast<int64_t>(T)};
    Operand tables = t.integers(INFINI_DTYPE_I32, {2, 0, 1, 0}, 2);
    Operand sizes = t.integers(INFINI_DTYPE_I32, lengths);
    const float scale = 1.0F / std::sqrt(static_cast<float>(dh));
    for (const bool decode : {true, false}) {
        const std::vector<int64_t> starts = {0, decode ? 1 : 2, decode ? 2 : 3};
        Operand first_rows = t.integers(INFINI_DTYPE_I32, starts);
        const size_t rows = static_cast<size_t>(starts[2]);
        Operand out = t.random(rows3d(rows, config.nh, dh, config.nh * dh, dh));
        Operand q = t.random(rows3d(rows, config.nh, dh, width, dh));
        const auto launch = [&] {
            const Tensor o = t.tensor(out);
            const Tensor query = t.tensor(q);
            const Tensor map = t.tensor(tables);
            const Tensor n = t.tensor(sizes);
            if (decode) {
                operators.pagedAttention(o, query, half(0), half(1), map, n, scale);
            } else {
                operators.pagedAttentionPrefill(o, query, half(0), half(1), map, n, t.tensor(first_rows), scale);
            }
        };
        std::vector<double> p;
        size_t row_of_p = SIZE_MAX;
        size_t head_of_p = SIZE_MAX;
        const auto expected = [&](const Index &i) -> Expected {
            const size_t s = static_cast<int64_t>(i[0]) < starts[1] ? 0 : 1, group_head = i[1] / group;
            const size_t visible = static_cast<size_t>(lengths[s]) - static_cast<size_t>(starts[s + 1] - 1) + i[0];
            const auto element = [&](size_t token, size_t kv_head, size_t x) -> double {
                return cache.get(static_cast<size_t>(tables.get(s, token / T)), kv_head, token % T, x);
            };
            if (row_of_p != i[0] || head_of_p != i[1]) {
                row_of_p = i[0];
                head_of_p = i[1];
                p.assign(visible, 0.0);
                double sum = 0;
                for (size_t token = 0; token < visible; ++token) {
                    for (size_t x = 0; x < dh; ++x) {
                        p[token] += q.get(i[0], i[1], x) * element(token, group_head, x) * scale;
                    }
                    sum += p[token] = std::exp(p[token]);
                }
                for (double &probability : p) {
                    probability /= sum;
                }
            }
            double value = 0;
            double absolute = 0;
            for (size_t token = 0; token < visible; ++token) {
                const double part = p[token] * element(token, nkvh + group_head, i[2]);
                value += part;
                absolute += std::abs(part);
            }
            return {value, 8 * t.unit() * absolute + 1e-4};
        };
        judge(t.run(decode ? OpKind::kPagedAttention : OpKind::kPagedAttentionPrefill,
                    {&out, &q, &cache, &tables, &sizes, &first_rows}, launch, expected));
    }
}

}  // namespace q3::infinicore
