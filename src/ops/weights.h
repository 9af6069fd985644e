// Weights on both sides of packing: where they are in the caller's memory, and what a backend makes of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ops/types.h"

namespace q3 {

struct StoredMatrix;  // ops/stored.h
class StoredReader;

// ---------------------------------------------------------------- as the checkpoint gives them

// A rectangle of weights in the caller's memory: element (row, col) at data[row * row_stride + col * col_stride],
// strides in elements. Rows are output features. With `stored` it is a rectangle of that tensor instead: data and
// strides then only tell whether there is one and how its rows lie.
struct HostMatrix {
    const void *data = nullptr;
    DType dtype = DType::kDefault;
    uint32_t rows = 0, cols = 0;
    size_t row_stride = 0, col_stride = 0;
    const void *bias = nullptr;  // [rows], or null
    DType bias_dtype = DType::kDefault;
    const StoredMatrix *stored = nullptr;   // codes of a quantised checkpoint, or null: floats
    uint32_t first_row = 0, first_col = 0;  // of the tensor, where there is one
};

// Backends read a matrix through copies only: the memory may be a mapped file, and where that is cut short meanwhile,
// touching it would end the process.
//
// Copies rows [row, row + rows), all columns, to `target`, which holds copyBytes(matrix, rows), and makes `copy` that
// part in its new place, without a bias. Returns false when not all of it can be read; what could not be is zero.
// Codes are decoded to F32; `reader`, of matrix.stored, keeps them from allocating memory in every call.
bool copyRows(const HostMatrix &matrix, uint32_t row, uint32_t rows, void *target, HostMatrix &copy,
              StoredReader *reader = nullptr);
size_t copyBytes(const HostMatrix &matrix, uint32_t rows) noexcept;

// How much a matrix's rounding matters to the model, for formats that give some matrices more bits than others.
enum class Precision : uint8_t {
    kPlain,
    kRaised,  // more bits where the format can afford it
    kHigh,    // more bits in any case
    kInput,   // the same, and its activations decide about all that follows
    kExact,   // as given, multiplied with activations that are not rounded
};

// A linear layer, whose parts are stacked by rows (q, k, v; gate, up). Their dtypes may differ.
struct LinearSource {
    const char *name;  // for messages: "attn_qkv"
    int32_t layer;     // -1 outside layers
    std::vector<HostMatrix> parts;
    uint32_t rope_rows = 0;  // the first rows of all parts together that qkNormRopeStore rotates, heads of dh rows
    Precision precision = Precision::kPlain;
    bool gate_up = false;  // for linearSwiglu: the parts' rows are those of gate, then as many of up
    // Of how many experts the parts are, as many parts of each, one expert after the other; 0: a plain layer.
    uint32_t experts = 0;
};

// The float dtype that holds the parts exactly: their own, or F32 if they differ or are codes.
inline DType commonDType(const LinearSource &source) {
    DType dtype = source.parts[0].dtype;
    for (const HostMatrix &part : source.parts) {
        dtype = part.dtype == dtype && part.stored == nullptr ? dtype : DType::kF32;
    }
    return dtype;
}

struct NormSource {
    const char *name;
    int32_t layer;
    DType dtype;
    const void *data;
    uint32_t size;
    bool rope = false;  // the weight of a norm over heads that are then rotated
};

// ---------------------------------------------------------------- as a backend holds them

// A packed linear layer [out, in]; its layout is the backend's secret.
class PackedLinear {
public:
    virtual ~PackedLinear() = default;
    virtual size_t bytes() const = 0;               // in memory
    virtual size_t fileBytes() const { return 0; }  // in the file of packed weights, read whenever they are used
};

// The packed weight of a norm.
class PackedNorm {
public:
    virtual ~PackedNorm() = default;
    virtual size_t bytes() const = 0;
};

// The token embedding [dvoc, d].
struct EmbeddingSource {
    LinearSource table;
    // When it is tied to lm_head: the packed lm_head of every rank, whose rows follow each other. Rows may be read from
    // there, so they outlive the packed embedding. Empty when it is not tied.
    std::vector<const PackedLinear *> heads;
    bool borrow;  // the table's data stays valid for the life of the packed embedding
};

}  // namespace q3
