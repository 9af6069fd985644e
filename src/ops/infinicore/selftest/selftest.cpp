#include "ops/infinicore/selftest/selftest.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/devices.h"
#include "ops/infinicore/infinicore.h"
#include "ops/infinicore/selftest/selftest_norms.h"
#include "ops/infinicore/selftest/selftest_paged.h"
#include "ops/infinicore/selftest/trial.h"
#include "runtime/error.h"

namespace q3::infinicore {
namespace {

constexpr size_t kColumns = 32;  // columns of a weight that are tried
constexpr infiniDtype_t kOwn = INFINI_DTYPE_INVALID;

TensorLayout rows2d(size_t rows, size_t cols, size_t ld, size_t col_stride = 1, infiniDtype_t dtype = kOwn) {
    return matrix(nullptr, dtype, rows, cols, ld, col_stride).layout;
}

TensorLayout rows3d(size_t n, size_t rows, size_t cols, size_t stride, size_t ld, size_t col_stride = 1) {
    return batch(nullptr, kOwn, n, rows, cols, stride, ld, col_stride).layout;
}

using Index = std::array<size_t, 4>;

class SelfTest {
public:
    SelfTest(const std::shared_ptr<Device> &device, Operators &operators, const ModelConfig &config,
             const SelfTestSetup &setup, const Routes &routes)
        : device_(device), k_(operators), c_(config), setup_(setup), routes_(routes),
          t_(device, static_cast<infiniDtype_t>(config.dt_logits)) {}

    Routes run() {
        try {
            tryOperators();
        } catch (const Error &error) {
            if (error.status() == QWEN3_STATUS_INTERNAL_ERROR) {
                findKernelsThatDoNothing(error.what());
            }
            throw;
        }
        if (!problems_.empty()) {
            failIfNothingRan("");
            fail(QWEN3_STATUS_DEVICE_TYPE_NOT_SUPPORTED,
                 "InfiniCore %s on %s fails the self-test: %s (docs/devices.md; QWEN3_INFINICORE_SELF_TEST=0 skips it)",
                 version(), device_->name().c_str(), problems_.c_str());
        }
        return routes_;
    }

private:
    void tryOperators() {
        findGemmThatReadsC();
        for (const size_t rows : {size_t{1}, size_t{3}}) {
            if (rows <= c_.max_step_tokens) {
                linear(rows, c_.qkvWidth(), c_.d);
                linear(rows, c_.d, c_.nh * c_.dh);
                linear(rows, 2 * c_.di, c_.d);
                linear(rows, c_.d, c_.di);
                rearrange(rows);
                sum(rows);
                norms(rows);
                rope(rows);
                if (routes_.silu_and_mul) {
                    siluAndMul(rows);
                }
                if (!routes_.silu_and_mul) {
                    swiglu(rows);
                }
                attention(rows);
            }
        }
        if (routes_.embedding) {
            embedding();
        }
        if (routes_.paged_attention) {
            tryPagedOperators(t_, k_, c_, setup_.block_tokens,
                              [this](const Verdict &verdict) { judge(verdict, &Routes::paged_attention); });
        }
    }

    // A kernel that InfiniCore has no code of for this device is launched, does nothing, and says nothing: InfiniCore
    // does not ask. Products are a vendor's library and work nevertheless; rearrange alone reports an error.
    void failIfNothingRan(const char *reported) const {
        if (device_->isCpu() || silent_ == 0 || touched_ > 0) {
            return;
        }
        fail(QWEN3_STATUS_DEVICE_TYPE_NOT_SUPPORTED,
             "InfiniCore %s runs none of its kernels on %s: it was probably built for another architecture than that "
             "device's. Build it again on this machine, where it asks the device: %s%s%s",
             version(), device_->name().c_str(), installHint(device_->type(), " --force").c_str(),
             *reported == '\0' ? "" : "; reported was: ", reported);
    }

    // After a launch that failed: whether other kernels do nothing either.
    void findKernelsThatDoNothing(const char *reported) {
        try {
            norms(1);
            swiglu(1);
        } catch (const Error &) {  // the device has another problem, which the caller tells
            return;
        }
        failIfNothingRan(reported);
    }

