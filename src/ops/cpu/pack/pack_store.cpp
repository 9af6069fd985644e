#include "ops/cpu/pack/pack_store.h"

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <vector>

namespace q3::cpu {
namespace {

constexpr size_t kRawPairBytes = size_t{2} * kPanelRows * sizeof(uint16_t);

// Calls body(header) for every group of a bf12 panel and writes the header back.
template <typename Body> void forHeaders(char *panel, uint32_t k, const Body &body) {
    for (uint32_t k0 = 0; k0 < k; k0 += kGroup) {
        char *group = panel + k0 / kGroup * kBf12GroupBytes;
        Bf12Header header;
        std::memcpy(&header, group, sizeof header);
        body(header);
        std::memcpy(group, &header, sizeof header);
    }
}

static_assert(offsetof(Bf12Header, raw) == 0 && sizeof(Bf12Header::raw) == sizeof(uint64_t),
              "offsets take the place of pointers");

// In a file, the headers of bf12 groups hold offsets into the raw pairs where memory has pointers.
void saveBf12(const CpuLinear &linear, PackedWriter &out) {
    const char *base = linear.raw.as<char>();
    out.begin(linear.panel_bytes * linear.npanels);
    std::vector<char> panel(linear.panel_bytes);
    for (uint32_t p = 0; p < linear.npanels; ++p) {
        std::memcpy(panel.data(), linear.panel(p), linear.panel_bytes);
        forHeaders(panel.data(), linear.in, [&](Bf12Header &header) {
            const int64_t offset = reinterpret_cast<const char *>(header.raw) - base;
            std::memcpy(static_cast<void *>(&header), &offset, sizeof offset);
        });
        out.append(panel.data(), panel.size());
    }
}

// Puts pointers where the headers of a panel from a file have offsets. Returns false where one is not right; the panel
// is safe to use then, but not good.
bool pointIntoRaw(const CpuLinear &linear, char *panel) {
    const char *base = linear.raw.as<char>();
    const size_t raw_bytes = linear.raw.bytes();
    bool good = true;
    forHeaders(panel, linear.in, [&](Bf12Header &header) {
        uint64_t offset;
        std::memcpy(&offset, static_cast<const void *>(&header), sizeof offset);
        const size_t used = static_cast<size_t>(__builtin_popcount(header.pairs)) * kRawPairBytes;
        if (offset > raw_bytes || used > raw_bytes - offset || offset % kRawPairBytes != 0) {
            good = false;
            header.pairs = 0;
            offset = 0;
        }
        header.raw = reinterpret_cast<const uint16_t *>(base + offset);
    });
    return good;
}

void loadBf12(CpuLinear &linear, PackedReader &in, ThreadPool &pool) {
    linear.raw = HostBuffer(in.nextBytes());
    in.read(linear.raw.data(), linear.raw.bytes(), pool);
    const size_t bytes = linear.panel_bytes * linear.npanels;
    if (linear.panels.data() == nullptr) {
        linear.blob = std::make_unique<PackedBlob>(in.leave(bytes, pool));
        return;
    }
    in.read(linear.panels.data(), bytes, pool);
    std::atomic<bool> good{true};
    pool.parallelFor(linear.npanels, 64, [&](uint32_t begin, uint32_t end, uint32_t) {
        for (uint32_t p = begin; p < end; ++p) {
            if (!pointIntoRaw(linear, linear.panels.as<char>() + p * linear.panel_bytes)) {
                good.store(false);
            }
        }
    });
    if (!good.load()) {
        throw PackedFileError(PackedFileError::kCorrupt);
    }
}

// What panels that stay in a file are saved as is what they are there, in the same pieces as from memory, because
// hashes are of pieces.
void copyBlob(const CpuLinear &linear, PackedWriter &out) {
    out.begin(linear.blob->bytes());
    const size_t piece = linear.format == kBf12 ? linear.panel_bytes : linear.blob->bytes();
    HostBuffer copy(piece);
    for (size_t at = 0; at < linear.blob->bytes(); at += piece) {
        if (const int error = linear.blob->read(copy.data(), piece, at); error != 0) {
            linear.blob->failToRead(error);
        }
        out.append(copy.data(), piece);
    }
}

size_t biasBytes(const CpuLinear &linear) {
    return size_t{linear.npanels} * kPanelRows * sizeof(float);
}

}  // namespace

void saveLinear(const PackedLinear &linear, PackedWriter &out) {
    if (const auto *table = dynamic_cast<const CpuTable *>(&linear)) {
        if (table->owned.data() != nullptr) {
            out.blob(table->owned.data(), table->rows * table->row_bytes);
        }
    } else if (const auto *panels = dynamic_cast<const CpuLinear *>(&linear)) {
        if (panels->format == kBf12) {
            out.blob(panels->raw.data(), panels->raw.bytes());
        }
        if (panels->blob) {
            copyBlob(*panels, out);
        } else if (panels->format == kBf12) {
            saveBf12(*panels, out);
        } else {
            out.blob(panels->panels.data(), panels->panel_bytes * panels->npanels);
        }
        if (panels->bias.data() != nullptr) {
            out.blob(panels->bias.data(), biasBytes(*panels));
        }
        if (!panels->order.empty()) {
            out.blob(panels->order.data(), panels->orderBytes());
        }
        if (panels->next != nullptr) {
            saveLinear(*panels->next, out);
        }
    }  // a tied table has nothing of its own to save
}

void saveVector(const CpuVector &vector, PackedWriter &out) {
    out.blob(vector.data(), vector.bytes());
}

std::unique_ptr<CpuLinear> loadPanels(const LinearSource &shape, WeightFormat format, PackedReader &in,
                                      ThreadPool &pool, Arena *arena, bool in_file) {
    std::unique_ptr<CpuLinear> linear = emptyPanels(shape, format, arena, in_file);
    if (linear->format == kBf12) {
        loadBf12(*linear, in, pool);
    } else if (in_file) {
        linear->blob = std::make_unique<PackedBlob>(in.leave(linear->panel_bytes * linear->npanels, pool));
    } else {
        in.read(linear->panels.data(), linear->panel_bytes * linear->npanels, pool);
    }
    if (linear->bias.data() != nullptr) {
        in.read(linear->bias.data(), biasBytes(*linear), pool);
    }
    if (!linear->order.empty()) {
        std::vector<uint32_t> order(linear->order.size());
        in.read(order.data(), linear->orderBytes(), pool);
        if (order != linear->order) {
            throw PackedFileError(PackedFileError::kStale);
        }
    }
    return linear;
}

std::unique_ptr<CpuVector> loadFloats(const NormSource &shape, PackedReader &in, ThreadPool &pool) {
    auto vector = std::make_unique<CpuVector>();
    vector->size = shape.size;
    vector->buffer = HostBuffer(vector->bytes());
    in.read(vector->buffer.data(), vector->bytes(), pool);
    return vector;
}

std::unique_ptr<CpuTable> loadTable(const LinearSource &shape, bool borrow, PackedReader &in, ThreadPool &pool) {
    std::unique_ptr<CpuTable> table = emptyTable(shape, borrow);
    if (!borrow) {
        in.read(table->owned.data(), table->rows * table->row_bytes, pool);
    }
    return table;
}

int readPanels(const CpuLinear &linear, uint32_t first, uint32_t count, char *panels) noexcept {
    const size_t bytes = count * linear.panel_bytes;
    int error = linear.blob->read(panels, bytes, first * linear.panel_bytes);
    for (uint32_t p = 0; p < count && linear.format == kBf12 && error == 0; ++p) {
        error = pointIntoRaw(linear, panels + p * linear.panel_bytes) ? 0 : EBADMSG;
    }
    if (error != 0) {
        std::memset(panels, 0, bytes);
    }
    return error;
}

}  // namespace q3::cpu
