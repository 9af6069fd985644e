#include "ops/cpu/pack.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>

#include "ops/cpu/quant.h"
#include "ops/half.h"
#include "runtime/error.h"

namespace q3::cpu {
namespace {

// Tensors come at any alignment, so elements are read with memcpy.
template <typename T> T readAs(const char *p) {
    T value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

float elementAsFloat(const char *p, int32_t dtype) {
    switch (dtype) {
    case QWEN3_DTYPE_F16:
        return f16ToFloat(readAs<uint16_t>(p));
    case QWEN3_DTYPE_BF16:
        return bf16ToFloat(readAs<uint16_t>(p));
    default:
        return readAs<float>(p);
    }
}

// The bit pattern of one element as `to`; exact when the types are equal.
template <typename Packed> Packed convertElement(const char *p, int32_t from, int32_t to) {
    if constexpr (sizeof(Packed) == 4) {
        return floatBits(elementAsFloat(p, from));
    } else {
        if (to == from) {
            return readAs<uint16_t>(p);
        }
        const float value = elementAsFloat(p, from);
        return to == QWEN3_DTYPE_F16 ? floatToF16(value) : floatToBf16(value);
    }
}

std::string describe(const char *name, int32_t layer) {
    return layer < 0 ? std::string(name) : std::string(name) + " of layer " + std::to_string(layer);
}

// Reads whole rows of a stacked source as `dtype` and remembers the first bad element of all threads: NaN, infinite, or
// too large for the type.
template <typename Packed> class RowReader {
public:
    RowReader(const LinearSource &source, int32_t dtype) : source_(source), dtype_(dtype) {}

    void read(uint32_t row, std::vector<Packed> &out) {
        size_t part = 0;
        uint32_t local = row;
        while (local >= source_.parts[part].rows) {
            local -= source_.parts[part].rows;
            ++part;
        }
        const HostMatrix &matrix = source_.parts[part];
        const size_t size = dtypeSize(source_.dtype);
        const char *start = static_cast<const char *>(matrix.data) + local * matrix.row_stride * size;
        if (dtype_ == source_.dtype && matrix.col_stride == 1) {
            std::memcpy(out.data(), start, out.size() * size);
        } else {
            for (size_t i = 0; i < out.size(); ++i) {
                out[i] = convertElement<Packed>(start + i * matrix.col_stride * size, source_.dtype, dtype_);
            }
        }
        const int64_t bad = findNonFinite(out.data(), out.size(), dtype_);
        if (bad >= 0) {
            uint64_t expected = kNone;
            bad_.compare_exchange_strong(expected, uint64_t{row} << 32 | static_cast<uint64_t>(bad));
        }
    }

    void check() const {
        const uint64_t bad = bad_.load();
        if (bad != kNone) {
            fail(QWEN3_STATUS_BAD_WEIGHTS, "%s is NaN, infinite or too large for %s at row %u, column %u",
                 describe(source_.name, source_.layer).c_str(), dtypeName(dtype_), static_cast<uint32_t>(bad >> 32),
                 static_cast<uint32_t>(bad));
        }
    }

private:
    static constexpr uint64_t kNone = ~uint64_t{0};
    const LinearSource &source_;
    int32_t dtype_;
    std::atomic<uint64_t> bad_{kNone};
};

// Where the rows of panel p begin and where the rows it may take end.
struct PanelRows {
    uint32_t first;
    uint32_t end;
};

PanelRows panelRows(const CpuLinear &linear, uint32_t p) {
    const uint32_t block = linear.interleaved ? p / 2 : p;
    const uint32_t offset = linear.interleaved && p % 2 == 1 ? linear.out : 0;
    return {offset + block * kPanelRows, offset + linear.out};
}

// Places row j of a panel; rows past the end of the layer stay zero.
template <typename Packed>
void placeRow(const std::vector<Packed> &row, WeightType type, uint32_t j, char *panel_bytes) {
    const auto k = static_cast<uint32_t>(row.size());
    if constexpr (sizeof(Packed) == 4) {
        if (type == kQ8 || type == kQ4) {
            const auto *floats = reinterpret_cast<const float *>(row.data());
            (type == kQ8 ? quantizeRowQ8 : quantizeRowQ4)(floats, k, j, panel_bytes);
            return;
        }
    }
    auto *panel = reinterpret_cast<Packed *>(panel_bytes);
    if (type == kBf16) {
        for (uint32_t i = 0; i < k; ++i) {
            panel[(size_t{i} / 2 * kPanelRows + j) * 2 + i % 2] = row[i];
        }
    } else {
        for (uint32_t i = 0; i < k; ++i) {
            panel[size_t{i} * kPanelRows + j] = row[i];
        }
    }
}

template <typename Packed> void packAll(const LinearSource &source, CpuLinear &linear, ThreadPool &pool) {
    constexpr bool wide = sizeof(Packed) == 4;
    RowReader<Packed> reader(source, wide ? QWEN3_DTYPE_F32 : linear.type == kF16 ? QWEN3_DTYPE_F16 : QWEN3_DTYPE_BF16);
    // One row buffer per thread, allocated here: the pool's body must not throw.
    std::vector<std::vector<Packed>> rows(pool.size(), std::vector<Packed>(linear.in));
    pool.parallelFor(linear.npanels, 1, [&](uint32_t begin, uint32_t end, uint32_t thread) {
        for (uint32_t p = begin; p < end; ++p) {
            const PanelRows range = panelRows(linear, p);
            for (uint32_t j = 0; j < kPanelRows && range.first + j < range.end; ++j) {
                reader.read(range.first + j, rows[thread]);
                placeRow<Packed>(rows[thread], linear.type, j, linear.panels.as<char>() + p * linear.panel_bytes);
            }
        }
    });
    reader.check();
}

// bf12 needs the 16 rows of a panel together, and how much stays raw before the raw pairs get their memory: two
// passes.
void packAllBf12(const LinearSource &source, CpuLinear &linear, ThreadPool &pool) {
    RowReader<uint16_t> reader(source, QWEN3_DTYPE_BF16);
    const size_t k = linear.in;
    struct Scratch {
        std::vector<uint16_t> rows;  // [16][k]
        std::vector<uint16_t> row;
    };
    std::vector<Scratch> scratch(pool.size(), {std::vector<uint16_t>(k * kPanelRows), std::vector<uint16_t>(k)});
    const auto read_panel = [&](uint32_t p, Scratch &s) {
        const PanelRows range = panelRows(linear, p);
        std::fill(s.rows.begin(), s.rows.end(), uint16_t{0});
        for (uint32_t j = 0; j < kPanelRows && range.first + j < range.end; ++j) {
            reader.read(range.first + j, s.row);
            std::copy(s.row.begin(), s.row.end(), s.rows.begin() + static_cast<ptrdiff_t>(j * k));
        }
    };
    std::vector<size_t> raw_pairs(size_t{linear.npanels} + 1, 0);
    pool.parallelFor(linear.npanels, 1, [&](uint32_t begin, uint32_t end, uint32_t thread) {
        for (uint32_t p = begin; p < end; ++p) {
            read_panel(p, scratch[thread]);
            raw_pairs[p + 1] = countRawBf12(scratch[thread].rows.data(), linear.in);
        }
    });
    reader.check();
    for (size_t p = 0; p < linear.npanels; ++p) {
        raw_pairs[p + 1] += raw_pairs[p];
    }
    constexpr size_t kRawPair = size_t{2} * kPanelRows;
    linear.raw = Buffer(raw_pairs.back() * kRawPair * sizeof(uint16_t));
    pool.parallelFor(linear.npanels, 1, [&](uint32_t begin, uint32_t end, uint32_t thread) {
        for (uint32_t p = begin; p < end; ++p) {
            read_panel(p, scratch[thread]);
            packPanelBf12(scratch[thread].rows.data(), linear.in, linear.panels.as<char>() + p * linear.panel_bytes,
                          linear.raw.as<uint16_t>() + raw_pairs[p] * kRawPair);
        }
    });
}

size_t panelBytes(WeightType type, uint32_t k) {
    const size_t groups = (size_t{k} + kGroup - 1) / kGroup;
    switch (type) {
    case kQ8:
        return groups * kQ8GroupBytes;
    case kQ4:
        return groups * kQ4GroupBytes;
    case kBf12:
        return groups * kBf12GroupBytes;
    case kBf16:
        return (size_t{k} + 1) / 2 * 2 * kPanelRows * 2;
    default:
        return size_t{k} * kPanelRows * (type == kF32 ? 4 : 2);
    }
}

void packBias(const LinearSource &source, CpuLinear &linear) {
    const bool any = std::any_of(source.parts.begin(), source.parts.end(),
                                 [](const HostMatrix &part) { return part.bias != nullptr; });
    if (!any) {
        return;
    }
    linear.bias = Buffer(size_t{linear.npanels} * kPanelRows * sizeof(float));
    uint32_t row = 0;
    for (const HostMatrix &part : source.parts) {
        for (uint32_t i = 0; i < part.rows && part.bias != nullptr; ++i) {
            const char *p = static_cast<const char *>(part.bias) + i * dtypeSize(source.dtype);
            const float value = elementAsFloat(p, source.dtype);
            if (!std::isfinite(value)) {
                fail(QWEN3_STATUS_BAD_WEIGHTS, "the bias of %s is NaN or infinite at index %u",
                     describe(source.name, source.layer).c_str(), row + i);
            }
            linear.bias.as<float>()[row + i] = value;
        }
        row += part.rows;
    }
}

}  // namespace

WeightType weightType(int32_t dtype) {
    switch (dtype) {
    case QWEN3_DTYPE_F32:
        return kF32;
    case QWEN3_DTYPE_F16:
        return kF16;
    case QWEN3_DTYPE_INT8:
        return kQ8;
    case QWEN3_DTYPE_INT4:
        return kQ4;
    case QWEN3_DTYPE_BF12:
        return kBf12;
    default:
        return kBf16;
    }
}

std::unique_ptr<CpuLinear> packPanels(const LinearSource &source, int32_t dtype, bool interleave, ThreadPool &pool) {
    auto linear = std::make_unique<CpuLinear>();
    uint32_t rows = 0;
    for (const HostMatrix &part : source.parts) {
        rows += part.rows;
    }
    linear->type = weightType(dtype);
    linear->in = source.parts[0].cols;
    linear->interleaved = interleave;
    linear->out = interleave ? rows / 2 : rows;
    linear->npanels = (linear->out + kPanelRows - 1) / kPanelRows * (interleave ? 2 : 1);
    linear->panel_bytes = panelBytes(linear->type, linear->in);
    linear->panels = Buffer(linear->panel_bytes * linear->npanels);
    if (linear->type == kBf12) {
        packAllBf12(source, *linear, pool);
    } else if (linear->type == kF32 || linear->type == kQ8 || linear->type == kQ4) {
        packAll<uint32_t>(source, *linear, pool);
    } else {
        packAll<uint16_t>(source, *linear, pool);
    }
    packBias(source, *linear);
    return linear;
}

std::unique_ptr<CpuVector> packFloats(const VectorSource &source) {
    auto vector = std::make_unique<CpuVector>();
    vector->size = source.size;
    vector->buffer = Buffer(source.size * sizeof(float));
    for (uint32_t i = 0; i < source.size; ++i) {
        const char *p = static_cast<const char *>(source.data) + i * dtypeSize(source.dtype);
        const float value = elementAsFloat(p, source.dtype);
        if (!std::isfinite(value)) {
            fail(QWEN3_STATUS_BAD_WEIGHTS, "%s is NaN or infinite at index %u",
                 describe(source.name, source.layer).c_str(), i);
        }
        vector->buffer.as<float>()[i] = value;
    }
    return vector;
}

std::unique_ptr<CpuTable> packTable(const LinearSource &source, bool borrow, ThreadPool &pool) {
    const HostMatrix &matrix = source.parts[0];
    auto table = std::make_unique<CpuTable>();
    table->dtype = source.dtype;
    table->rows = matrix.rows;
    table->cols = matrix.cols;
    table->data = matrix.data;
    if (!borrow) {
        const size_t row_bytes = matrix.cols * dtypeSize(source.dtype);
        table->owned = Buffer(matrix.rows * row_bytes);
        pool.parallelFor(matrix.rows, 256, [&](uint32_t begin, uint32_t end, uint32_t) {
            std::memcpy(table->owned.as<char>() + begin * row_bytes,
                        static_cast<const char *>(matrix.data) + begin * row_bytes, (end - begin) * row_bytes);
        });
        table->data = table->owned.data();
    }
    return table;
}

void readRow(const Linear &table, uint32_t row, const Kernels &kernels, float *out) {
    if (const auto *tied = dynamic_cast<const CpuTiedTable *>(&table)) {
        const CpuLinear &head = *tied->head;
        const char *panel = head.panel(row / kPanelRows);
        const uint32_t j = row % kPanelRows;
        for (uint32_t k = 0; k < head.in; k += kGroup) {
            const uint32_t count = std::min(kGroup, head.in - k);
            if (isQuantised(head.type)) {
                int16_t codes[kGroup * kPanelRows];
                float scales[kPanelRows];
                kernels.unpack_quant[head.type - kExactTypes](panel, k / kGroup, 1, codes, scales);
                for (uint32_t i = 0; i < count; ++i) {
                    out[k + i] = static_cast<float>(codes[(i / 2 * kPanelRows + j) * 2 + i % 2]) * scales[j];
                }
            } else {
                float block[kGroup * kPanelRows];
                kernels.unpack[head.type](panel, k, count, block);
                for (uint32_t i = 0; i < count; ++i) {
                    out[k + i] = block[i * kPanelRows + j];
                }
            }
        }
        return;
    }
    const auto &plain = static_cast<const CpuTable &>(table);
    const size_t size = dtypeSize(plain.dtype);
    const char *start = static_cast<const char *>(plain.data) + size_t{row} * plain.cols * size;
    for (uint32_t i = 0; i < plain.cols; ++i) {
        out[i] = elementAsFloat(start + i * size, plain.dtype);
    }
}

}  // namespace q3::cpu