    // Notes a problem of an operator; one that is refused and has a replacement is no problem.
    void judge(const Verdict &verdict, bool Routes::*route = nullptr) {
        if (verdict.kind != OpKind::kGemm && verdict.state != Verdict::kMissing) {
            ++(verdict.untouched ? silent_ : touched_);
        }
        if (verdict.state == Verdict::kRight) {
            return;
        }
        if (route != nullptr && verdict.state == Verdict::kMissing) {
            routes_.*route = false;
            return;
        }
        const std::string name = verdict.text.substr(0, verdict.text.find(' '));
        if (problems_.find(name + " ") == std::string::npos) {  // each operator once
            problems_ += (problems_.empty() ? "" : "; ") + verdict.text;
        }
    }

    // gemm with beta 0 must not read C. Where it does, a NaN there would stay for ever: C is then cleared first.
    void findGemmThatReadsC() {
        if (!routes_.beta0) {
            k_.clearBeforeGemm();
            return;
        }
        Operand c = t_.constant(rows2d(2, 4, 4), std::numeric_limits<float>::quiet_NaN());
        Operand a = t_.random(rows2d(2, 8, 8));
        Operand b = t_.random(rows2d(8, 4, 1, 8));
        if (product(c, a, b, 1.0F, 0.0F).nan) {
            routes_.beta0 = false;
            k_.clearBeforeGemm();
        }
    }

    // c = alpha a b + beta c, of two or three dimensions
    Verdict product(Operand &c, Operand &a, Operand &b, float alpha, float beta) {
        const bool is_batch = c.layout.ndim == 3;
        const size_t inner = a.layout.shape[is_batch ? 2 : 1];
        const ptrdiff_t a_stride = a.layout.strides[is_batch ? 2 : 1];
        const ptrdiff_t b_stride = b.layout.strides[is_batch ? 1 : 0];
        const auto expected = [&](const Index &i) -> Expected {
            double value = 0;
            double squares = 0;
            const float *const left = &a.values[is_batch ? a.at({i[0], i[1], 0, 0}) : a.at({i[0], 0, 0, 0})];
            const float *const right = &b.values[is_batch ? b.at({i[0], 0, i[2], 0}) : b.at({0, i[1], 0, 0})];
            for (ptrdiff_t x = 0; x < static_cast<ptrdiff_t>(inner); ++x) {
                const double p = static_cast<double>(left[x * a_stride]) * right[x * b_stride];
                value += p;
                squares += p * p;
            }
            value *= alpha;
            const double limit = 8 * t_.inside() * alpha * std::sqrt(squares);
            value += beta == 0 ? 0 : beta * c.values[c.at(i)];
            return {value, limit + 2 * t_.unit() * std::abs(value) + 1e-6};
        };
        return t_.run(
            OpKind::kGemm, {&c, &a, &b}, [&] { k_.gemm(t_.tensor(c), t_.tensor(a), t_.tensor(b), alpha, beta); },
            expected);
    }

    void linear(size_t rows, size_t nout, size_t nin) {
        const size_t cols = std::min(nout, kColumns);
        Operand c = t_.random(rows2d(rows, cols, nout));
        Operand a = t_.random(rows2d(rows, nin, nin));
        Operand b = t_.random(rows2d(nin, cols, 1, nin));
        judge(product(c, a, b, 1.0F, 0.0F));
        judge(product(c, a, b, 1.0F, 1.0F));  // onto a bias
    }

    Verdict copy(const TensorLayout &to, const TensorLayout &from) {
        Operand dst = t_.random(to);
        Operand src = t_.random(from);
        return t_.run(
            OpKind::kRearrange, {&dst, &src}, [&] { k_.rearrange(t_.tensor(dst), t_.tensor(src)); },
            [&](const Index &i) -> Expected { return {src.values[src.at(i)], 0}; });
    }

    void rearrange(size_t rows) {
        const size_t dh = c_.dh;
        const size_t width = c_.qkvWidth();
        const size_t block = setup_.block_tokens * dh;
        const size_t n = 2 * static_cast<size_t>(c_.nkvh);
        judge(copy(rows3d(n, rows, dh, block, dh), rows3d(n, rows, dh, dh, width)));              // into a KV block
        judge(copy(rows3d(c_.nh, rows, dh, rows * dh, dh), rows3d(c_.nh, rows, dh, dh, width)));  // queries by heads
        judge(copy(rows3d(c_.nh, rows, dh, dh, c_.nh * dh), rows3d(c_.nh, rows, dh, rows * dh, dh)));  // and back
        judge(copy(rows2d(rows, width, width), rows2d(rows, width, 0)));                               // a bias
    }

