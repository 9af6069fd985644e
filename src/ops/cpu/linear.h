// Linear layers: packed weights times rows of activations, split over a thread pool.
#pragma once

#include <atomic>
#include <vector>

#include "ops/cpu/arithmetic.h"
#include "ops/cpu/host_buffer.h"
#include "ops/cpu/kernels/kernels.h"
#include "ops/cpu/pack/pack.h"
#include "ops/routing.h"
#include "runtime/thread_pool.h"

namespace q3::cpu {

// Panels that a one-row kernel streams together.
inline constexpr uint32_t kTogether = 4;

constexpr uint32_t groupsIn(uint32_t k) {
    return (k + kGroup - 1) / kGroup;
}

// Rows of one of `parts` nearly equal parts.
constexpr uint32_t partSize(uint32_t rows, uint32_t parts, uint32_t part) {
    return rows / parts + (part < rows % parts ? 1 : 0);
}
// Its first row.
constexpr uint32_t partBegin(uint32_t rows, uint32_t parts, uint32_t part) {
    return part * (rows / parts) + (part < rows % parts ? part : rows % parts);
}

// The tiles that rows are cut into. Those after the first one are nearly equal, since two tiles of 4 rows beat one of 6
// and one of 2, which has too few chains; or all but the last one are full.
struct RowParts {
    uint32_t rows, count;
    uint32_t first;  // rows of the first one
    bool full = false;

    uint32_t size(uint32_t part) const {
        if (full) {
            return part + 1 < count ? first : rows - begin(part);
        }
        return part == 0 ? first : partSize(rows - first, count - 1, part - 1);
    }
    uint32_t begin(uint32_t part) const {
        if (full || part == 0) {
            return part * first;
        }
        return first + partBegin(rows - first, count - 1, part - 1);
    }
};

// What layers of experts need of Linears.
struct SlotLimits {
    uint32_t count = 0;      // most slots of a Routing
    uint32_t width = 0;      // of the widest layer
    bool from_file = false;  // their panels may be in a file
};

// One caller at a time. Nothing allocates after construction. A row's result does not depend on the rows that are
// multiplied with it, nor on the number of threads.
class Linears {
public:
    // max_rows: most rows of a call, in whole tiles of kMaxTileRows; widest: input features of the widest layer;
    // format: the weights' format, which decides what scratch is needed. If it takes codes, layers of other formats
    // that do are welcome too. codes: some layers take codes whatever that format is. slot_limits: of layers of
    // experts. The table and the pool must outlive the object.
    Linears(const KernelTable &kernels, ThreadPool &pool, uint32_t max_rows, uint32_t widest, WeightFormat format,
            const Arithmetic &arithmetic, bool codes = false, const SlotLimits &slot_limits = {});

    // out[r * ldo + j] = sum over k of in[r][k] * w[j][k] + bias[j], in [rows][w.in], j < w.out
    void multiply(float *out, size_t ldo, const float *in, uint32_t rows, const CpuLinear &w);
    // out[r * ldo + j] = silu(gate) * up, the products of in's row with row j of an interleaved layer's two matrices
    void multiplySwiglu(float *out, size_t ldo, const float *in, uint32_t rows, const CpuLinear &gate_up);

    // The same for a layer of experts: row s of out is of slot s, the products of its row of `in`, rowOf()[s], with the
    // panels of its expert; or, with `slots`, of row s of `in`. The experts' panels are one loop over all threads.
    void multiplyExperts(float *out, size_t ldo, const float *in, bool slots, const Routing &routing,
                         const CpuLinear &w);
    void multiplyExpertsSwiglu(float *out, size_t ldo, const float *in, bool slots, const Routing &routing,
                               const CpuLinear &gate_up);
    // Asks for the panels of the chosen experts that are in a file, so that they are read side by side. Products with
    // panels that cannot be read throw IO_ERROR.
    void fetch(const Routing &routing, const CpuLinear &w) const;

