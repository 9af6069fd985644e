// Every node of the InfiniCore backend on InfiniCore's CPU device, against double-precision references.
// Tolerances come from each dtype's rounding unit and the sizes of the sums involved.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <random>
#include <thread>

#include "ops/infinicore/convert.h"
#include "ops/infinicore/infinicore.h"
#include "ops/infinicore/infinicore_backend.h"
#include "runtime/error.h"

using namespace q3;
using namespace q3::infinicore;

extern "C" {
int omp_get_max_threads(void);
void omp_set_num_threads(int);
}

static int failures = 0;

#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            ++failures;                                                                                                \
            std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition);                                                \
            std::printf(__VA_ARGS__);                                                                                  \
            std::printf("\n");                                                                                         \
        }                                                                                                              \
    } while (0)

using Floats = std::vector<float>;
static constexpr double kUnit32 = 0x1p-24;  // rounding unit of float: sums inside the operators

// The most a rounding changes a value, relatively. InfiniCore 0.1.0's CPU device truncates to f16 instead of rounding.
static double unit(DType dtype) {
    return dtype == DType::kF16 ? 0x1p-10 : dtype == DType::kBf16 ? 0x1p-8 : kUnit32;
}

static std::mt19937 generator(1);
static Floats randoms(size_t n, float scale = 1.0F) {
    std::normal_distribution<float> normal(0.0F, scale);
    Floats values(n);
    for (float &value : values) {
        value = normal(generator);
    }
    return values;
}
static Floats rounded(DType dtype, Floats values) {
    std::vector<char> raw(values.size() * dtypeSize(dtype));
    floatsTo(dtype, raw.data(), values.data(), values.size());
    toFloats(dtype, values.data(), raw.data(), values.size());
    return values;
}
static std::vector<char> encoded(DType dtype, const Floats &values) {
    std::vector<char> raw(values.size() * dtypeSize(dtype) + 1);
    floatsTo(dtype, raw.data() + 1, values.data(), values.size());  // at an odd address: no alignment is promised
    return raw;
}

static void expectError(int32_t status, const char *text, const std::function<void()> &f) {
    try {
        f();
        CHECK(false, "no error, expected %d (%s)", status, text);
    } catch (const Error &error) {
        CHECK(error.status() == status, "status %d, expected %d: %s", error.status(), status, error.what());
        CHECK(std::string(error.what()).find(text) != std::string::npos, "\"%s\" lacks \"%s\"", error.what(), text);
    }
}

static void expectNear(const char *what, const Floats &actual, const std::vector<double> &expected,
                       const std::vector<double> &tolerance) {
    CHECK(actual.size() == expected.size(), "%s: %zu values, expected %zu", what, actual.size(), expected.size());
    for (size_t i = 0; i < std::min(actual.size(), expected.size()); ++i) {
        if (std::abs(actual[i] - expected[i]) <= tolerance[i]) {
            continue;  // false for NaN
        }
        CHECK(false, "%s: [%zu] is %g, expected %g +- %g", what, i, actual[i], expected[i], tolerance[i]);
        return;
    }
}

static ModelConfig smallConfig(DType dtype) {
    ModelConfig config{};
    config.nlayer = 2;
    config.d = 35;
    config.nh = 6;
    config.nkvh = 2;
    config.dh = 18;
    config.di = 29;
    config.dctx = 150;
    config.dvoc = 61;
    config.epsilon = 1e-6F;
    config.dt_logits = dtype;
    config.max_step_tokens = 64;
    return config;
}

static BackendOptions cpuOptions(DType dtype) {
    return {BackendKind::kInfinicore, DeviceType::kCpu, 0, 2, DType::kDefault, DType::kDefault, dtype};
}

static Tuning smallTuning() {
    Tuning tuning;
    tuning.block_tokens = 16;
    tuning.gather_tokens = 48;
    tuning.logits_bytes = 1000;
    return tuning;
}

// ------------------------------------------------------------------ conversions

static void testConvert() {
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
        const float half = F16::toFloat(static_cast<uint16_t>(bits));
        const float brain = BF16::toFloat(static_cast<uint16_t>(bits));
        const int exponent = static_cast<int>(bits >> 10 & 31);
        const int mantissa = static_cast<int>(bits & 1023);
        if (exponent < 31) {
            double value = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
            if (bits & 0x8000) {
                value = -value;
            }
            CHECK(half == value, "f16 %04x is %g", bits, static_cast<double>(half));
            CHECK(F16::fromFloat(half) == bits, "f16 %04x", bits);
        }
        if (!std::isnan(brain)) {
            CHECK(BF16::fromFloat(brain) == bits, "bf16 %04x", bits);
        }
    }
    CHECK(F16::fromFloat(65519.9F) == 0x7bff && F16::fromFloat(65520.0F) == 0x7c00, "f16 overflow");
    CHECK(F16::fromFloat(1.0F + 0x1p-11F) == 0x3c00 && F16::fromFloat(1.0F + 0x3p-11F) == 0x3c02, "f16 ties");
    CHECK(F16::fromFloat(0x1p-25F) == 0 && F16::fromFloat(0x3p-25F) == 2, "f16 subnormal ties");
    CHECK(F16::fromFloat(-0x1p-14F + 0x1p-26F) == 0x8400, "f16 rounds up to normal");
    CHECK(BF16::fromFloat(1.0F + 0x1p-8F) == 0x3f80 && BF16::fromFloat(1.0F + 0x3p-8F) == 0x3f82, "bf16 ties");
    CHECK(std::isnan(F16::toFloat(F16::fromFloat(NAN))) && std::isnan(BF16::toFloat(BF16::fromFloat(NAN))), "NaN");
}

