// Linear layers on the CPU. A claim's panels are multiplied straight from their packed form. A single tile of rows
// (decode) streams them once from memory. More rows (prefill) go tile by tile through a few panels, which stay in L2
// meanwhile. Weights whose format takes codes meet activations in codes. However rows and k are cut, an output is the
// same chain (kernels.h), so a row's result does not depend on what else is computed with it.
#include "ops/cpu/linear.h"

#include <algorithm>
#include <cstring>

#include "ops/cpu/pack/pack_store.h"

namespace q3::cpu {
namespace {

// Bytes of weights per claim, at the end of a product or where many rows meet them: long enough to hide what claiming
// costs, short enough to balance two threads.
constexpr size_t kClaimBytes = size_t{128} << 10;

// Most bytes of weights of a claim that one tile of rows streams. A kernel reads four streams, a quarter of them each.
constexpr size_t kStreamBytes = size_t{512} << 10;
constexpr uint32_t kStreamPanels = 64;

// Weights that many rows go through at once: they take half of a small L2 and leave the other half to the rows.
constexpr size_t kBlockBytes = size_t{256} << 10;

// Where rows make no more tiles than this, memory limits the first one, and it is read in long streams as for a single
// tile.
constexpr uint32_t kFewParts = 4;

// Floats of Linears::blockScratch.
constexpr size_t kBlockFloats = kTogether * size_t{kMaxTileRows} * kPanelRows;

uint32_t panelsIn(size_t bytes, const CpuLinear &w) {
    const auto panels = static_cast<uint32_t>(bytes / std::max<size_t>(1, w.panel_bytes));
    return std::max(kTogether, panels / kTogether * kTogether);
}

// k per block so that kTogether panels fit kBlockBytes, in nearly equal blocks of whole units.
uint32_t blockDepth(WeightFormat format, uint32_t k, uint32_t unit) {
    const size_t bytes = kTogether * panelOffset(format, roundUp(k, unit));
    const auto blocks = static_cast<uint32_t>((bytes + kBlockBytes - 1) / kBlockBytes);
    return roundUp((k + blocks - 1) / std::max(1U, blocks), unit);
}

// Asks for the lines that rows [row, row + count) of an output will be written to, so that stores do not wait for them.
void fetchOutput(const float *out, size_t ldo, uint32_t row, uint32_t count, uint32_t columns) {
    constexpr uint32_t kLine = 64 / sizeof(float);
    for (uint32_t r = row; r < row + count; ++r) {
        for (uint32_t j = 0; j < columns; j += kLine) {
            __builtin_prefetch(out + r * ldo + j, 1);
        }
    }
}

void addBias(float *row, const float *bias, uint32_t n) {
    if (bias != nullptr) {
        for (uint32_t j = 0; j < n; ++j) {
            row[j] += bias[j];
        }
    }
}

// What becomes of sums: rows of out, of as many columns as the layer or an expert has.
auto storing(float *out, size_t ldo, const CpuLinear &w) {
    return [out, ldo, &w](uint32_t panel, uint32_t npanels, uint32_t row, uint32_t count, float *product, size_t ld) {
        const uint32_t first = panel * kPanelRows;
        const uint32_t columns = std::min(npanels * kPanelRows, w.out - first);
        for (uint32_t r = 0; r < count; ++r) {
            addBias(product + r * ld, w.biasOf(panel), columns);
            std::memcpy(out + (size_t{row} + r) * ldo + first, product + r * ld, columns * sizeof(float));
        }
    };
}

// The same of gate and up panels that take turns. Of `rows` of the output those of the next call are fetched.
auto storingSwiglu(const KernelTable &kernels, float *out, size_t ldo, const CpuLinear &gate_up, uint32_t rows) {
    return [&kernels, out, ldo, &gate_up, rows](uint32_t panel, uint32_t npanels, uint32_t row, uint32_t count,
                                                const float *product, size_t ld) {
        for (uint32_t r = 0; r < count; ++r) {
            for (uint32_t q = 0; q < npanels; q += 2) {
                const uint32_t first = (panel + q) / 2 * kPanelRows;
                const float *gate = product + r * ld + size_t{q} * kPanelRows;
                kernels.siluMul(out + (size_t{row} + r) * ldo + first, gate, gate + kPanelRows,
                                std::min(kPanelRows, gate_up.out - first));
            }
        }
        const uint32_t next = row + count;
        fetchOutput(out + size_t{panel} / 2 * kPanelRows, ldo, next, next < rows ? std::min(count, rows - next) : 0,
                    npanels / 2 * kPanelRows);
    };
}

// The products of up where `out` has those of gate.
auto gating(const KernelTable &kernels, float *out, size_t ldo, const CpuLinear &up) {
    return [&kernels, out, ldo, &up](uint32_t panel, uint32_t npanels, uint32_t row, uint32_t count,
                                     const float *product, size_t ld) {
        const uint32_t first = panel * kPanelRows;
        for (uint32_t r = 0; r < count; ++r) {
            float *gate = out + (size_t{row} + r) * ldo + first;
            kernels.siluMul(gate, gate, product + r * ld, std::min(npanels * kPanelRows, up.out - first));
        }
    };
}

}  // namespace

Linears::Linears(const KernelTable &kernels, ThreadPool &pool, uint32_t max_rows, uint32_t widest, WeightFormat format,
                 const Arithmetic &arithmetic, bool codes, const SlotLimits &slot_limits)
    : kernels_(kernels), pool_(pool), arithmetic_(arithmetic), max_rows_(max_rows),
      // Slots end with as many rows to spare as a tile may read beyond them.
      slot_rows_(slot_limits.count == 0 ? 0 : size_t{slot_limits.count} + kMaxTileRows) {
    const uint32_t slot_width = slot_limits.width;
    if (takesCodes(format) || codes) {
        reserveCodes(std::max(size_t{max_rows} * groupsIn(widest), slot_rows_ * groupsIn(slot_width)));
    }
    // Some layers may be bf16 whatever the format of most is.
    if (const uint32_t pieces = std::max(piecesOf(format), piecesOf(kBf16)); pieces > 0) {
        rounded_ = HostBuffer(
            std::max(max_rows * roundedBytes(widest, pieces), slot_rows_ * roundedBytes(slot_width, pieces)));
    }
    gathered_ = HostBuffer(slot_rows_ * slot_width * sizeof(float));
    for (uint32_t i = 0; i < pool.size(); ++i) {
        scratch_.emplace_back((scratchFloats(codes ? kF8 : format) + kBlockFloats) * sizeof(float));
        if (slot_limits.from_file) {
            read_.emplace_back(std::max(kStreamBytes, kTogether * panelBytes(kF32, slot_width)));
        }
    }
}

size_t Linears::scratchBytes() const {
    size_t total = codes_.bytes() + scales_.bytes() + offsets_.bytes() + rounded_.bytes() + gathered_.bytes();
    for (const std::vector<HostBuffer> *buffers : {&scratch_, &read_, &ordered_}) {
        for (const HostBuffer &buffer : *buffers) {
            total += buffer.bytes();
        }
    }
    return total;
}

// Panels [first, first + count) of a layer, w.panel_bytes apart: in memory, or read to where the thread has room for
// what streamPanels and reusePanels take at a time.
const char *Linears::panelsOf(const CpuLinear &w, uint32_t first, uint32_t count, uint32_t thread) {
    if (!w.blob) {
        return w.panel(first);
    }
    char *panels = read_[thread].as<char>();
    if (const int error = readPanels(w, first, count, panels); error != 0) {
        read_error_.store(error, std::memory_order_relaxed);
    }
    return panels;
}

void Linears::fetch(const Routing &routing, const CpuLinear &w) const {
    const size_t bytes = w.expertPanels() * w.panel_bytes;
    for (size_t i = 0; i < routing.shares().size() && w.blob; ++i) {
        w.blob->fetch(bytes, routing.shares()[i].expert * bytes);
    }
}

// One thread holds either the sums of all rows with kTogether panels, followed by bf12 or f8 panels expanded to bf16
// (where a block may exceed its size by a group), or the sums of a tile of rows with kStreamPanels; then a block of f8
// (blockScratch).
size_t Linears::scratchFloats(WeightFormat format) const {
    const size_t expanded =
        format == kBf12 || format == kF8 ? kBlockBytes + kTogether * panelOffset(kBf16, kF8Group) : 0;
    const size_t blocks = size_t{max_rows_} * kTogether * kPanelRows + expanded / sizeof(float);
    return std::max(blocks, size_t{std::max(kMaxTileRows, kMaxStreamRows)} * kStreamPanels * kPanelRows);
}

// Room for the products of a tile of rows with kTogether panels of f8, a block of k.
float *Linears::blockScratch(uint32_t thread) const {
    const size_t floats = scratch_[thread].bytes() / sizeof(float);
    return scratch_[thread].as<float>() + floats - kBlockFloats;
}

// Numbers of bf16 that an activation in front of such a layer becomes; 0: it does not.
uint32_t Linears::piecesOf(WeightFormat format) const {
    switch (arithmetic_.of[format]) {
    case Activations::kBf16:
        return 1;
    case Activations::kBf16x2:
        return 2;
    default:
        return 0;
    }
}

// Rows of a register tile.
uint32_t Linears::tileRows(WeightFormat format) const {
    return piecesOf(format) > 0 ? kernels_.rounded_tile_rows : kernels_.tileRows(format);
}

// Rows of a tile whose panels come from memory.
uint32_t Linears::streamRows(WeightFormat format) const {
    const bool codes = takesCodes(format) && !isAffine(format);
    const uint32_t taller =
        codes ? kernels_.quant_stream_rows : (format == kBf16 && piecesOf(format) == 1 ? kernels_.bf16_stream_rows : 0);
    return std::max(taller, tileRows(format));
}

// Whether such a tile may be taller than one whose panels are in cache.
bool Linears::hasTaller(WeightFormat format) const {
    return streamRows(format) > tileRows(format);
}

// The first tile meets panels as these come from memory. It is as tall as registers allow, so that it computes while it
// waits; the others have the size that is fastest from the cache that it brings panels to.
RowParts Linears::partsOf(uint32_t rows, WeightFormat format) const {
    const uint32_t tallest = streamRows(format);
    if (rows <= tallest) {
        return {rows, 1, rows};
    }
    const uint32_t tile = tileRows(format);
    if (hasTaller(format)) {
        return {rows, 1 + (rows - tallest + tile - 1) / tile, tallest};
    }
    const uint32_t count = (rows + tile - 1) / tile;
    const bool full = isAffine(format) && kernels_.affine->full_tiles;
    return {rows, count, full ? tile : partSize(rows, count, 0), full};
}

CodeWidth Linears::widthOf(const CpuLinear &w) const {
    return arithmetic_.of[w.format] == Activations::kInt8 && !w.fine_codes ? k8Bits : k16Bits;
}

// The codes of a part of the rows. Parts lie one after the other, each a stream for the kernel that reads it.
QuantRows Linears::codesOf(uint32_t first, uint32_t count, uint32_t k, const CodeKernels &kernels) const {
    const size_t bytes = codeGroupBytes(kernels.order);
    const size_t at = size_t{first} * groupsIn(k);
    return {codes_.as<char>() + at * bytes, scales_.as<float>() + at, offsets_.as<int32_t>() + at, count, bytes};
}

// out[row][panel * 16 + j] = products of the rows with the panels. If these do not begin with k = 0, the products are
// added to those of the k before.
void Linears::multiplyPanels(const Panels &p, const Rows &rows, float *out, size_t ldo) const {
    const bool begun = p.k0 > 0 && !p.alone;
    if (takesCodes(p.format)) {
        const QuantRows codes =
            codesOf(rows.first, rows.count, static_cast<uint32_t>(rows.ld), kernels_.codes[p.width][p.format]);
        kernels_.quantPanels(p.format, p.width, p.streamed)(p.data, p.stride, p.count, groupsIn(p.k),
                                                            codes.from(0, p.k0 / kGroup), rows.count, out, ldo, begun);
    } else if (const uint32_t pieces = piecesOf(p.format); pieces > 0) {
        const RoundedRows from{rounded_rows_.data + rows.first * rounded_rows_.row_bytes +
                                   roundedRowBytes(p.k0, pieces, kernels_.pair_bytes),
                               rounded_rows_.row_bytes};
        const bool taller = p.streamed && p.format == kBf16 && pieces == 1 && kernels_.streamBf16 != nullptr;
        const auto kernel = taller ? kernels_.streamBf16 : kernels_.multiplyRounded[pieces - 1][p.format];
        kernel(p.data, p.stride, p.count, p.k, from, rows.count, out, ldo, begun);
    } else {
        kernels_.multiplyPanels[p.format](p.data, p.stride, p.count, p.k, rows.in + rows.first * rows.ld + p.k0,
                                          rows.ld, rows.count, out, ldo, begun);
    }
}

// Calls epilogue(panel, npanels, row, count, product, ld) for all panels, an even number of neighbours (but for the
// last ones) a call, and parts of rows: the sums of rows [row, row + count) with these panels are at product + r * ld.
// Panels whose sums are in `direct` already are left out.
template <typename Epilogue>
void Linears::multiplyRows(const float *in, uint32_t rows, const CpuLinear &w, const Output &direct,
                           const Epilogue &epilogue) {
    prepareRows(in, rows, w);
    const Segment all{0, rows, 0, w.npanels, 0, direct};
    const bool stream = rows <= streamRows(w.format);
    const uint32_t least = panelsIn(kClaimBytes, w);
    const uint32_t most =
        stream ? std::min(kStreamPanels, panelsIn(kStreamBytes, w)) : std::max(least, panelsTogether(w, rows));
    pool_.parallelFor(w.npanels, std::min(most, least), most, [&](uint32_t begin, uint32_t end, uint32_t thread) {
        if (stream) {
            streamPanels(in, all, w, begin, end, thread, epilogue);
        } else {
            reusePanels(in, all, w, begin, end, thread, epilogue);
        }
    });
}

// The same for the slots of a routing and the panels of their experts; panels and rows of a call are of one expert, and
// panels are counted from its first one.
template <typename Epilogue>
void Linears::multiplySlots(const float *in, bool slots, const Routing &routing, const CpuLinear &w,
                            const Epilogue &epilogue) {
    const float *rows = prepareSlots(in, slots, routing, w);
    const std::vector<Routing::Share> &shares = routing.shares();
    const uint32_t panels = w.expertPanels();
    // Claims are counted in kTogether panels of one expert, so that kernels get as many.
    const uint32_t units = (panels + kTogether - 1) / kTogether;
    const uint32_t tile = streamRows(w.format);
    const bool stream =
        std::all_of(shares.begin(), shares.end(), [&](const auto &share) { return share.rows <= tile; });
    const uint32_t least = panelsIn(kClaimBytes, w) / kTogether;
    const uint32_t most = stream ? std::min(kStreamPanels, panelsIn(kStreamBytes, w)) / kTogether : least;
    const auto count = static_cast<uint32_t>(shares.size()) * units;
    pool_.parallelFor(count, std::min(most, least), most, [&](uint32_t begin, uint32_t end, uint32_t thread) {
        while (begin < end) {
            const Routing::Share &share = shares[begin / units];
            const uint32_t first = begin % units;
            const uint32_t last = std::min(units, first + end - begin);
            const Segment segment{sharesRow(slots, routing, w) ? 0 : share.first, share.rows, share.expert * panels,
                                  panels, share.first};
            const uint32_t until = std::min(panels, last * kTogether);
            if (share.rows <= tile) {
                streamPanels(rows, segment, w, first * kTogether, until, thread, epilogue);
            } else {
                reusePanels(rows, segment, w, first * kTogether, until, thread, epilogue);
            }
            begin += last - first;
        }
    });
    if (const int error = read_error_.exchange(0); error != 0) {
        w.blob->failToRead(error);
    }
}

// One tile of rows meets every weight of panels [begin, end) of a segment once. Claims are long, because the kernel's
// streams through memory are as long as a claim, and memory likes long ones.
template <typename Epilogue>
void Linears::streamPanels(const float *in, const Segment &segment, const CpuLinear &w, uint32_t begin, uint32_t end,
                           uint32_t thread, const Epilogue &epilogue) {
    const uint32_t most = std::min(kStreamPanels, panelsIn(kStreamBytes, w));
    auto *products = scratch_[thread].as<float>();
    for (uint32_t p = begin; p < end; p += most) {  // a single thread claims all panels at once
        const uint32_t count = std::min(most, end - p);
        const size_t width = size_t{count} * kPanelRows;
        Panels panels{
            panelsOf(w, segment.panel + p, count, thread), w.panel_bytes, count, w.format, 0, w.in, widthOf(w)};
        panels.streamed = true;
        const Rows rows{in, w.in, segment.first, segment.rows};
        multiplyPanels(panels, rows, products, width);
        epilogue(p, count, segment.out, segment.rows, products, width);
    }
}

// bf12 and f8 are expanded to bf16 once for all rows, except for so few that two tiles hold them with registers to
// spare: there the kernel decodes them twice, which costs less than sending the expanded panels through L2.
bool Linears::expands(WeightFormat format, uint32_t rows) const {
    return (format == kBf12 || format == kF8) && rows > 2 * (kernels_.tile_rows - 1);
}

// Panels that rows go through at once: kTogether, or for few rows as many as fit kBlockBytes.
uint32_t Linears::panelsTogether(const CpuLinear &w, uint32_t rows) const {
    const bool few = !hasTaller(w.format) && partsOf(rows, w.format).count <= kFewParts && !expands(w.format, rows);
    return few ? std::min(kStreamPanels, panelsIn(kBlockBytes, w)) : kTogether;
}

// All rows of a segment go through some of its panels [begin, end), or a block of their k, which stay in L2 meanwhile.
template <typename Epilogue>
void Linears::reusePanels(const float *in, const Segment &segment, const CpuLinear &w, uint32_t begin, uint32_t end,
                          uint32_t thread, const Epilogue &epilogue) {
    const uint32_t rows = segment.rows;
    const RowParts parts = partsOf(rows, w.format);
    const bool expand = expands(w.format, rows);
    const WeightFormat format = expand ? kBf16 : w.format;
    const uint32_t depth = blockDepth(format, w.in, std::max(kGroup, infoOf(w.format).group));
    const uint32_t together = panelsTogether(w, rows);
    const size_t width = size_t{together} * kPanelRows;
    auto *products = scratch_[thread].as<float>();
    char *expanded = scratch_[thread].as<char>() + max_rows_ * width * sizeof(float);
    for (uint32_t p = begin; p < end; p += together) {
        const uint32_t count = std::min(together, end - p);
        const char *data = panelsOf(w, segment.panel + p, count, thread);
        // Sums that are read again, block of k after block, stay in scratch: rows of an output lie in few sets of L2.
        const bool at_once = segment.direct.data != nullptr && depth >= w.in && !(expand && w.format == kF8) &&
                             size_t{p + count} * kPanelRows <= w.out;
        for (uint32_t k0 = 0; k0 < w.in; k0 += depth) {
            const uint32_t k = std::min(depth, w.in - k0);
            const bool last = k0 + k == w.in;
            Panels panels{data + panelOffset(w.format, k0), w.panel_bytes, count, format, k0, k, widthOf(w)};
            if (expand) {
                panels = expandPanels(panels, w.format, expanded);
            }
            for (uint32_t part = 0; part < parts.count; ++part) {
                const uint32_t row = parts.begin(part);
                const uint32_t size = parts.size(part);
                panels.streamed = part == 0 && !expand;
                // With a single block of k, the sums of one part are done with at once and stay in L1.
                float *product = products + (depth < w.in ? row * width : 0);
                const Rows some{in, w.in, segment.first + row, size};
                if (expand && w.format == kF8) {
                    multiplyExpandedF8(panels, data, w.panel_bytes, some, product, thread);
                } else if (at_once) {
                    float *out = segment.direct.data + size_t{p} * kPanelRows;
                    fetchOutput(out, segment.direct.ld, row, size, count * kPanelRows);
                    multiplyPanels(panels, some, out + row * segment.direct.ld, segment.direct.ld);
                } else {
                    multiplyPanels(panels, some, product, width);
                }
                if (last && !at_once) {
                    epilogue(p, count, segment.out + row, size, product, width);
                }
            }
        }
    }
}

// A block of k of bf12 or f8 panels as bf16 panels in `expanded`.
Linears::Panels Linears::expandPanels(const Panels &panels, WeightFormat from, char *expanded) const {
    const uint32_t groups = (panels.k + kGroup - 1) / kGroup;
    const size_t bytes = panelOffset(kBf16, size_t{groups} * kGroup);
    for (uint32_t q = 0; q < panels.count; ++q) {
        const char *panel = panels.data + q * panels.stride;
        char *out = expanded + q * bytes;
        if (from == kBf12) {
            kernels_.expandBf12(panel, groups, reinterpret_cast<uint16_t *>(out));
            continue;
        }
        for (uint32_t i = 0; i < panels.k; i += kF8Group) {
            kernels_.expandF8(panel + panelOffset(kF8, i) + kF8HeadBytes, std::min(kF8Group, panels.k - i),
                              reinterpret_cast<uint16_t *>(out + panelOffset(kBf16, i)));
        }
    }
    Panels result = panels;
    result.data = expanded;
    result.stride = bytes;
    return result;
}

void Linears::multiply(float *out, size_t ldo, const float *in, uint32_t rows, const CpuLinear &w) {
    for (const CpuLinear *part = &w; part != nullptr; part = part->next.get()) {
        multiplyOne(out, ldo, in, rows, *part);
        out += part->out;
    }
}

void Linears::multiplyOne(float *out, size_t ldo, const float *in, uint32_t rows, const CpuLinear &w) {
    const Output direct = w.biasOf(0) == nullptr ? Output{out, ldo} : Output{};
    multiplyRows(in, rows, w, direct, storing(out, ldo, w));
}

void Linears::multiplySwiglu(float *out, size_t ldo, const float *in, uint32_t rows, const CpuLinear &gate_up) {
    if (gate_up.next == nullptr) {
        multiplyRows(in, rows, gate_up, {}, storingSwiglu(kernels_, out, ldo, gate_up, rows));
        return;
    }
    multiplyOne(out, ldo, in, rows, gate_up);
    multiplyRows(in, rows, *gate_up.next, {}, gating(kernels_, out, ldo, *gate_up.next));
}

void Linears::multiplyExperts(float *out, size_t ldo, const float *in, bool slots, const Routing &routing,
                              const CpuLinear &w) {
    multiplySlots(in, slots, routing, w, storing(out, ldo, w));
}

void Linears::multiplyExpertsSwiglu(float *out, size_t ldo, const float *in, bool slots, const Routing &routing,
                                    const CpuLinear &gate_up) {
    multiplySlots(in, slots, routing, gate_up, storingSwiglu(kernels_, out, ldo, gate_up, 0));
}

}  // namespace q3::cpu
