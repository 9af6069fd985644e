// Linears alone, without a backend, at sizes that the models of the other tests do not have: k that is cut into blocks
// for many rows (more than 2048 in bf16), with an odd rest, more rows than one tile, more panels than one claim, and
// more panels than a claim of few rows takes, whose kernels read far apart from each other.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "ops/cpu/kernels/dispatch.h"
#include "ops/cpu/linear.h"
#include "ops/cpu/pack/pack.h"
#include "ops/half.h"
#include "runtime/thread_pool.h"

using namespace q3::cpu;

namespace {

constexpr uint32_t kRows = 30;

struct Shape {
    uint32_t in, out;
};
constexpr Shape kDeep = {6405, 91};  // three blocks of bf16
constexpr Shape kWide = {70, 3 * 1024 + 500};

std::mt19937 rng(7);

std::vector<float> normals(size_t n, float scale) {
    std::normal_distribution<float> normal(0.0F, scale);
    std::vector<float> out(n);
    for (float &value : out) {
        value = normal(rng);
    }
    return out;
}

// out[nrows][layer.out] of rows [first, first + nrows).
std::vector<float> multiply(Linears &linears, const CpuLinear &layer, const std::vector<float> &x, uint32_t first,
                            uint32_t nrows) {
    std::vector<float> out(size_t{nrows} * layer.out);
    linears.multiply(out.data(), layer.out, x.data() + size_t{first} * layer.in, nrows, layer);
    return out;
}

// All rows together give the same bits as each row alone, and as some of them: as many as one tile and as two tiles of
// weights from memory take. They are near the exact products: within
// `tolerance` of the size that a sum of random products is expected to have. fine: the layer meets codes of 16 bits in
// a model that is multiplied with codes of 8, and gives the bits that it gives in a model of 16.
void testFormat(Shape shape, q3::DType dt_weight, uint32_t nthreads, double tolerance,
                q3::Activations activations = q3::Activations::kAuto, bool fine = false) {
    q3::ThreadPool pool(nthreads);
    Linears linears(selectKernels(), pool, roundUp(kRows, kMaxTileRows), shape.in, formatOf(dt_weight),
                    resolveActivations(activations, dt_weight, selectKernels()));
    std::vector<uint16_t> weights;
    for (const float value : normals(size_t{shape.out} * shape.in, 0.02F)) {
        weights.push_back(q3::floatToBf16(value));
    }
    weights[5] = q3::floatToBf16(1e-30F);  // a pair that bf12 keeps raw
    const q3::LinearSource source{"w", 1, {{weights.data(), q3::DType::kBf16, shape.out, shape.in, shape.in, 1}}};
    const auto layer = packPanels(source, formatOf(dt_weight), pool);
    layer->fine_codes = fine;
    const std::vector<float> x = normals(size_t{kRows} * shape.in, 1.0F);

    const std::vector<float> together = multiply(linears, *layer, x, 0, kRows);
    for (const uint32_t count : {1U, 2U, 15U, 20U}) {
        for (uint32_t r = 0; r + count <= kRows; r += count) {
            const std::vector<float> few = multiply(linears, *layer, x, r, count);
            CHECK(std::memcmp(few.data(), &together[size_t{r} * shape.out], few.size() * sizeof(float)) == 0);
        }
    }
    if (fine) {
        Linears finer(selectKernels(), pool, roundUp(kRows, kMaxTileRows), shape.in, formatOf(dt_weight),
                      resolveActivations(q3::Activations::kInt16, dt_weight, selectKernels()));
        CHECK(multiply(finer, *layer, x, 0, kRows) == together);
    }
    const double spread = 0.02 * std::sqrt(static_cast<double>(shape.in));
    for (uint32_t r = 0; r < kRows; ++r) {
        for (uint32_t j = 0; j < shape.out; ++j) {
            double exact = 0.0;
            for (uint32_t i = 0; i < shape.in; ++i) {
                exact += static_cast<double>(q3::bf16ToFloat(weights[size_t{j} * shape.in + i])) *
                         static_cast<double>(x[size_t{r} * shape.in + i]);
            }
            CHECK(std::fabs(static_cast<double>(together[size_t{r} * shape.out + j]) - exact) <= tolerance * spread);
        }
    }
}

}  // namespace

int main() {
    for (const Shape shape : {kDeep, kWide}) {
        for (const uint32_t nthreads : {1U, 3U}) {
            testFormat(shape, q3::DType::kF32, nthreads, 1e-4);
            testFormat(shape, q3::DType::kF16, nthreads, 1e-3);
            for (const q3::DType format : {q3::DType::kBf16, q3::DType::kBf12}) {
                testFormat(shape, format, nthreads, 1e-4, q3::Activations::kF32);
                testFormat(shape, format, nthreads, 2e-4, q3::Activations::kBf16x2);
                testFormat(shape, format, nthreads, 2e-2, q3::Activations::kBf16);
            }
            // Several times the noise of the weights' rounding.
            testFormat(shape, q3::DType::kInt8, nthreads, 0.05, q3::Activations::kInt16);
            testFormat(shape, q3::DType::kInt8, nthreads, 0.08, q3::Activations::kInt8);
            testFormat(shape, q3::DType::kInt8, nthreads, 0.05, q3::Activations::kInt8, true);
            testFormat(shape, q3::DType::kInt4, nthreads, 0.6, q3::Activations::kInt16);
            testFormat(shape, q3::DType::kInt4, nthreads, 0.6, q3::Activations::kInt8);
        }
    }
    return q3test::finish("test_linear");
}