// ------------------------------------------------------------------ one step's inputs

struct Step {
    StepPlan plan;
    std::vector<uint32_t> tokens;
    Floats cos;
    Floats sin;
    std::vector<std::vector<void *>> blocks;

    // sequences: (tokens, position, blocks)
    Step(const ModelConfig &config, DType dtype, std::vector<Sequence> sequences,
         std::vector<std::vector<void *>> sequence_blocks = {})
        : blocks(std::move(sequence_blocks)) {
        for (Sequence &sequence : sequences) {
            sequence.row = plan.ntok;
            plan.ntok += sequence.ntok;
            for (uint32_t i = 0; i < sequence.ntok; ++i) {
                tokens.push_back((sequence.pos + i) * 7 % config.dvoc);
                for (uint32_t j = 0; j < config.dh / 2; ++j) {
                    const double angle = (sequence.pos + i) * std::pow(1e4, -2.0 * j / config.dh);
                    cos.push_back(static_cast<float>(std::cos(angle)));
                    sin.push_back(static_cast<float>(std::sin(angle)));
                }
            }
        }
        for (size_t i = 0; i < blocks.size(); ++i) {
            sequences[i].kv_blocks = blocks[i].data();
        }
        plan.sequences = std::move(sequences);
        plan.tokens = tokens.data();
        plan.rope_cos = cos.data();
        plan.rope_sin = sin.data();
        cos_rounded = rounded(dtype, cos);
        sin_rounded = rounded(dtype, sin);
    }
    Step(const Step &) = delete;
    Floats cos_rounded;
    Floats sin_rounded;
};

// ------------------------------------------------------------------ weights and row-wise nodes

struct Matrix {  // a linear layer in several parts, each in its own memory, and its values as the backend sees them
    uint32_t rows = 0;
    uint32_t cols;
    DType source_dtype;
    std::vector<std::vector<char>> memory;
    LinearSource source;
    Floats values;
    Floats bias;

    Matrix(DType source_dtype_, DType dtype, std::vector<uint32_t> part_rows, uint32_t cols_, bool transposed,
           bool with_bias)
        : cols(cols_), source_dtype(source_dtype_) {
        source = {"test_weight", 3, {}};
        memory.reserve(2 * part_rows.size());
        for (uint32_t n : part_rows) {
            const Floats part = rounded(source_dtype, randoms(static_cast<size_t>(n) * cols, 0.3F));
            const size_t ld = (transposed ? n : cols) + 3;  // a rectangle of something wider
            Floats padded((transposed ? cols : n) * ld, NAN);
            for (uint32_t r = 0; r < n; ++r) {
                for (uint32_t c = 0; c < cols; ++c) {
                    padded[transposed ? c * ld + r : r * ld + c] = part[r * cols + c];
                }
            }
            memory.push_back(encoded(source_dtype, padded));
            HostMatrix matrix{memory.back().data() + 1, source_dtype,       n, cols,
                              transposed ? 1 : ld,      transposed ? ld : 1};
            Floats part_bias(n, 0.0F);
            if (with_bias && rows == 0) {  // later parts have none: zero
                part_bias = rounded(source_dtype, randoms(n));
                memory.push_back(encoded(source_dtype, part_bias));
                matrix.bias = memory.back().data() + 1;
                matrix.bias_dtype = source_dtype;
            }
            source.parts.push_back(matrix);
            values.insert(values.end(), part.begin(), part.end());
            bias.insert(bias.end(), part_bias.begin(), part_bias.end());
            rows += n;
        }
        values = rounded(dtype, values);
        bias = rounded(dtype, bias);
    }
};

// y = W x + b in double, and how far off the backend may be.
static void referenceLinear(const Matrix &w, const float *x, uint32_t row, DType dtype, double &y, double &tolerance) {
    double sum = 0;
    double absolute = 0;
    for (uint32_t c = 0; c < w.cols; ++c) {
        sum += static_cast<double>(w.values[row * w.cols + c]) * x[c];
        absolute += std::abs(static_cast<double>(w.values[row * w.cols + c]) * x[c]);
    }
    y = sum + w.bias[row];
    tolerance = 1.01 * unit(dtype) * (std::abs(sum) + std::abs(y)) + (w.cols + 2) * kUnit32 * absolute + 1e-7;
}

