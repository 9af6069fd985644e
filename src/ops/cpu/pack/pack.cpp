#include "ops/cpu/pack/pack.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "ops/cpu/pack/affine.h"
#include "ops/cpu/pack/column_order.h"
#include "ops/cpu/pack/panel_reader.h"
#include "ops/cpu/pack/quant.h"
#include "ops/cpu/panel_element.h"
#include "ops/half.h"
#include "runtime/error.h"
#include "runtime/readable.h"

namespace q3::cpu {
namespace {

// Panels that a thread claims at a time. The thread is the first to touch their memory, and two threads that first
// touch the same huge page would both clear it.
uint32_t packGrain(const CpuLinear &linear) {
    constexpr size_t kHugePage = size_t{2} << 20;
    return static_cast<uint32_t>(std::max<size_t>(1, kHugePage / linear.panel_bytes));
}

// A layer's source, or those of its experts, and who reads them.
struct Sources {
    std::deque<std::string> names;
    std::deque<LinearSource> experts;
    std::deque<PanelReader> readers;  // of a plain layer one
};

// The part of a source that is one expert's.
LinearSource expertOf(const LinearSource &source, uint32_t expert, const char *name) {
    const auto count = static_cast<std::ptrdiff_t>(source.parts.size() / source.experts);
    const auto first = source.parts.begin() + count * expert;
    LinearSource one = {name, source.layer, {first, first + count}, 0, source.precision, source.gate_up};
    return one;
}

void open(const LinearSource &source, DType dtype, const CpuLinear &linear, Sources &out) {
    const PanelShape shape{linear.out, linear.interleaved};
    for (uint32_t e = 0; e < source.experts; ++e) {
        out.names.push_back(source.name + ("[" + std::to_string(e) + "]"));
        out.experts.push_back(expertOf(source, e, out.names.back().c_str()));
        out.readers.emplace_back(out.experts.back(), dtype, shape, linear.orderOf(e));
    }
    if (source.experts == 0) {
        out.readers.emplace_back(source, dtype, shape, linear.orderOf(0));
    }
    for (const PanelReader &reader : out.readers) {
        reader.checkReadable();
    }
}

// The same as below for a layer of experts, each of which one thread packs.
template <typename Body> void forEachExpertPanel(Sources &sources, CpuLinear &linear, ThreadPool &pool, Body body) {
    std::atomic<bool> no_memory{false};
    const uint32_t panels = linear.expertPanels();
    pool.parallelFor(linear.experts, 1, [&](uint32_t begin, uint32_t end, uint32_t) {
        for (uint32_t e = begin; e < end; ++e) {
            try {
                PanelReader &reader = sources.readers[e];
                PanelReader::Strip strip(reader);
                for (uint32_t p = 0; p < panels; ++p) {
                    if (p % reader.stripPanels() == 0) {
                        reader.copy(p, std::min(panels, p + reader.stripPanels()), strip);
                    }
                    const uint32_t index = e * panels + p;
                    body(reader, index, reader.rows(p, strip), linear.panels.as<char>() + index * linear.panel_bytes);
                }
            } catch (...) {  // nothing else is thrown
                no_memory.store(true);
            }
        }
    });
    if (no_memory.load()) {
        fail(QWEN3_STATUS_OUT_OF_MEMORY, "out of memory: could not copy the rows of experts");
    }
}

// Calls body(reader, panel's index, its rows, its memory) for every panel, in parallel.
template <typename Body> void forEachPanel(Sources &sources, CpuLinear &linear, ThreadPool &pool, Body body) {
    if (linear.experts > 0) {
        forEachExpertPanel(sources, linear, pool, body);
        return;
    }
    PanelReader &reader = sources.readers.front();
    std::vector<PanelReader::Strip> strips(pool.size(), PanelReader::Strip(reader));
    const uint32_t step = reader.stripPanels();
    pool.parallelFor(linear.npanels, std::max(step, packGrain(linear)),
                     [&](uint32_t begin, uint32_t end, uint32_t thread) {
                         PanelReader::Strip &strip = strips[thread];
                         for (uint32_t p = begin; p < end; ++p) {
                             if ((p - begin) % step == 0) {
                                 reader.copy(p, std::min(end, p + step), strip);
                             }
                             body(reader, p, reader.rows(p, strip), linear.panels.as<char>() + p * linear.panel_bytes);
                         }
                     });
}

// A copy of a vector as it is; throws IO_ERROR when not all of it can be read.
std::vector<char> copyOf(const void *data, size_t bytes, const char *name, int32_t layer) {
    std::vector<char> copy(bytes);
    if (!copyReadable(copy.data(), data, bytes)) {
        failUnreadable(describe(name, layer).c_str());
    }
    return copy;
}

void packFloatPanel(PanelReader &reader, const PanelReader::Rows &rows, WeightFormat format, uint32_t k, char *panel) {
    for (uint32_t k0 = 0; k0 < k; k0 += PanelReader::kMaxBlock) {
        const uint32_t count = std::min(PanelReader::kMaxBlock, k - k0);
        if (format == kF32) {
            reader.readFloats(rows, k0, count, reinterpret_cast<float *>(panel) + size_t{k0} * kPanelRows);
        } else if (format == kBf16) {
            reader.readPairs(rows, k0, count, reinterpret_cast<uint32_t *>(panel) + size_t{k0} / 2 * kPanelRows);
        } else {
            uint32_t pairs[PanelReader::kMaxBlock / 2 * kPanelRows];
            reader.readPairs(rows, k0, count, pairs);
            auto *out = reinterpret_cast<uint16_t *>(panel) + size_t{k0} * kPanelRows;
            for (uint32_t i = 0; i < count; ++i) {
                for (uint32_t j = 0; j < kPanelRows; ++j) {
                    const uint32_t pair = pairs[size_t{i} / 2 * kPanelRows + j];
                    out[size_t{i} * kPanelRows + j] = static_cast<uint16_t>(pair >> (i % 2 * 16));
                }
            }
        }
    }
}

void packQuantPanel(PanelReader &reader, const PanelReader::Rows &rows, WeightFormat format, uint32_t k, char *panel) {
    for (uint32_t k0 = 0; k0 < k; k0 += kGroup) {
        float tile[kGroup * kPanelRows] = {};
        reader.readFloats(rows, k0, std::min(kGroup, k - k0), tile);
        (format == kQ8 ? quantizeGroupQ8 : quantizeGroupQ4)(tile, panel, k0 / kGroup);
    }
}

// Calls body(tile, count, group index) for every group of a panel's bf16 pairs.
template <typename Body> void forPairGroups(PanelReader &reader, const PanelReader::Rows &rows, uint32_t k, Body body) {
    for (uint32_t k0 = 0; k0 < k; k0 += kGroup) {
        uint32_t tile[kGroup / 2 * kPanelRows] = {};
        const uint32_t count = std::min(kGroup, k - k0);
        reader.readPairs(rows, k0, count, tile);
        body(tile, count, k0 / kGroup);
    }
}

// Packs in two passes, because the number of raw pairs must be known before their memory is allocated.
void packBf12(Sources &sources, CpuLinear &linear, ThreadPool &pool) {
    std::vector<size_t> raw_pairs(size_t{linear.npanels} + 1, 0);
    forEachPanel(sources, linear, pool, [&](PanelReader &reader, uint32_t p, const PanelReader::Rows &rows, char *) {
        size_t total = 0;
        forPairGroups(reader, rows, linear.in,
                      [&](const uint32_t *tile, uint32_t count, uint32_t) { total += countRawBf12(tile, count); });
        raw_pairs[p + 1] = total;
    });
    for (size_t p = 0; p < linear.npanels; ++p) {
        raw_pairs[p + 1] += raw_pairs[p];
    }
    constexpr size_t kRawPair = size_t{2} * kPanelRows;
    linear.raw = HostBuffer(raw_pairs.back() * kRawPair * sizeof(uint16_t));
    forEachPanel(sources, linear, pool,
                 [&](PanelReader &reader, uint32_t p, const PanelReader::Rows &rows, char *panel) {
                     uint16_t *raw = linear.raw.as<uint16_t>() + raw_pairs[p] * kRawPair;
                     forPairGroups(reader, rows, linear.in, [&](const uint32_t *tile, uint32_t count, uint32_t g) {
                         raw += packGroupBf12(tile, count, panel + g * kBf12GroupBytes, raw) * kRawPair;
                     });
                 });
}

// The dtype that the reader turns elements into before they are packed, or kDefault for codes as they are.
DType readsAs(WeightFormat format) {
    switch (format) {
    case kF16:
        return DType::kF16;
    case kBf16:
    case kBf12:
        return DType::kBf16;
    case kF32:
    case kQ8:
    case kQ4:
        break;
    default:
        return DType::kDefault;
    }
    return DType::kF32;
}

void packBias(const LinearSource &source, CpuLinear &linear) {
    uint32_t row = 0;
    for (const HostMatrix &part : source.parts) {
        const size_t size = dtypeSize(part.bias_dtype);
        const std::vector<char> bias =
            part.bias == nullptr ? std::vector<char>() : copyOf(part.bias, part.rows * size, source.name, source.layer);
        for (uint32_t i = 0; i < part.rows && part.bias != nullptr; ++i) {
            const float value = elementAsFloat(bias.data() + i * size, part.bias_dtype);
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

bool hasBias(const LinearSource &source) {
    return std::any_of(source.parts.begin(), source.parts.end(),
                       [](const HostMatrix &part) { return part.bias != nullptr; });
}

std::vector<LinearSource> splitByFormat(const LinearSource &source) {
    const auto rows = [](const HostMatrix &part) { return part.rows % kPanelRows; };
    const bool codes = std::any_of(source.parts.begin(), source.parts.end(),
                                   [](const HostMatrix &part) { return keepsCodes(formatAsGiven(part)); });
    const bool two_orders = source.gate_up && !haveOneOrder(source.parts.front(), source.parts.back());
    if (!codes || source.experts > 0 || (source.gate_up && !two_orders) ||
        (!source.gate_up && std::any_of(source.parts.begin(), source.parts.end() - 1, rows))) {
        return {source};
    }
    std::vector<LinearSource> split;
    for (const HostMatrix &part : source.parts) {
        if (split.empty() || formatAsGiven(split.back().parts[0]) != formatAsGiven(part) ||
            !haveOneOrder(split.back().parts[0], part)) {
            split.push_back(source);
            split.back().parts.clear();
            split.back().gate_up = false;
        }
        split.back().parts.push_back(part);
    }
    return split;
}

std::unique_ptr<CpuLinear> emptyPanels(const LinearSource &source, WeightFormat format, Arena *arena, bool in_file) {
    auto linear = std::make_unique<CpuLinear>();
    uint32_t rows = 0;
    for (const HostMatrix &part : source.parts) {
        rows += part.rows;
    }
    linear->format = format;
    linear->inputs = source.parts[0].cols;
    if (isAffine(format)) {
        linear->order = columnOrder(source);
    }
    const size_t orders = std::max(1U, source.experts);
    linear->in = linear->order.empty() ? linear->inputs : static_cast<uint32_t>(linear->order.size() / orders);
    linear->interleaved = source.gate_up;
    linear->experts = source.experts;
    const uint32_t experts = std::max(1U, source.experts);
    linear->out = rows / experts / (source.gate_up ? 2 : 1);
    linear->npanels = (linear->out + kPanelRows - 1) / kPanelRows * (source.gate_up ? 2 : 1) * experts;
    linear->panel_bytes = panelBytes(linear->format, linear->in);
    const size_t bytes = in_file ? 0 : linear->panel_bytes * linear->npanels;
    linear->panels = arena != nullptr ? arena->allocate(bytes) : HostBuffer(bytes);
    if (hasBias(source)) {
        linear->bias = HostBuffer(size_t{linear->npanels} * kPanelRows * sizeof(float));
    }
    return linear;
}

std::unique_ptr<CpuLinear> packPanels(const LinearSource &source, WeightFormat format, ThreadPool &pool, Arena *arena) {
    std::unique_ptr<CpuLinear> linear = emptyPanels(source, format, arena);
    Sources sources;
    open(source, readsAs(linear->format), *linear, sources);
    const auto packEach = [&](auto pack) {
        forEachPanel(sources, *linear, pool,
                     [&](PanelReader &reader, uint32_t, const PanelReader::Rows &rows, char *panel) {
                         pack(reader, rows, linear->format, linear->in, panel);
                     });
    };
    switch (linear->format) {
    case kF32:
    case kF16:
    case kBf16:
        packEach(packFloatPanel);
        break;
    case kBf12:
        packBf12(sources, *linear, pool);
        break;
    case kQ8:
    case kQ4:
        packEach(packQuantPanel);
        break;
    case kF8:
        packEach(packF8Panel);
        break;
    default:
        packEach(packAffinePanel);
        break;
    }
    for (const PanelReader &reader : sources.readers) {
        reader.check();
    }
    packBias(source, *linear);
    return linear;
}

std::unique_ptr<CpuVector> packFloats(const NormSource &source) {
    const size_t size = dtypeSize(source.dtype);
    const std::vector<char> copy = copyOf(source.data, source.size * size, source.name, source.layer);
    auto vector = std::make_unique<CpuVector>();
    vector->size = source.size;
    vector->buffer = HostBuffer(source.size * sizeof(float));
    for (uint32_t i = 0; i < source.size; ++i) {
        const float value = elementAsFloat(copy.data() + i * size, source.dtype);
        if (!std::isfinite(value)) {
            fail(QWEN3_STATUS_BAD_WEIGHTS, "%s is NaN or infinite at index %u",
                 describe(source.name, source.layer).c_str(), i);
        }
        vector->buffer.as<float>()[i] = value;
    }
    return vector;
}

std::unique_ptr<CpuTable> emptyTable(const LinearSource &source, bool borrow) {
    const HostMatrix &matrix = source.parts[0];
    const BlockShape block = blockShape(matrix.dtype);
    auto table = std::make_unique<CpuTable>();
    table->rows = matrix.rows;
    table->cols = matrix.cols;
    if (block.elements > 0) {
        table->dtype = matrix.dtype;
        table->row_bytes = size_t{matrix.cols} / block.elements * block.bytes;
    } else {
        table->dtype = commonDType(source);
        table->row_bytes = matrix.cols * dtypeSize(table->dtype);
    }
    if (borrow) {
        table->stride_bytes = matrix.row_stride * dtypeSize(matrix.dtype);
        table->data = matrix.data;
    } else {
        table->stride_bytes = table->row_bytes;
        table->owned = HostBuffer(table->rows * table->row_bytes);
        table->data = table->owned.data();
    }
    return table;
}

std::unique_ptr<CpuTable> packTable(const LinearSource &source, bool borrow, ThreadPool &pool) {
    const HostMatrix &matrix = source.parts[0];
    std::unique_ptr<CpuTable> table = emptyTable(source, borrow);
    if (borrow) {
        return table;
    }
    const BlockShape block = blockShape(matrix.dtype);
    const bool decoded = matrix.stored != nullptr && block.elements == 0;
    const size_t stride = block.elements > 0 ? matrix.row_stride / block.elements * block.bytes
                                             : matrix.row_stride * dtypeSize(matrix.dtype);
    constexpr uint32_t kTogether = 256;
    std::vector<StoredReader> readers;
    for (uint32_t i = 0; decoded && i < pool.size(); ++i) {
        readers.emplace_back(*matrix.stored);
    }
    for (StoredReader &reader : readers) {
        reader.reserve(kTogether, matrix.cols);
    }
    std::atomic<bool> readable{true};
    pool.parallelFor(matrix.rows, kTogether, [&](uint32_t begin, uint32_t end, uint32_t thread) {
        for (uint32_t row = begin; row < end; row += kTogether) {
            const uint32_t count = std::min(kTogether, end - row);
            char *to = table->owned.as<char>() + row * table->row_bytes;
            HostMatrix copy;
            if (decoded ? !copyRows(matrix, row, count, to, copy, &readers[thread])
                        : !copyReadable(to, static_cast<const char *>(matrix.data) + row * stride, table->row_bytes,
                                        stride, count)) {
                readable.store(false);
            }
        }
    });
    if (!readable.load()) {
        failUnreadable(describe(source.name, source.layer).c_str());
    }
    return table;
}

namespace {

// out[n] = row of a layer, its inputs in order.
void readPanelRow(const CpuLinear &linear, uint32_t row, float *out) {
    const char *panel = linear.panel(row / kPanelRows);
    forEachFormat([&](auto constant) {
        constexpr WeightFormat T = decltype(constant)::value;
        for (uint32_t i = 0; i < linear.in && T == linear.format; ++i) {
            const uint32_t input = linear.order.empty() ? i : linear.order[i];
            if (input != kNoColumn) {
                out[input] = weightAt<T>(panel, row % kPanelRows, i);
            }
        }
    });
}

}  // namespace

bool readRow(const PackedLinear &table, uint32_t row, float *out) {
    if (const auto *tied = dynamic_cast<const CpuTiedTable *>(&table)) {
        size_t part = 0;
        while (row >= tied->heads[part]->out) {
            row -= tied->heads[part++]->out;
        }
        readPanelRow(*tied->heads[part], row, out);
        return true;
    }
    const auto &plain = static_cast<const CpuTable &>(table);
    const char *start = static_cast<const char *>(plain.data) + row * plain.stride_bytes;
    const BlockShape block = blockShape(plain.dtype);
    for (uint32_t first = 0; first < plain.cols && block.elements > 0; first += block.elements) {
        decodeBlock(plain.dtype, start + size_t{first} / block.elements * block.bytes, out + first);
    }
    if (block.elements > 0) {
        return true;
    }
    const size_t size = dtypeSize(plain.dtype);
    // A borrowed table may lie in a mapped file that has been cut short since.
    char copy[4096];
    const auto together = static_cast<uint32_t>(sizeof copy / size);
    for (uint32_t first = 0; first < plain.cols; first += together) {
        const uint32_t count = std::min(together, plain.cols - first);
        const char *elements = start + first * size;
        if (plain.owned.data() == nullptr) {
            if (!copyReadable(copy, elements, count * size)) {
                return false;
            }
            elements = copy;
        }
        for (uint32_t i = 0; i < count; ++i) {
            out[first + i] = elementAsFloat(elements + i * size, plain.dtype);
        }
    }
    return true;
}

}  // namespace q3::cpu