    // Makes room for rows in front of a layer whose inputs have an order. Before steps; may allocate.
    void reserve(const CpuLinear &w);
    size_t scratchBytes() const;

private:
    // Where sums may be written by the kernel itself, a row's ld floats after the one before.
    struct Output {
        float *data = nullptr;  // of the first row and panel; null: nowhere
        size_t ld = 0;
    };
    // Rows that meet the same panels: all of a call and of a layer, or those of an expert.
    struct Segment {
        uint32_t first, rows;     // of the rows as they are prepared
        uint32_t panel, npanels;  // of the layer
        uint32_t out;             // row of the output that the first row's is
        Output direct = {};
    };
    // Neighbouring panels of one layer, cut to k [k0, k0 + k).
    struct Panels {
        const char *data;  // of k0
        size_t stride;     // bytes from panel to panel
        uint32_t count;
        WeightFormat format;
        uint32_t k0, k;
        CodeWidth width;        // of the codes that the rows are, where the format takes codes
        bool alone = false;     // sums begin with this k; else with k = 0
        bool streamed = false;  // they come from memory and not from a cache
    };
    // Rows [first, first + rows), which are multiplied together, and their k [k0, k0 + k), whole groups.
    struct CodedPart {
        uint32_t first, rows;
        uint32_t k0, k;
    };
    struct Rows {
        const float *in;  // of all rows of the call
        size_t ld;
        uint32_t first, count;  // one of the parts that the rows are cut into
    };

    float *blockScratch(uint32_t thread) const;
    Panels expandPanels(const Panels &panels, WeightFormat from, char *expanded) const;
    void multiplyExpandedF8(const Panels &panels, const char *f8, size_t stride, const Rows &rows, float *product,
                            uint32_t thread) const;
    void multiplyOne(float *out, size_t ldo, const float *in, uint32_t rows, const CpuLinear &w);
    const char *panelsOf(const CpuLinear &w, uint32_t first, uint32_t count, uint32_t thread);
    size_t scratchFloats(WeightFormat format) const;
    RowParts partsOf(uint32_t rows, WeightFormat format) const;
    CodeWidth widthOf(const CpuLinear &w) const;
    QuantRows codesOf(uint32_t first, uint32_t count, uint32_t k, const CodeKernels &kernels) const;
    uint32_t piecesOf(WeightFormat format) const;
    uint32_t tileRows(WeightFormat format) const;
    uint32_t streamRows(WeightFormat format) const;
    bool hasTaller(WeightFormat format) const;
    bool expands(WeightFormat format, uint32_t rows) const;
    uint32_t panelsTogether(const CpuLinear &w, uint32_t rows) const;
    void prepareRows(const float *in, uint32_t rows, const CpuLinear &w);
    void quantizeRows(const float *in, uint32_t rows, const CpuLinear &w);
    void quantizePart(const float *in, const uint32_t *row_of, const CodedPart &part, const CpuLinear &w,
                      uint32_t expert, uint32_t thread);
    void reserveCodes(size_t groups);
    size_t roundedBytes(uint32_t k, uint32_t pieces) const;
    void roundRows(const float *in, const uint32_t *row_of, uint32_t rows, uint32_t k, uint32_t pieces);
    static bool sharesRow(bool slots, const Routing &routing, const CpuLinear &w);
    const float *prepareSlots(const float *in, bool slots, const Routing &routing, const CpuLinear &w);
    void multiplyPanels(const Panels &panels, const Rows &rows, float *out, size_t ldo) const;
    template <typename Epilogue>
    void multiplyRows(const float *in, uint32_t rows, const CpuLinear &w, const Output &direct,
                      const Epilogue &epilogue);
    template <typename Epilogue>
    void multiplySlots(const float *in, bool slots, const Routing &routing, const CpuLinear &w,
                       const Epilogue &epilogue);
    template <typename Epilogue>
    void streamPanels(const float *in, const Segment &segment, const CpuLinear &w, uint32_t begin, uint32_t end,
                      uint32_t thread, const Epilogue &epilogue);
    template <typename Epilogue>
    void reusePanels(const float *in, const Segment &segment, const CpuLinear &w, uint32_t begin, uint32_t end,
                     uint32_t thread, const Epilogue &epilogue);

    const KernelTable &kernels_;
    ThreadPool &pool_;
    Arithmetic arithmetic_;
    uint32_t max_rows_;
    size_t slot_rows_;
    HostBuffer codes_, scales_, offsets_;
    HostBuffer rounded_;
    HostBuffer gathered_;              // rows of slots, side by side
    std::vector<HostBuffer> ordered_;  // per thread: a row in the order of a layer's inputs; or none
    RoundedRows rounded_rows_{};       // over rounded_
    std::vector<HostBuffer> scratch_;  // per thread, scratchFloats() each
    std::vector<HostBuffer> read_;     // per thread: panels from a file
    std::atomic<int> read_error_{0};   // of the product that runs; what readPanels returned
};

}  // namespace q3::cpu
