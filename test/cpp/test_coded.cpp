// Codes of quantised checkpoints: what is packed are the values that the reader decodes (which test/parity compares
// with numpy and gguf), from every column on, and every layer is multiplied as its packed values are.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "ops/cpu/pack/affine.h"
#include "ops/cpu/pack/column_order.h"
#include "ops/cpu/pack/pack.h"
#include "ops/cpu/panel_element.h"
#include "ops/stored.h"
#include "runtime/error.h"

using namespace q3;
using namespace q3::cpu;

namespace {

constexpr uint32_t kRows = 72;
constexpr uint32_t kCols = 512;

std::mt19937 rng(3);

// Bytes below 0x40: halves, bf16 and floats among them are numbers.
std::vector<char> randomBytes(size_t n) {
    std::vector<char> bytes(n);
    for (char &byte : bytes) {
        byte = static_cast<char>(rng() & 0x3fU);
    }
    return bytes;
}

float weightOf(const CpuLinear &linear, uint32_t row, uint32_t col) {
    float value = NAN;
    forEachFormat([&](auto format) {
        constexpr WeightFormat T = decltype(format)::value;
        if (T == linear.format) {
            value = weightAt<T>(linear.panel(row / kPanelRows), row % kPanelRows, col);
        }
    });
    return value;
}

void testPacked(StoredMatrix m, WeightFormat expected, ThreadPool &pool) {
    const std::vector<char> data = randomBytes(size_t{kRows} * kCols * 2);
    const std::vector<char> scales = randomBytes(size_t{kRows} * kCols);
    m.rows = kRows;
    m.cols = kCols;
    m.row_stride = m.rowsAreColumns() ? 1 : kCols;
    m.col_stride = m.rowsAreColumns() ? kRows : 1;
    m.data = data.data();
    m.scales = m.scale_dtype == DType::kDefault ? nullptr : scales.data();
    m.zeros = m.zero_dtype == DType::kDefault ? nullptr : data.data();
    m.block_rows = 1;
    StoredReader reader(m);
    std::vector<float> values(size_t{kRows} * kCols);
    CHECK(reader.floats({0, kRows, 0, kCols}, values.data()));
    for (const uint32_t first : {0U, 256U, 64U, 16U, 8U}) {
        HostMatrix part{m.data, m.dtype, 50, 200, m.row_stride, m.col_stride};
        part.stored = &m;
        part.first_row = 8;
        part.first_col = first;
        const LinearSource source{"coded", 0, {part}};
        const WeightFormat format = formatAsGiven(source);
        CHECK(first % 256 != 0 || format == expected);
        CHECK(first % 16 != 0 || isAffine(format) || m.dtype == DType::kF8E4m3);
        const auto packed = packPanels(source, format, pool);
        for (uint32_t row = 0; row < part.rows; ++row) {
            for (uint32_t col = 0; col < part.cols; ++col) {
                const float value = values[size_t{part.first_row + row} * kCols + first + col];
                CHECK(weightOf(*packed, row, col) == value);
            }
        }
    }
}

// Columns in groups in any order, from every column on: each is packed once, beside those of its group.
void testOrdered(uint32_t block_cols, DType scales, const std::vector<uint32_t> &groups, WeightFormat expected,
                 ThreadPool &pool) {
    const std::vector<char> data = randomBytes(size_t{kRows} * kCols * 2);
    StoredMatrix m;
    m.dtype = DType::kU4;
    m.layout = QWEN3_LAYOUT_GPTQ;
    m.rows = kRows;
    m.cols = kCols;
    m.row_stride = 1;
    m.col_stride = kRows;
    m.data = m.scales = m.zeros = data.data();
    m.scale_dtype = scales;
    m.zero_dtype = DType::kU4;
    m.block_rows = 1;
    m.block_cols = block_cols;
    m.groups = groups;
    StoredReader reader(m);
    std::vector<float> values(size_t{kRows} * kCols);
    CHECK(reader.floats({0, kRows, 0, kCols}, values.data()));
    for (const uint32_t first : {0U, 19U, kCols - 200}) {
        HostMatrix part{m.data, m.dtype, 50, first == 0 ? kCols : 200, m.row_stride, m.col_stride};
        part.stored = &m;
        part.first_row = 8;
        part.first_col = first;
        const LinearSource source{"coded", 0, {part}};
        CHECK(formatAsGiven(source) == expected);
        const auto packed = packPanels(source, formatAsGiven(source), pool);
        CHECK(packed->inputs == part.cols && packed->order.size() == (expected == kF32 ? 0 : packed->in));
        std::vector<uint32_t> seen(part.cols, 0);
        for (uint32_t k = 0; k < packed->in; ++k) {
            const uint32_t col = expected == kF32 ? k : packed->order[k];
            if (col == kNoColumn) {
                continue;
            }
            ++seen[col];
            if (expected != kF32) {
                const uint32_t leader = packed->order[k / kGroup * kGroup];
                CHECK(leader != kNoColumn && groups[first + leader] == groups[first + col]);
            }
            for (uint32_t row = 0; row < part.rows; ++row) {
                CHECK(weightOf(*packed, row, k) == values[size_t{part.first_row + row} * kCols + first + col]);
            }
        }
        CHECK(std::all_of(seen.begin(), seen.end(), [](uint32_t times) { return times == 1; }));
    }
}

void testOrders(ThreadPool &pool) {
    const auto shuffled = [](uint32_t block_cols) {
        std::vector<uint32_t> groups(kCols);
        for (uint32_t col = 0; col < kCols; ++col) {
            groups[col] = col / block_cols;
        }
        std::shuffle(groups.begin(), groups.end(), rng);
        return groups;
    };
    testOrdered(32, DType::kF16, shuffled(32), kA4z, pool);
    testOrdered(128, DType::kBf16, shuffled(128), kA4w, pool);
    testOrdered(96, DType::kF16, shuffled(96), kA4z, pool);  // the last group has 32 columns
    std::vector<uint32_t> uneven(kCols);
    for (uint32_t &group : uneven) {
        group = rng() % 5 * (rng() % 2);
    }
    testOrdered(64, DType::kF16, uneven, kA4z, pool);
    testOrdered(4, DType::kF16, shuffled(4), kF32, pool);  // a group of codes for 4 columns takes more than floats do
    // Layers whose parts differ in their orders: q, k and v become layers of their own, and so do gate and up.
    StoredMatrix matrices[3];
    std::vector<HostMatrix> parts;
    for (StoredMatrix &m : matrices) {
        m.dtype = DType::kU4;
        m.rows = 32;
        m.cols = kCols;
        m.scale_dtype = DType::kF16;
        m.zero_offset = 8;
        m.block_cols = 32;
        m.groups = &m == &matrices[1] ? matrices[0].groups : shuffled(32);
        parts.push_back({&m, m.dtype, m.rows, kCols, 1, m.rows});
        parts.back().stored = &m;
    }
    CHECK(splitByFormat({"qkv", 0, parts}).size() == 2);
    CHECK(formatAsGiven(LinearSource{"qkv", 0, parts}) == kF32);
    LinearSource gate_up{"gate_up", 0, {parts[0], parts[1]}};
    gate_up.gate_up = true;
    CHECK(splitByFormat(gate_up).size() == 1 && formatAsGiven(gate_up) == kA4);
    gate_up.parts[1] = parts[2];
    CHECK(splitByFormat(gate_up).size() == 2 && !splitByFormat(gate_up)[1].gate_up);
    // Experts have orders of their own, their gate and up the same one.
    LinearSource experts{"experts", 0, {parts[0], parts[1], parts[2], parts[2]}};
    experts.gate_up = true;
    experts.experts = 2;
    CHECK(splitByFormat(experts).size() == 1 && formatAsGiven(experts) == kA4);
    std::swap(experts.parts[1], experts.parts[2]);
    CHECK(formatAsGiven(experts) == kF32);
}

// A scale that is no number is found, with its place.
void testNotFinite(const StoredMatrix &m, WeightFormat format, const char *place, ThreadPool &pool) {
    HostMatrix part{m.data, m.dtype, kRows, kCols, m.row_stride, m.col_stride};
    part.stored = &m;
    try {
        packPanels({"coded", 4, {part}}, format, pool);
        CHECK(false);
    } catch (const Error &error) {
        CHECK(error.status() == QWEN3_STATUS_BAD_WEIGHTS);
        CHECK(std::strstr(error.what(), "coded of layer 4 is NaN") != nullptr);
        CHECK(std::strstr(error.what(), place) != nullptr);
    }
}

void testNotFinite(ThreadPool &pool) {
    StoredMatrix m;
    std::vector<char> data = randomBytes(size_t{kRows} * kCols / 32 * 34);
    const uint16_t infinity = 0x7c00;
    std::memcpy(data.data() + (20 * (kCols / 32) + 3) * 34, &infinity, sizeof infinity);
    m.dtype = DType::kGgufQ8_0;
    m.rows = kRows;
    m.cols = m.row_stride = kCols;
    m.col_stride = 1;
    m.data = data.data();
    testNotFinite(m, kA8, "row 20, column 96", pool);
    // Columns in any order: the first one that has the scale.
    std::vector<uint16_t> scales(size_t{kRows} * kCols / 32, 0x3c00);
    scales[7 * (kCols / 32) + 5] = infinity;
    m.dtype = DType::kI8;
    m.scales = scales.data();
    m.scale_dtype = DType::kF16;
    m.block_rows = 1;
    m.block_cols = 32;
    for (uint32_t col = 0; col < kCols; ++col) {
        m.groups.push_back((col + 3) % (kCols / 32));
    }
    testNotFinite(m, kA8, "row 7, column 2", pool);
}

}  // namespace

