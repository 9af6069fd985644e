// Linear layers of the CPU backend at sizes that the models of the other tests do not have: k that is cut into blocks
// for many rows (more than 2048 in bf16), with an odd rest, more rows than one tile, more panels than one claim.
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/half.h"

namespace {

constexpr uint32_t kIn = 6405;  // three blocks of bf16
constexpr uint32_t kOut = 91;
constexpr uint32_t kRows = 14;

std::mt19937 rng(7);

std::vector<float> normals(size_t n, float scale) {
    std::normal_distribution<float> normal(0.0F, scale);
    std::vector<float> out(n);
    for (float &value : out) {
        value = normal(rng);
    }
    return out;
}

q3::ModelConfig config() {
    q3::ModelConfig c{};
    c.nlayer = 1;
    c.d = kIn;
    c.nh = c.nkvh = 1;
    c.dh = 16;
    c.di = kOut;
    c.dctx = c.dvoc = 64;
    c.max_step_tokens = kRows;
    c.epsilon = 1e-6F;
    return c;
}

// out[nrows][kOut] of rows [first, first + nrows).
std::vector<float> multiply(q3::cpu::CpuOps &ops, const q3::Linear &layer, const std::vector<float> &x, uint32_t first,
                            uint32_t nrows) {
    const q3::Activation in = ops.allocate(kRows, kIn);
    const q3::Activation out = ops.allocate(kRows, kOut);
    std::memcpy(in.data, x.data() + size_t{first} * kIn, size_t{nrows} * kIn * sizeof(float));
    q3::StepPlan plan;
    plan.ntok = nrows;
    ops.beginStep(plan);
    ops.linear(out, in, layer);
    std::vector<float> result(size_t{nrows} * kOut);
    std::memcpy(result.data(), out.data, result.size() * sizeof(float));
    return result;
}

// All rows together are bit for bit what each is alone, and near the exact products: within `tolerance` of what the sum
// of random products is expected to be.
void testFormat(int32_t dt_weight, uint32_t nthreads, double tolerance) {
    q3::OpsOptions options{};
    options.nthreads = static_cast<int32_t>(nthreads);
    options.dt_weight = dt_weight;
    options.dt_mat = QWEN3_DTYPE_BF16;
    q3::cpu::CpuOps ops(config(), options);
    std::vector<uint16_t> weights;
    for (const float value : normals(size_t{kOut} * kIn, 0.02F)) {
        weights.push_back(q3::floatToBf16(value));
    }
    weights[5] = q3::floatToBf16(1e-30F);  // a pair that bf12 keeps raw
    const q3::LinearSource source{"w", 1, QWEN3_DTYPE_BF16, {{weights.data(), kOut, kIn, kIn, 1, nullptr}}};
    const auto layer = ops.packLinear(source);
    const std::vector<float> x = normals(size_t{kRows} * kIn, 1.0F);

    const std::vector<float> together = multiply(ops, *layer, x, 0, kRows);
    for (uint32_t r = 0; r < kRows; ++r) {
        const std::vector<float> alone = multiply(ops, *layer, x, r, 1);
        CHECK(std::memcmp(alone.data(), &together[size_t{r} * kOut], kOut * sizeof(float)) == 0);
    }
    const double spread = 0.02 * std::sqrt(static_cast<double>(kIn));
    for (uint32_t r = 0; r < kRows; ++r) {
        for (uint32_t j = 0; j < kOut; ++j) {
            double exact = 0.0;
            for (uint32_t i = 0; i < kIn; ++i) {
                exact += static_cast<double>(q3::bf16ToFloat(weights[size_t{j} * kIn + i])) *
                         static_cast<double>(x[size_t{r} * kIn + i]);
            }
            CHECK(std::fabs(static_cast<double>(together[size_t{r} * kOut + j]) - exact) <= tolerance * spread);
        }
    }
}

}  // namespace

int main() {
    for (const uint32_t nthreads : {1U, 3U}) {
        testFormat(QWEN3_DTYPE_F32, nthreads, 1e-4);
        testFormat(QWEN3_DTYPE_F16, nthreads, 1e-3);
        testFormat(QWEN3_DTYPE_BF16, nthreads, 1e-4);
        testFormat(QWEN3_DTYPE_BF12, nthreads, 1e-4);
        testFormat(QWEN3_DTYPE_INT8, nthreads, 0.05);  // several times the noise of the weights' rounding
        testFormat(QWEN3_DTYPE_INT4, nthreads, 0.6);
    }
    return q3test::finish("test_linear");
}
