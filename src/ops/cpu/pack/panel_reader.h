// Reads a linear layer as the caller gives it in tiles of 16 rows, k-major and converted, and finds NaN and infinity.
#pragma once

#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include "ops/cpu/formats.h"
#include "ops/stored.h"
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

    // dtype: what the elements become: F32, F16 or BF16,
    // or DType::kDefault: parts that all have pieces (StoredMatrix::hasPieces) are read as codes, in `order` if it is
    // not empty (StoredReader::codes). What they point to must outlive the reader.
    PanelReader(const LinearSource &source, DType dtype, const PanelShape &shape, const ColumnOrder &order = {});

    // Throws IO_ERROR if the source lies in a mapped file that has become too short, before work is begun. The file may
    // also be cut after this check: see copy().
    void checkReadable() const;

    // Rows of the source for some neighbouring panels, copied by one thread: safe from whatever happens to the source's
    // file. Holds a place for the largest number of panels that stripPanels() allows.
    class Strip {
    public:
        explicit Strip(const PanelReader &reader);

    private:
        friend class PanelReader;
        struct Piece {
            uint32_t first;  // row of the layer that the copy begins with
            HostMatrix rows;
            CodedRows coded;
        };
        std::vector<std::optional<StoredReader>> readers_;  // one per part, of those that are codes
        std::vector<Piece> pieces_;
        size_t count_ = 0;  // of pieces
        size_t used_ = 0;   // of copies_
        std::vector<char> copies_;
    };
    // How many panels to copy together: one where rows are contiguous, and more of an [in, out] layout, in which the
    // elements of few rows lie far apart.
    uint32_t stripPanels() const { return strip_panels_; }
    // Copies what panels [begin, end) need. What cannot be read by now is zeros, and check() throws.
    void copy(uint32_t begin, uint32_t end, Strip &strip);

    // The 16 rows of a panel, which the strip has; those past the end of the layer read as zeros.
    struct Rows {
        const char *data[kPanelRows];
        size_t col_stride[kPanelRows];  // bytes; 0 for rows past the end
        DType dtypes[kPanelRows];
        bool one_dtype;  // all have dtypes[0]
        bool contiguous;
        uint32_t first;  // row of the layer that data[0] is
        // Instead of data, where codes are read; null for rows past the end.
        const int16_t *codes[kPanelRows];
        const CodePiece *pieces[kPanelRows];
    };
    Rows rows(uint32_t panel, const Strip &strip) const;

    // Reads columns [k0, k0 + count) as F32: tile[count][16].
    void readFloats(const Rows &rows, uint32_t k0, uint32_t count, float *tile);
    // Reads columns as F16 or BF16, two to a word: tile[ceil(count / 2)][16][2]. The second half of an odd last
    // column's word is zero.
    void readPairs(const Rows &rows, uint32_t k0, uint32_t count, uint32_t *tile);

    // A scale that is NaN or infinite was found.
    void reportScale(const Rows &rows, uint32_t column, uint32_t row) {
        report(rows, order_.empty() ? column : order_[column], 0, row);
    }

    // Throws BAD_WEIGHTS and where, if anything read so far was NaN, infinite or too large for dtype; IO_ERROR if
    // something could not be copied.
    void check() const;

private:
    size_t stripBytes(uint32_t panels) const;
    uint32_t mostRows(const HostMatrix &part, uint32_t panels) const;
    void copyLayerRows(uint32_t first, uint32_t last, Strip &strip);
    void gatherPairs(const Rows &rows, uint32_t k0, uint32_t count, uint32_t *tile) const;
    void gatherFloats(const Rows &rows, uint32_t k0, uint32_t count, float *tile) const;
    void report(const Rows &rows, uint32_t k0, uint32_t column, uint32_t row);

    static constexpr uint64_t kNone = ~uint64_t{0};
    const LinearSource &source_;
    DType dtype_;
    PanelShape shape_;
    ColumnOrder order_;
    std::vector<char> zeros_;  // one row
    uint32_t strip_panels_;
    std::atomic<bool> unreadable_{false};
    std::atomic<uint64_t> bad_{kNone};  // row << 32 | column, the least that any thread found
};

}  // namespace q3::cpu