static void testLinear(DType dtype) {
    const ModelConfig config = smallConfig(dtype);
    InfinicoreBackend ops(config, cpuOptions(dtype), {}, smallTuning());
    const Step step(config, dtype, {{0, 13, 0, nullptr}});
    const uint32_t ntok = step.plan.ntok;
    for (DType source_dtype : {DType::kF16, DType::kBf16, DType::kF32}) {
        for (int variant = 0; variant < 4; ++variant) {
            const Matrix w(source_dtype, dtype, {17, 5, 9}, config.d, variant & 1, variant & 2);
            const auto packed = ops.makeLinear(w.source, nullptr);
            CHECK(packed->bytes() == (w.rows * w.cols + (variant & 2 ? w.rows : 0)) * dtypeSize(dtype), "bytes");
            const Floats x = rounded(dtype, randoms(ntok * w.cols));
            const Activation in = ops.allocate(ntok, w.cols), out = ops.allocate(ntok, w.rows);
            ops.upload(in.data, x.data(), x.size());
            const Floats garbage(ntok * w.rows, NAN);  // must not leak into the result
            ops.upload(out.data, garbage.data(), garbage.size());
            ops.beginStep(step.plan);
            ops.linear(out, in, *packed);
            std::vector<double> expected(ntok * w.rows);
            std::vector<double> tolerance(ntok * w.rows);
            for (uint32_t i = 0; i < ntok * w.rows; ++i) {
                referenceLinear(w, &x[i / w.rows * w.cols], i % w.rows, dtype, expected[i], tolerance[i]);
            }
            expectNear("linear", ops.download(out.data, expected.size()), expected, tolerance);

            Floats logits(ntok * w.rows);
            ops.readLogits(logits.data(), logits.size() / ntok, in, ntok, *packed);  // in groups of few rows
            expectNear("readLogits", logits, expected, tolerance);

            Floats rows(ntok * w.cols, NAN);
            ops.readRows(rows.data(), in, ntok);
            CHECK(rows == x, "readRows: %g is %g", static_cast<double>(rows[0]), static_cast<double>(x[0]));
        }
    }
}

static void testSwiglu(DType dtype) {
    const ModelConfig config = smallConfig(dtype);
    InfinicoreBackend ops(config, cpuOptions(dtype), {}, smallTuning());
    const Step step(config, dtype, {{0, 11, 0, nullptr}});
    const uint32_t ntok = step.plan.ntok;
    const Matrix w(dtype, dtype, {config.di, config.di}, config.d, false, false);
    LinearSource gate_up = w.source;
    gate_up.gate_up = true;
    const auto packed = ops.makeLinear(gate_up, nullptr);
    const Floats x = rounded(dtype, randoms(ntok * config.d));
    const Activation h = ops.allocate(ntok, config.d), act = ops.allocate(ntok, config.di);
    ops.upload(h.data, x.data(), x.size());
    ops.beginStep(step.plan);
    ops.linearSwiglu(act, h, *packed);
    std::vector<double> expected(ntok * config.di);
    std::vector<double> tolerance(expected.size());
    for (uint32_t i = 0; i < expected.size(); ++i) {
        double gate;
        double up;
        double gate_tolerance;
        double up_tolerance;
        const float *row = &x[i / config.di * config.d];
        referenceLinear(w, row, i % config.di, dtype, gate, gate_tolerance);
        referenceLinear(w, row, config.di + i % config.di, dtype, up, up_tolerance);
        const double silu = gate / (1 + std::exp(-gate));
        expected[i] = silu * up;
        tolerance[i] = std::abs(silu) * up_tolerance + 1.1 * (std::abs(up) + up_tolerance) * gate_tolerance +
                       (unit(dtype) + 8 * kUnit32) * std::abs(expected[i]) + 1e-7;
    }
    expectNear("linearSwiglu", ops.download(act.data, expected.size()), expected, tolerance);
}

// rmsnorm(x) * w of one row of the exact input x.
static void referenceNorm(const double *x, const Floats &w, float epsilon, DType dtype, double *y, double *tolerance) {
    double sum = 0;
    for (size_t i = 0; i < w.size(); ++i) {
        sum += x[i] * x[i];
    }
    const double scale = 1 / std::sqrt(sum / static_cast<double>(w.size()) + epsilon);
    for (size_t i = 0; i < w.size(); ++i) {
        y[i] = x[i] * scale * w[i];
        tolerance[i] = (unit(dtype) * 1.01 + static_cast<double>(w.size() + 8) * kUnit32) * std::abs(y[i]) + 1e-7;
    }
}

static void testNorms(DType dtype, DType norm_dtype) {
    const ModelConfig config = smallConfig(dtype);
    InfinicoreBackend ops(config, cpuOptions(dtype), {}, smallTuning());
    const Step step(config, dtype, {{0, 9, 0, nullptr}});
    const uint32_t ntok = step.plan.ntok;
    const uint32_t d = config.d;
    const uint32_t n = ntok * d;
    const Floats w = rounded(norm_dtype, randoms(d));
    const std::vector<char> raw = encoded(norm_dtype, w);
    const auto weight = ops.makeNorm({"norm", 0, norm_dtype, raw.data() + 1, d}, nullptr);
    const Activation x = ops.allocate(ntok, d), h = ops.allocate(ntok, d), delta = ops.allocate(ntok, d);
    const Floats x0 = rounded(dtype, randoms(n));
    const Floats delta0 = rounded(dtype, randoms(n));

    for (bool with_delta : {false, true}) {
        ops.upload(x.data, x0.data(), n);
        ops.upload(delta.data, delta0.data(), n);
        ops.beginStep(step.plan);
        const std::vector<uint32_t> rows = {8, 2, 3, 4, 0};
        const Activation gathered = ops.allocate(static_cast<uint32_t>(rows.size()), d);
        const Activation used = with_delta ? delta : Activation{};
        ops.gatherRmsnorm(gathered, x, used, rows.data(), static_cast<uint32_t>(rows.size()), *weight, config.epsilon);
        ops.addRmsnorm(h, x, used, *weight, config.epsilon);
        const Floats sums = ops.download(x.data, n);
        std::vector<double> exact(n);
        std::vector<double> expected(n);
        std::vector<double> tolerance(n);
        for (uint32_t i = 0; i < n; ++i) {
            exact[i] = static_cast<double>(x0[i]) + (with_delta ? delta0[i] : 0);
            tolerance[i] = unit(dtype) * std::abs(exact[i]) * 1.001;
        }
        expectNear("x += delta", sums, exact, tolerance);
        exact.assign(sums.begin(), sums.end());
        for (uint32_t i = 0; i < ntok; ++i) {
            referenceNorm(&exact[i * d], w, config.epsilon, dtype, &expected[i * d], &tolerance[i * d]);
        }
        expectNear("addRmsnorm", ops.download(h.data, n), expected, tolerance);
        std::vector<double> gathered_expected;
        std::vector<double> gathered_tolerance;
        for (uint32_t row : rows) {
            gathered_expected.insert(gathered_expected.end(), &expected[row * d], &expected[row * d] + d);
            gathered_tolerance.insert(gathered_tolerance.end(), &tolerance[row * d], &tolerance[row * d] + d);
        }
        expectNear("gatherRmsnorm", ops.download(gathered.data, rows.size() * d), gathered_expected,
                   gathered_tolerance);
    }
}