    // x += delta, with add or with the identity in its place
    void sum(size_t rows) {
        const TensorLayout layout = rows2d(rows, c_.d, c_.d);
        Operand x = t_.random(layout);
        Operand delta = t_.random(layout);
        const auto expected = [&](const Index &i) -> Expected {
            const double value = static_cast<double>(x.get(i[0], i[1])) + delta.get(i[0], i[1]);
            return {value, 2 * t_.unit() * std::abs(value) + 1e-7};
        };
        if (routes_.add) {
            judge(t_.run(
                      OpKind::kAdd, {&x, &delta}, [&] { k_.add(t_.tensor(x), t_.tensor(x), t_.tensor(delta)); },
                      expected),
                  &Routes::add);
        }
        if (!routes_.add) {
            const size_t n = setup_.identity;
            const size_t m = rows * c_.d / n;
            Operand c = t_.random(rows2d(m, n, n));
            Operand a = t_.random(rows2d(m, n, n));
            Operand b = t_.constant(rows2d(n, n, n), 0);
            for (size_t i = 0; i < n; ++i) {
                b.values[i * n + i] = 1;
            }
            judge(product(c, a, b, 1.0F, 1.0F));
        }
    }

    void norms(size_t rows) {
        tryNorms(t_, k_, c_, rows, routes_,
                 [this](const Verdict &verdict, bool Routes::*route) { judge(verdict, route); });
    }

    void rope(size_t rows) {
        if (routes_.rope_neox) {
            judge(rotated(rows, true), &Routes::rope_neox);
        }
        if (!routes_.rope_neox) {
            judge(rotated(rows, false));
        }
    }

    Verdict rotated(size_t rows, bool neox) {
        const size_t half = c_.dh / 2;
        Operand x = t_.random(rows3d(rows, c_.nh + c_.nkvh, c_.dh, c_.qkvWidth(), c_.dh));
        Operand sin = t_.random(rows2d(rows, half, half));
        Operand cos = t_.random(rows2d(rows, half, half));
        std::vector<int64_t> order(rows);
        for (size_t i = 0; i < rows; ++i) {
            order[i] = static_cast<int64_t>(i);
        }
        Operand positions = t_.integers(INFINI_DTYPE_I32, order);
        const auto expected = [&](const Index &i) -> Expected {
            const bool first = neox ? i[2] < half : i[2] % 2 == 0;
            const size_t entry = neox ? i[2] % half : i[2] / 2;
            const size_t step = neox ? half : 1;
            const double self = x.get(i[0], i[1], i[2]);
            const double other =
                first ? -static_cast<double>(x.get(i[0], i[1], i[2] + step)) : x.get(i[0], i[1], i[2] - step);
            const double value = self * cos.get(i[0], entry) + other * sin.get(i[0], entry);
            return {value, 8 * t_.unit() * (std::abs(self) + std::abs(other)) + 1e-6};
        };
        return t_.run(
            OpKind::kRope, {&x, &positions, &sin, &cos},
            [&] { k_.rope(t_.tensor(x), t_.tensor(positions), t_.tensor(sin), t_.tensor(cos), neox); }, expected);
    }

    void swiglu(size_t rows) {
        const size_t di = c_.di;
        Operand out = t_.random(rows2d(rows, di, di));
        Operand up = t_.random(rows2d(rows, di, 2 * di));
        Operand gate = t_.random(rows2d(rows, di, 2 * di));
        const auto expected = [&](const Index &i) -> Expected {
            const double g = gate.get(i[0], i[1]);
            const double value = up.get(i[0], i[1]) * g / (1 + std::exp(-g));
            return {value, 8 * t_.unit() * std::abs(value) + 1e-4};
        };
        judge(t_.run(
            OpKind::kSwiGlu, {&out, &up, &gate}, [&] { k_.swiglu(t_.tensor(out), t_.tensor(up), t_.tensor(gate)); },
            expected));
    }

    // Of packed rows, gate first
    void siluAndMul(size_t rows) {
        const size_t di = c_.di;
        Operand out = t_.random(rows2d(rows, di, di));
        Operand both = t_.random(rows2d(rows, 2 * di, 2 * di));
        judge(t_.run(
                  OpKind::kSiluAndMul, {&out, &both}, [&] { k_.siluAndMul(t_.tensor(out), t_.tensor(both)); },
                  [&](const Index &i) -> Expected {
                      const double g = both.get(i[0], i[1]);
                      const double value = both.get(i[0], di + i[1]) * g / (1 + std::exp(-g));
                      return {value, 8 * t_.unit() * std::abs(value) + 1e-4};
                  }),
              &Routes::silu_and_mul);
    }

