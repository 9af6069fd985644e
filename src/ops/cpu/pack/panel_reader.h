// Reads a linear layer as the caller gives it in tiles of 16 rows, k-major and converted, and finds NaN and infinity.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "ops/cpu/formats.h"
#include "ops/types.h"
#include "ops/weights.h"

namespace q3::cpu {

// The element at `data`, of a float dtype.
float elementAsFloat(const char *data, DType dtype);

// A tensor in messages: "attn_qkv of layer 3"; layer -1: outside layers.
std::string describe(const char *name, int32_t layer);

// How the rows of a stacked source are spread over panels.
struct PanelShape {
    uint32_t out;     // output features; with interleave, gate rows only
    bool interleave;  // gate panels at even, up panels at odd indices
};

class PanelReader {
public:
    static constexpr uint32_t kMaxBlock = 128;  // columns per call

    // dtype: what the elements become: F32, F16 or BF16. source must outlive the reader.
    PanelReader(const LinearSource &source, DType dtype, const PanelShape &shape);

    // Throws IO_ERROR if a file that the source lies in has become too short, which would end the process at first
    // read. It may become so later: see copied().
    void checkReadable() const;

    // The 16 rows of a panel; those past the end of the layer read as zeros.
    struct Rows {
        const char *data[kPanelRows];
        size_t col_stride[kPanelRows];  // bytes; 0 for rows past the end
        DType dtypes[kPanelRows];
        bool one_dtype;  // all have dtypes[0]
        bool contiguous;
        uint32_t first;  // row of the layer that data[0] is
    };
    Rows rows(uint32_t panel) const;
    // The same rows in `copy`, of copyBytes(), which stay there whatever happens to the source's file. If it has become
    // too short by now, they are zeros and check() throws. Columns that are not contiguous (an [in, out] layout) are
    // not copied: each would take a system call.
    Rows copied(const Rows &rows, char *copy);
    size_t copyBytes() const { return kPanelRows * row_bytes_; }

    // Columns [k0, k0 + count) of dtype F32: tile[count][16].
    void readFloats(const Rows &rows, uint32_t k0, uint32_t count, float *tile);
    // Of dtype F16 or BF16, two columns to a word: tile[ceil(count / 2)][16][2], an odd last half zero.
    void readPairs(const Rows &rows, uint32_t k0, uint32_t count, uint32_t *tile);

    // Throws BAD_WEIGHTS and where, if anything read so far was NaN, infinite or too large for dtype; IO_ERROR if
    // something could not be copied.
    void check() const;

private:
    void gatherPairs(const Rows &rows, uint32_t k0, uint32_t count, uint32_t *tile) const;
    void gatherFloats(const Rows &rows, uint32_t k0, uint32_t count, float *tile) const;
    void report(const Rows &rows, uint32_t k0, uint32_t column, uint32_t row);

    static constexpr uint64_t kNone = ~uint64_t{0};
    const LinearSource &source_;
    DType dtype_;
    PanelShape shape_;
    size_t row_bytes_;         // at most, in a copy
    std::vector<char> zeros_;  // one row
    std::atomic<bool> unreadable_{false};
    std::atomic<uint64_t> bad_{kNone};  // row << 32 | column, the least of all threads
};

}  // namespace q3::cpu