static void testEmbedding(DType dtype) {
    const ModelConfig config = smallConfig(dtype);
    InfinicoreBackend ops(config, cpuOptions(dtype), {}, smallTuning());
    const Step step(config, dtype, {{0, 20, 0, nullptr}});
    const uint32_t ntok = step.plan.ntok;
    const Activation x = ops.allocate(ntok, config.d);
    for (DType source_dtype : {DType::kF16, DType::kBf16, DType::kF32}) {
        Matrix table(source_dtype, dtype, {config.dvoc}, config.d, false, false);
        const auto head = ops.makeLinear(table.source, nullptr);
        const auto borrowed = ops.makeEmbedding({table.source, {}, true}, nullptr);
        const auto owned = ops.makeEmbedding({table.source, {}, false}, nullptr);
        const auto tied = ops.makeEmbedding({table.source, {head.get()}, false}, nullptr);
        const auto test = [&](const char *what, const PackedLinear &embedding) {
            ops.beginStep(step.plan);
            ops.embed(x, embedding);
            const Floats rows = ops.download(x.data, ntok * config.d);
            for (uint32_t i = 0; i < ntok * config.d; ++i) {
                CHECK(rows[i] == table.values[step.tokens[i / config.d] * config.d + i % config.d], "%s %u", what, i);
            }
        };
        test("borrowed", *borrowed);
        std::fill(table.memory[0].begin(), table.memory[0].end(), char(-1));  // the others must not read it again
        test("owned", *owned);
        test("tied", *tied);
        CHECK(borrowed->bytes() == 0 && tied->bytes() == 0, "bytes");
        CHECK(owned->bytes() == static_cast<size_t>(config.dvoc) * config.d * dtypeSize(dtype), "bytes");
    }
}

// ------------------------------------------------------------------ attention

// Runs qkNormRopeStore and attention for sequences of mixed lengths over several steps; returns all outputs.
// Each sequence is checked against the keys and values it should have by then.
class AttentionTest {
public:
    AttentionTest(DType dtype, const Tuning &tuning,
                  const std::vector<std::vector<std::pair<uint32_t, uint32_t>>> &steps)
        : dtype_(dtype), config_(smallConfig(dtype)), ops_(config_, cpuOptions(dtype), {}, tuning) {
        Floats w = rounded(dtype, randoms(2 * config_.dh));
        for (float &value : w) {
            value = std::abs(value) + 0.3F;
        }
        w = rounded(dtype, w);
        q_weight_.assign(w.begin(), w.begin() + config_.dh);
        k_weight_.assign(w.begin() + config_.dh, w.end());
        const auto raw_q = encoded(dtype, q_weight_);
        const auto raw_k = encoded(dtype, k_weight_);
        q_norm_ = ops_.makeNorm({"attn_q_norm", 0, dtype, raw_q.data() + 1, config_.dh}, nullptr);
        k_norm_ = ops_.makeNorm({"attn_k_norm", 0, dtype, raw_k.data() + 1, config_.dh}, nullptr);
        qkv_ = ops_.allocate(config_.max_step_tokens, config_.qkvWidth());
        out_ = ops_.allocate(config_.max_step_tokens, config_.nh * config_.dh);
        for (const auto &step : steps) {
            run(step);
        }
    }
    ~AttentionTest() {
        for (auto &sequence : sequences_) {
            for (void *block : sequence.blocks) {
                ops_.kvMemory().release(block);
            }
        }
    }
    Floats outputs;

private:
    struct History {
        std::vector<void *> blocks;
        uint32_t length = 0;
        Floats keys;  // [length, nkvh * dh], layer 1
        Floats values;
    };