    // Scores of a few keys, their softmax, and the sum of values; and a softmax as wide as the context allows.
    void attention(size_t rows) {
        const size_t heads = c_.nkvh;
        const size_t height = c_.group() * rows;
        const size_t dh = c_.dh;
        const size_t T = setup_.block_tokens;
        const size_t n = std::min<size_t>(T, rows + 18);
        const size_t ld = T;
        Operand q = t_.random(rows3d(heads, height, dh, height * dh, dh));
        Operand k = t_.random(rows3d(heads, dh, n, T * dh, 1, dh));
        Operand v = t_.random(rows3d(heads, n, dh, T * dh, dh));
        Operand scores = t_.random(rows3d(heads, height, n, height * ld, ld));
        judge(product(scores, q, k, 1.0F / std::sqrt(static_cast<float>(dh)), 0.0F));
        judge(product(q, scores, v, 1.0F, 0.0F));
        judge(softmax(rows, n, 0));
        const size_t wide = std::min<size_t>(c_.dctx, 1100 + rows);
        if (rows == 1 || wide <= n) {
            return;
        }
        if (routes_.causal || !setup_.mask) {
            const Verdict verdict = softmax(rows, wide, 0);
            routes_.causal = verdict.state == Verdict::kRight || !setup_.mask;
            if (routes_.causal) {
                judge(verdict);
            }
        }
        if (!routes_.causal) {
            judge(copy(rows3d(c_.nh, rows, rows, rows * T, T), rows3d(c_.nh, rows, rows, 0, 1, setup_.mask)));
            judge(softmax(rows, wide, rows));
        }
    }

    // masked: how many columns at the end the backend masks beforehand
    Verdict softmax(size_t rows, size_t total, size_t masked) {
        Operand x = t_.random(rows3d(c_.nh, rows, total, rows * total, total), 2.0F);
        const Operand plain = x;
        const auto visible = [&](size_t row) { return total - rows + row + 1; };
        for (size_t head = 0; masked > 0 && head < c_.nh; ++head) {
            for (size_t row = 0; row < rows; ++row) {
                for (size_t col = visible(row); col < total; ++col) {
                    x.values[x.at({head, row, col, 0})] = -std::numeric_limits<float>::infinity();
                }
            }
        }
        std::vector<double> sums(c_.nh * rows, 0.0);
        for (size_t i = 0; i < sums.size(); ++i) {
            for (size_t col = 0; col < visible(i % rows); ++col) {
                sums[i] += std::exp(static_cast<double>(plain.get(i / rows, i % rows, col)));
            }
        }
        const auto expected = [&](const Index &i) -> Expected {
            const double value = i[2] >= visible(i[1]) ? 0.0
                                                       : std::exp(static_cast<double>(plain.get(i[0], i[1], i[2]))) /
                                                             sums[i[0] * rows + i[1]];
            return {value, 16 * t_.unit() * value + 1e-5};
        };
        return t_.run(OpKind::kCausalSoftmax, {&x}, [&] { k_.causalSoftmax(t_.tensor(x)); }, expected);
    }

    void embedding() {
        const size_t rows = std::min<size_t>(c_.dvoc, kColumns);
        const std::vector<int64_t> ids = {static_cast<int64_t>(rows) - 1, 0, static_cast<int64_t>(rows) / 2};
        Operand out = t_.random(rows2d(ids.size(), c_.d, c_.d));
        Operand table = t_.random(rows2d(rows, c_.d, c_.d));
        Operand tokens = t_.integers(INFINI_DTYPE_I32, ids);
        judge(t_.run(
                  OpKind::kEmbedding, {&out, &tokens, &table},
                  [&] { k_.embedding(t_.tensor(out), t_.tensor(tokens), t_.tensor(table)); },
                  [&](const Index &i) -> Expected { return {table.get(static_cast<size_t>(ids[i[0]]), i[1]), 0}; }),
              &Routes::embedding);
    }

    const std::shared_ptr<Device> &device_;
    Operators &k_;
    const ModelConfig &c_;
    const SelfTestSetup &setup_;
    Routes routes_;
    Trial t_;
    std::string problems_;
    size_t silent_ = 0;   // trials, but those of gemm, that left their output as it was
    size_t touched_ = 0;  // and that did not
};

}  // namespace

Routes selfTest(const std::shared_ptr<Device> &device, Operators &operators, const ModelConfig &config,
                const SelfTestSetup &setup, Routes routes) {
    return SelfTest(device, operators, config, setup, routes).run();
}

}  // namespace q3::infinicore