int main() {
    ThreadPool pool(2);
    const struct {
        DType dtype;
        WeightFormat format;
    } blocks[] = {
        {DType::kGgufQ4_0, kA4}, {DType::kGgufQ4_1, kAg}, {DType::kGgufQ5_0, kA8},  {DType::kGgufQ5_1, kAg},
        {DType::kGgufQ8_0, kA8}, {DType::kGgufQ2K, kK8},  {DType::kGgufQ3K, kK8},   {DType::kGgufQ4K, kK4},
        {DType::kGgufQ5K, kK5},  {DType::kGgufQ6K, kK6},  {DType::kGgufIq4Nl, kA8}, {DType::kGgufIq4Xs, kK8},
    };
    for (const auto &block : blocks) {
        StoredMatrix m;
        m.dtype = block.dtype;
        testPacked(m, block.format, pool);
    }
    for (const uint32_t group : {16U, 32U, 128U, kCols}) {
        const bool whole = group % kGroup == 0;
        const auto codes = [&](DType dtype, int32_t layout, DType scales, DType zeros, int32_t offset,
                               WeightFormat format) {
            StoredMatrix m;
            m.dtype = dtype;
            m.layout = layout;
            m.block_cols = group;
            m.scale_dtype = scales;
            m.zero_dtype = zeros;
            m.zero_offset = offset;
            testPacked(m, whole ? format : kAg, pool);
        };
        codes(DType::kU4, QWEN3_LAYOUT_GPTQ, DType::kF16, DType::kU4, 1, kA4z);
        codes(DType::kU4, QWEN3_LAYOUT_AWQ, DType::kF16, DType::kU4, 0, kA4z);
        codes(DType::kU4, QWEN3_LAYOUT_PACK_QUANTIZED, DType::kF16, DType::kDefault, 8, kA4);
        codes(DType::kU4, QWEN3_LAYOUT_PACK_QUANTIZED, DType::kBf16, DType::kU4, 0, kA4w);
        codes(DType::kU8, QWEN3_LAYOUT_GPTQ, DType::kF16, DType::kDefault, 128, kA8);
        codes(DType::kU8, QWEN3_LAYOUT_GPTQ, DType::kF16, DType::kU8, 1, kAg);
        codes(DType::kI8, QWEN3_LAYOUT_PLAIN, DType::kBf16, DType::kDefault, 0, kA8w);
        codes(DType::kI8, QWEN3_LAYOUT_PLAIN, DType::kF32, DType::kF32, 0, kAg);
        codes(DType::kU4, QWEN3_LAYOUT_PLAIN, DType::kF32, DType::kI8, -3, kAg);
        StoredMatrix m;
        m.dtype = DType::kF8E4m3;
        m.block_cols = group;
        m.scale_dtype = DType::kBf16;
        testPacked(m, group % kF8Group == 0 ? kF8 : kF32, pool);
    }
    testNotFinite(pool);
    testOrders(pool);
    return q3test::finish("test_coded");
}