    void run(const std::vector<std::pair<uint32_t, uint32_t>> &requests) {  // (sequence, tokens)
        std::vector<Sequence> sequences;
        std::vector<std::vector<void *>> blocks;
        for (const auto &[id, ntok] : requests) {
            if (id >= sequences_.size()) {
                sequences_.resize(id + 1);
            }
            History &history = sequences_[id];
            while (history.blocks.size() * ops_.kvBlockTokens() < history.length + ntok) {
                history.blocks.push_back(ops_.kvMemory().allocate(ops_.kvBlockBytes()));
            }
            sequences.push_back({0, ntok, history.length, nullptr});
            blocks.push_back(history.blocks);
        }
        const Step step(config_, dtype_, sequences, blocks);
        const uint32_t ntok = step.plan.ntok;
        const uint32_t width = config_.qkvWidth();
        for (uint32_t layer = 0; layer < config_.nlayer; ++layer) {
            // A row's values depend on its sequence, position and layer only, so that outputs can be compared.
            Floats input;
            for (size_t s = 0; s < requests.size(); ++s) {
                for (uint32_t i = 0; i < requests[s].second; ++i) {
                    generator.seed((requests[s].first * 1000 + sequences[s].pos + i) * 2 + layer);
                    const Floats row = randoms(width, 2.0F);
                    input.insert(input.end(), row.begin(), row.end());
                }
            }
            input = rounded(dtype_, input);
            ops_.upload(qkv_.data, input.data(), input.size());
            if (layer == 0) {
                ops_.beginStep(step.plan);
            }
            ops_.qkNormRopeStore(qkv_, *q_norm_, *k_norm_, config_.epsilon, layer);
            const Floats qkv = ops_.download(qkv_.data, static_cast<size_t>(ntok) * width);
            checkNormRope(step, input, qkv);
            ops_.attention(out_, qkv_, layer);
            const Floats out = ops_.download(out_.data, static_cast<size_t>(ntok) * config_.nh * config_.dh);
            if (layer + 1 == config_.nlayer) {
                checkAttention(step, requests, qkv, out);
                outputs.insert(outputs.end(), out.begin(), out.end());
            }
        }
    }

    void checkNormRope(const Step &step, const Floats &input, const Floats &qkv) {
        const uint32_t dh = config_.dh;
        const uint32_t half = dh / 2;
        const uint32_t heads = config_.nh + 2 * config_.nkvh;
        std::vector<double> expected(qkv.size());
        std::vector<double> tolerance(qkv.size());
        for (uint32_t head = 0; head < step.plan.ntok * heads; ++head) {
            const uint32_t token = head / heads;
            const uint32_t h = head % heads;
            std::vector<double> x(&input[head * dh], &input[head * dh] + dh);
            std::vector<double> y(dh);
            std::vector<double> t(dh);
            if (h >= config_.nh + config_.nkvh) {  // values stay as they are
                std::copy(x.begin(), x.end(), &expected[head * dh]);
                continue;
            }
            referenceNorm(x.data(), h < config_.nh ? q_weight_ : k_weight_, config_.epsilon, dtype_, y.data(),
                          t.data());
            for (uint32_t i = 0; i < half; ++i) {
                const double c = step.cos_rounded[token * half + i];
                const double s = step.sin_rounded[token * half + i];
                expected[head * dh + i] = y[i] * c - y[i + half] * s;
                expected[head * dh + half + i] = y[i] * s + y[i + half] * c;
                const double error = t[i] + t[i + half] + 3 * kUnit32 * (std::abs(y[i]) + std::abs(y[i + half]));
                tolerance[head * dh + i] = error + unit(dtype_) * std::abs(expected[head * dh + i]);
                tolerance[head * dh + half + i] = error + unit(dtype_) * std::abs(expected[head * dh + half + i]);
            }
        }
        expectNear("qkNormRopeStore", qkv, expected, tolerance);
    }

    void checkAttention(const Step &step, const std::vector<std::pair<uint32_t, uint32_t>> &requests, const Floats &qkv,
                        const Floats &out) {
        const uint32_t dh = config_.dh;
        const uint32_t width = config_.qkvWidth();
        const uint32_t kv = config_.nkvh * dh;
        std::vector<double> expected(out.size());
        std::vector<double> tolerance(out.size());
        for (size_t s = 0; s < requests.size(); ++s) {
            const Sequence &sequence = step.plan.sequences[s];
            History &history = sequences_[requests[s].first];
            for (uint32_t i = 0; i < sequence.ntok; ++i) {
                const float *row = &qkv[(sequence.row + i) * width];
                history.keys.insert(history.keys.end(), row + config_.nh * dh, row + config_.nh * dh + kv);
                history.values.insert(history.values.end(), row + config_.nh * dh + kv, row + width);
                ++history.length;
                for (uint32_t h = 0; h < config_.nh; ++h) {
                    const size_t at = ((sequence.row + i) * config_.nh + h) * dh;
                    attendOne(history, row + h * dh, h / config_.group() * dh, &expected[at], &tolerance[at]);
                }
            }
            checkBlocks(history);
        }
        expectNear("attention", out, expected, tolerance);
    }

