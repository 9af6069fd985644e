#include "ops/infinicore/selftest/selftest_norms.h"

#include <cmath>

namespace q3::infinicore {
namespace {

TensorLayout rows2d(size_t rows, size_t cols) {
    return matrix(nullptr, INFINI_DTYPE_INVALID, rows, cols, cols).layout;
}

TensorLayout rows3d(size_t n, size_t rows, size_t cols, size_t stride, size_t ld) {
    return batch(nullptr, INFINI_DTYPE_INVALID, n, rows, cols, stride, ld).layout;
}

using Index = std::array<size_t, 4>;

struct Norms {
    Trial &t_;
    Operators &k_;
    const ModelConfig &c_;
    const Routes &routes;
    const std::function<void(const Verdict &, bool Routes::*)> &tell_;
    double squares_ = 0;  // of normed's row

    void judge(const Verdict &verdict, bool Routes::*route = nullptr) const { tell_(verdict, route); }

    // One element of x * w / rms(x), x(0) .. x(n - 1). Columns are asked for in order.
    template <class Input> Expected normed(const Input &x, const Operand &w, size_t n, size_t column) {
        if (column == 0) {
            squares_ = 0;
            for (size_t i = 0; i < n; ++i) {
                squares_ += x(i) * x(i);
            }
        }
        const double value = x(column) / std::sqrt(squares_ / static_cast<double>(n) + c_.epsilon) * w.get(column);
        return {value, 4 * t_.unit() * std::abs(value) + 1e-5};
    }

    void run(size_t rows) {
        for (const infiniDtype_t weights : {t_.dtype(), INFINI_DTYPE_F32}) {
            Operand w = t_.random(vector1d(nullptr, weights, c_.d).layout);
            Operand y = t_.random(rows2d(rows, c_.d));
            Operand x = t_.random(rows2d(rows, c_.d));
            const auto expected = [&](const Index &i) {
                return normed([&](size_t j) -> double { return x.get(i[0], j); }, w, c_.d, i[1]);
            };
            judge(t_.run(
                OpKind::kRmsNorm, {&y, &x, &w},
                [&] { k_.rmsNorm(t_.tensor(y), t_.tensor(x), t_.tensor(w), c_.epsilon); }, expected));
            if (routes.add_rms_norm) {
                addRmsNorm(rows, w);
            }
            Operand head_weight = t_.random(vector1d(nullptr, weights, c_.dh).layout);
            Operand heads = t_.random(rows3d(rows, c_.nh, c_.dh, c_.qkvWidth(), c_.dh));
            const auto of_head = [&](const Index &i) {
                const auto value = [&](size_t j) -> double { return heads.get(i[0], i[1], j); };
                return normed(value, head_weight, c_.dh, i[2]);
            };
            judge(t_.run(
                OpKind::kRmsNorm, {&heads, &head_weight},
                [&] { k_.rmsNorm(t_.tensor(heads), t_.tensor(heads), t_.tensor(head_weight), c_.epsilon); }, of_head));
        }
    }

    // The sum, in place, and its norm
    void addRmsNorm(size_t rows, Operand &w) {
        const TensorLayout layout = rows2d(rows, c_.d);
        Operand y = t_.random(layout);
        Operand x = t_.random(layout);
        Operand delta = t_.random(layout);
        const auto sum = [&](size_t row, size_t j) { return static_cast<double>(x.get(row, j)) + delta.get(row, j); };
        const auto launch = [&] {
            k_.addRmsNorm(t_.tensor(y), t_.tensor(x), t_.tensor(x), t_.tensor(delta), t_.tensor(w), c_.epsilon);
        };
        judge(t_.run(OpKind::kAddRmsNorm, {&y, &x, &delta, &w}, launch,
                     [&](const Index &i) {
                         Expected e = normed([&](size_t j) { return sum(i[0], j); }, w, c_.d, i[1]);
                         e.limit += 4 * t_.unit() * std::abs(w.get(i[1]) * sum(i[0], i[1]));
                         return e;
                     }),
              &Routes::add_rms_norm);
        if (routes.add_rms_norm) {
            judge(t_.run(OpKind::kAddRmsNorm, {&x, &y, &delta, &w}, launch, [&](const Index &i) -> Expected {
                const double value = sum(i[0], i[1]);
                return {value, 2 * t_.unit() * std::abs(value) + 1e-7};
            }));
        }
    }
};

}  // namespace

void tryNorms(Trial &trial, Operators &operators, const ModelConfig &config, size_t rows, const Routes &routes,
              const std::function<void(const Verdict &, bool Routes::*)> &judge) {
    Norms{trial, operators, config, routes, judge}.run(rows);
}

}  // namespace q3::infinicore