    void attendOne(const History &history, const float *q, uint32_t offset, double *expected, double *tolerance) {
        const uint32_t dh = config_.dh;
        const uint32_t kv = config_.nkvh * dh;
        std::vector<double> p(history.length);
        double highest = -1e300;
        double error = 0;
        double sum = 0;
        for (uint32_t j = 0; j < history.length; ++j) {
            double dot = 0;
            double absolute = 0;
            for (uint32_t i = 0; i < dh; ++i) {
                dot += static_cast<double>(q[i]) * history.keys[j * kv + offset + i];
                absolute += std::abs(static_cast<double>(q[i]) * history.keys[j * kv + offset + i]);
            }
            p[j] = dot / std::sqrt(static_cast<double>(dh));
            highest = std::max(highest, p[j]);
            error = std::max(error, unit(dtype_) * std::abs(p[j]) + (dh + 4) * kUnit32 * absolute);
        }
        for (double &score : p) {
            sum += score = std::exp(score - highest);
        }
        for (uint32_t i = 0; i < dh; ++i) {
            double absolute = 0;
            expected[i] = 0;
            for (uint32_t j = 0; j < history.length; ++j) {
                expected[i] += p[j] / sum * history.values[j * kv + offset + i];
                absolute += p[j] / sum * std::abs(history.values[j * kv + offset + i]);
            }
            // Scores off by `error` change a probability by the factor exp(2 error) at most; then two roundings of
            // the probabilities, one per partial sum of values, and the sums' own.
            const double roundings = 3 + history.length / 48.0;
            tolerance[i] =
                absolute * (std::expm1(2 * error) + roundings * unit(dtype_) + (2.0 * history.length + 8) * kUnit32) +
                (dtype_ == DType::kF16 ? 1e-5 : 1e-7);
        }
    }

    // Layer 1 of the blocks holds exactly the keys and values of the sequence.
    void checkBlocks(const History &history) {
        const uint32_t block_tokens = ops_.kvBlockTokens();
        const uint32_t dh = config_.dh;
        const uint32_t kv = config_.nkvh * dh;
        const size_t n = ops_.kvBlockBytes() / dtypeSize(dtype_);
        for (size_t b = 0; b < history.blocks.size(); ++b) {
            const Floats block = ops_.download(history.blocks[b], n);
            for (uint32_t t = 0; t < block_tokens; ++t) {
                const size_t token = b * block_tokens + t;
                for (uint32_t i = 0; i < kv; ++i) {
                    const size_t at = n / 2 + (static_cast<size_t>(i / dh) * block_tokens + t) * dh + i % dh;
                    const bool filled = token < history.length;
                    const float key = filled ? history.keys[token * kv + i] : 0.0F;
                    const float value = filled ? history.values[token * kv + i] : 0.0F;
                    CHECK(block[at] == key && block[at + n / 4] == value, "block %zu token %u index %u", b, t, i);
                }
            }
        }
    }

    const DType dtype_;
    const ModelConfig config_;
    InfinicoreBackend ops_;
    Floats q_weight_;
    Floats k_weight_;
    std::unique_ptr<PackedNorm> q_norm_, k_norm_;
    Activation qkv_, out_;
    std::vector<History> sequences_;
};

static void testAttention(DType dtype) {
    // (sequence, tokens) per step: prefill, decode and chunks mixed, across the borders of blocks of 16 tokens.
    const std::vector<std::vector<std::pair<uint32_t, uint32_t>>> steps = {
        {{0, 37}, {1, 1}, {2, 16}},        {{3, 5}, {0, 1}, {1, 20}, {2, 1}}, {{0, 26}, {3, 1}, {1, 12}, {2, 15}},
        {{2, 1}, {1, 1}, {0, 1}, {3, 58}}, {{3, 3}, {0, 60}, {1, 1}},         {{0, 20}, {2, 1}},
    };
    std::vector<Tuning> tunings(5, smallTuning());
    tunings[1].score_bytes = 1;  // one query row at a time, or few
    tunings[2].query_rows = 5;
    tunings[3].mask_on_cpu = true;  // as on devices whose softmax masks wrongly
    tunings[4].mask_on_cpu = true;
    tunings[4].score_bytes = 6 * 160 * 7 * dtypeSize(dtype);
    tunings[4].query_rows = 11;
    Floats first;
    for (size_t i = 0; i < tunings.size(); ++i) {
        generator.seed(5);  // the same norm weights
        const AttentionTest test(dtype, tunings[i], steps);
        if (i == 0) {
            first = test.outputs;
        }
        CHECK(test.outputs == first, "%s: tuning %zu changes results", dtypeName(dtype), i);
    }

    // The same sequence alone and whole gives the same bits as in chunks and batched.
    const uint32_t width = smallConfig(dtype).nh * smallConfig(dtype).dh;
    generator.seed(5);
    const AttentionTest alone(dtype, smallTuning(), {{{2, 32}}});
    const auto row = [&](size_t step, size_t request) {
        size_t rows = 0;
        for (size_t s = 0; s <= step; ++s) {
            for (size_t r = 0; r < (s == step ? request : steps[s].size()); ++r) {
                rows += steps[s][r].second;
            }
        }
        return first.begin() + static_cast<ptrdiff_t>(rows * width);
    };
    CHECK(std::equal(row(0, 2), row(0, 2) + 16 * width, alone.outputs.begin()), "batched prefill differs");
    CHECK(std::equal(row(1, 3), row(1, 3) + width, alone.outputs.begin() + 16 * width), "decode differs");
    CHECK(std::equal(row(2, 3), row(2, 3) + 15 * width, alone.outputs.begin() + 17 * width), "chunk differs");

    Tuning large;  // the defaults: everything in one block
    generator.seed(5);
    const AttentionTest defaults(dtype, large, {{{0, 37}, {1, 1}}, {{0, 1}, {1, 30}}});
}

// ------------------------------------------------------------------ errors and resources

static void testErrors() {
    const ModelConfig config = smallConfig(DType::kF16);
    BackendOptions options = cpuOptions(DType::kF16);
    options.device_id = 5;
    expectError(QWEN3_STATUS_DEVICE_NOT_FOUND, "InfiniCore sees 1 cpu device",
                [&] { InfinicoreBackend(config, options); });
    options.device_id = -1;
    expectError(QWEN3_STATUS_DEVICE_NOT_FOUND, "cpu:-1", [&] { InfinicoreBackend(config, options); });
    options = cpuOptions(DType::kF16);
    options.device = DeviceType::kHygon;  // 0.1.0 cannot reach it whatever it was built for
    expectError(QWEN3_STATUS_DEVICE_TYPE_NOT_SUPPORTED, "--sugon-dcu", [&] { InfinicoreBackend(config, options); });
    options = cpuOptions(DType::kF16);
    options.dt_kv = DType::kBf16;
    expectError(QWEN3_STATUS_BAD_PARAM, "dt_kv is bf16", [&] { InfinicoreBackend(config, options); });
    options = cpuOptions(DType::kF16);
    options.dt_weight = DType::kF32;
    expectError(QWEN3_STATUS_BAD_PARAM, "dt_weight is f32", [&] { InfinicoreBackend(config, options); });
    ModelConfig huge = config;
    huge.max_step_tokens = 65536;
    huge.d = 2000000000;
    expectError(QWEN3_STATUS_OUT_OF_MEMORY, "cannot allocate",
                [&] { InfinicoreBackend(huge, cpuOptions(DType::kF16)); });

    InfinicoreBackend ops(config, cpuOptions(DType::kF16), {}, smallTuning());
    CHECK(ops.description() == "backend=infinicore device=cpu:0 threads=2 avoids=add_rms_norm,embedding,silu_and_mul,"
                               "paged_attention,graphs"
                               " self_test=passed",
          "%s", ops.description().c_str());
    CHECK(std::string(version()) == "0.1.0", "%s", version());
    CHECK(ops.threads() == 2, "%u", ops.threads());
    const size_t before = ops.scratchBytes();
    ops.allocate(3, 5);
    CHECK(ops.scratchBytes() == before + 30, "%zu", ops.scratchBytes());

    const DType types[] = {DType::kF16, DType::kBf16, DType::kF32};
    for (DType dtype : types) {
        for (const bool transposed : {false, true}) {
            Matrix w(dtype, DType::kF16, {4, 6}, config.d, transposed, true);
            HostMatrix &part = w.source.parts[1];
            char *const bad = const_cast<char *>(static_cast<const char *>(part.data)) +
                              (2 * part.row_stride + 7 * part.col_stride) * dtypeSize(dtype);
            const float values[] = {NAN, -INFINITY};
            floatsTo(dtype, bad, &values[0], 1);
            expectError(QWEN3_STATUS_BAD_WEIGHTS, "test_weight of layer 3: row 6, column 7 (nan) is NaN",
                        [&] { ops.makeLinear(w.source, nullptr); });
            floatsTo(dtype, bad, &values[1], 1);
            expectError(QWEN3_STATUS_BAD_WEIGHTS, "row 6, column 7 (-inf) is infinite",
                        [&] { ops.makeLinear(w.source, nullptr); });
            for (bool borrow : {false, true}) {
                expectError(QWEN3_STATUS_BAD_WEIGHTS, "row 6, column 7",
                            [&] { ops.makeEmbedding({w.source, {}, borrow}, nullptr); });
            }
            if (dtype == DType::kF16) {
                continue;
            }
            const float large = 1e5F;
            floatsTo(dtype, bad, &large, 1);
            expectError(QWEN3_STATUS_BAD_WEIGHTS, "overflows f16", [&] { ops.makeLinear(w.source, nullptr); });
        }
        Matrix w(dtype, DType::kF16, {4}, config.d, false, true);
        const float nan = NAN;
        floatsTo(dtype, const_cast<char *>(static_cast<const char *>(w.source.parts[0].bias)) + 3 * dtypeSize(dtype),
                 &nan, 1);
        expectError(QWEN3_STATUS_BAD_WEIGHTS, "test_weight bias of layer 3: row 3",
                    [&] { ops.makeLinear(w.source, nullptr); });
        Floats norm(config.d, 1.0F);
        norm[8] = INFINITY;
        const auto raw = encoded(dtype, norm);
        expectError(QWEN3_STATUS_BAD_WEIGHTS, "weight norm: row 0, column 8 (inf)",
                    [&] { ops.makeNorm({"norm", -1, dtype, raw.data() + 1, config.d}, nullptr); });
    }

    // After errors the backend goes on.
    const Matrix table(DType::kF16, DType::kF16, {20}, config.d, false, false);
    const auto embedding = ops.makeEmbedding({table.source, {}, false}, nullptr);
    const Activation x = ops.allocate(config.max_step_tokens, config.d);
    Step step(config, DType::kF16, {{0, 4, 0, nullptr}});  // tokens 0, 7, 14, 21
    ops.beginStep(step.plan);
    expectError(QWEN3_STATUS_BAD_PARAM, "token 21 at 3", [&] { ops.embed(x, *embedding); });
    Step big(config, DType::kF16, {{0, 65, 0, nullptr}});
    expectError(QWEN3_STATUS_INTERNAL_ERROR, "65 tokens", [&] { ops.beginStep(big.plan); });
    expectError(QWEN3_STATUS_INTERNAL_ERROR, "no step", [&] { ops.embed(x, *embedding); });
    step.tokens[3] = 19;
    ops.beginStep(step.plan);
    ops.embed(x, *embedding);
    CHECK(ops.download(x.data, 4 * config.d)[3 * config.d] == table.values[19 * config.d], "after errors");
}

// An operator of a newer version whose arguments are not those we know is called by nobody.
static void testUnknownSignatures() {
    int calls = 0;
    const auto known = [&](int, const void *) {
        ++calls;
        return INFINI_STATUS_SUCCESS;
    };
    const auto longer = [&](int, const void *, void *) {
        ++calls;
        return INFINI_STATUS_SUCCESS;
    };
    const void *const data = &calls;
    CHECK(callIfKnown(known, 1, data) == INFINI_STATUS_SUCCESS && calls == 1, "%d", calls);
    CHECK(callIfKnown(longer, 1, data) == INFINI_STATUS_NOT_IMPLEMENTED && calls == 1, "%d", calls);
    const auto writes = [&](int, void *) { return INFINI_STATUS_SUCCESS; };  // would write to what we only read
    CHECK(callIfKnown(writes, 1, data) == INFINI_STATUS_NOT_IMPLEMENTED, "const");
}

static void testBlockMemory() {
    const ModelConfig config = smallConfig(DType::kBf16);
    InfinicoreBackend ops(config, cpuOptions(DType::kBf16), {}, {});
    CHECK(ops.kvBlockTokens() == 160, "%u", ops.kvBlockTokens());  // dctx 150
    CHECK(ops.kvBlockBytes() == size_t{2} * 2 * 2 * 160 * 18 * 2, "%zu", ops.kvBlockBytes());
    ModelConfig long_config = config;
    long_config.dctx = 40960;
    CHECK(InfinicoreBackend(long_config, cpuOptions(DType::kBf16), {}, {}).kvBlockTokens() == 256, "block tokens");
    const size_t n = ops.kvBlockBytes() / 2;
    void *a = ops.kvMemory().allocate(ops.kvBlockBytes());
    void *b = ops.kvMemory().allocate(ops.kvBlockBytes());
    CHECK(ops.download(a, n) == Floats(n, 0.0F), "zeroed");
    const Floats values = rounded(DType::kBf16, randoms(n));
    ops.upload(a, values.data(), n);
    ops.kvMemory().copy(b, a, ops.kvBlockBytes());
    CHECK(ops.download(b, n) == values, "copy");
    ops.kvMemory().release(a);
    ops.kvMemory().release(b);
    ops.kvMemory().release(nullptr);
    expectError(QWEN3_STATUS_OUT_OF_MEMORY, "cannot allocate", [&] { ops.kvMemory().allocate(size_t{1} << 60); });
}

// Descriptors are found by value (epsilon included), stay bounded, and may be destroyed on any thread.
static void testDescriptors() {
    const ModelConfig config = smallConfig(DType::kF32);
    std::unique_ptr<InfinicoreBackend> ops;
    std::unique_ptr<PackedNorm> weight;
    std::thread([&] {
        omp_set_num_threads(1);  // of this thread; the backend uses 2
        ops = std::make_unique<InfinicoreBackend>(config, cpuOptions(DType::kF32), module::HostRanks{}, smallTuning());
        const Floats ones(config.d, 1.0F);
        weight = ops->makeNorm({"norm", 0, DType::kF32, ones.data(), config.d}, nullptr);
        const Activation x = ops->allocate(1, config.d), h = ops->allocate(1, config.d);
        const Floats values(config.d, 2.0F);
        ops->upload(x.data, values.data(), config.d);
        const Step step(config, DType::kF32, {{0, 1, 0, nullptr}});
        ops->beginStep(step.plan);
        for (int round = 0; round < 2; ++round) {
            for (int i = 0; i < 3000; ++i) {
                const float epsilon = static_cast<float>(i) * 0.01F;
                ops->addRmsnorm(h, x, {}, *weight, epsilon);
                if (i % 100 != 0) {
                    continue;
                }
                const double expected = 2 / std::sqrt(4 + epsilon);
                CHECK(std::abs(ops->download(h.data, 1)[0] - expected) < 1e-5, "epsilon %g", epsilon);
            }
        }
        const size_t size = ops->operators().cache().size();
        CHECK(size <= 2 * DescriptorCache::kGeneration && size > DescriptorCache::kGeneration, "%zu descriptors", size);
        CHECK(omp_get_max_threads() == 1, "the caller's OpenMP setting changed");
    }).join();
    ops.reset();  // before the weights, which keep the device alive
    weight.reset();
}

int main() {
    testConvert();
    for (DType dtype : {DType::kF32, DType::kF16, DType::kBf16}) {
        testLinear(dtype);
        testSwiglu(dtype);
        for (DType norm_dtype : {DType::kF32, DType::kF16, DType::kBf16}) {
            testNorms(dtype, norm_dtype);
        }
        testEmbedding(dtype);
        testAttention(dtype);
    }
    testErrors();
    testUnknownSignatures();
    testBlockMemory();
    testDescriptors();
    if (failures == 0) {
        std::printf("ok\n");
    }
    return failures == 0 ? 0 : 1;
}
