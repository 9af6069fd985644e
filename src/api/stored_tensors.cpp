#include "api/stored_tensors.h"

#include <cinttypes>

#include "runtime/error.h"
#include "runtime/readable.h"

namespace q3 {
namespace {

struct Name {
    int32_t value;
    const char *name;
};

#define QWEN3_DTYPE(name) {QWEN3_DTYPE_##name, #name}
constexpr Name kStored[] = {
    QWEN3_DTYPE(I8),          QWEN3_DTYPE(U8),        QWEN3_DTYPE(U4),        QWEN3_DTYPE(F8_E4M3),
    QWEN3_DTYPE(F8_E8M0),     QWEN3_DTYPE(GGUF_Q4_0), QWEN3_DTYPE(GGUF_Q4_1), QWEN3_DTYPE(GGUF_Q5_0),
    QWEN3_DTYPE(GGUF_Q5_1),   QWEN3_DTYPE(GGUF_Q8_0), QWEN3_DTYPE(GGUF_Q2_K), QWEN3_DTYPE(GGUF_Q3_K),
    QWEN3_DTYPE(GGUF_Q4_K),   QWEN3_DTYPE(GGUF_Q5_K), QWEN3_DTYPE(GGUF_Q6_K), QWEN3_DTYPE(GGUF_IQ4_NL),
    QWEN3_DTYPE(GGUF_IQ4_XS),
};
#undef QWEN3_DTYPE

constexpr const char *kLayouts[] = {"PLAIN", "GPTQ", "AWQ", "PACK_QUANTIZED"};

class Checker {
public:
    Checker(const Qwen3Tensor &tensor, const std::string &name) : t_(tensor), name_(name) {}

    StoredMatrix read() {
        m_.dtype = static_cast<DType>(t_.dtype);
        m_.layout = t_.layout;
        m_.rows = static_cast<uint32_t>(t_.rows);
        m_.cols = static_cast<uint32_t>(t_.cols);
        m_.row_stride = t_.row_stride != 0 ? t_.row_stride : t_.cols;
        m_.col_stride = t_.col_stride != 0 ? t_.col_stride : 1;
        m_.data = t_.data;
        m_.scales = t_.scales;
        m_.zeros = t_.zeros;
        m_.scale_dtype = static_cast<DType>(t_.scale_dtype);
        m_.zero_dtype = static_cast<DType>(t_.zero_dtype);
        m_.zero_offset = t_.zero_offset;
        m_.block_rows = t_.block_rows != 0 ? t_.block_rows : m_.rows;
        m_.block_cols = t_.block_cols != 0 ? t_.block_cols : m_.cols;
        if (t_.data == nullptr) {
            fail(QWEN3_STATUS_NULL_POINTER, "%s: data is NULL", name_.c_str());
        }
        const BlockShape block = blockShape(m_.dtype);
        if (block.elements > 0) {
            checkBlocks(block.elements);
            return m_;
        }
        if (t_.dtype == QWEN3_DTYPE_F8_E8M0) {
            fail(QWEN3_STATUS_BAD_TENSOR_DTYPE, "%s: dtype is F8_E8M0, which is for scales only", name_.c_str());
        }
        checkLayout();
        checkScales();
        checkZeros();
        readGroups();
        return m_;
    }

private:
    void checkBlocks(uint32_t elements) const {
        if (t_.layout != QWEN3_LAYOUT_PLAIN) {
            fail(QWEN3_STATUS_BAD_PARAM, "%s: layout is %s, must be PLAIN for %s", name_.c_str(), kLayouts[t_.layout],
                 storedDTypeName(t_.dtype));
        }
        requirePlain(t_, name_);
        if (t_.cols % elements != 0) {
            fail(QWEN3_STATUS_BAD_TENSOR_SHAPE, "%s: cols is %zu, must be a multiple of %s's blocks of %u",
                 name_.c_str(), t_.cols, storedDTypeName(t_.dtype), elements);
        }
        if (m_.col_stride != 1 || m_.row_stride < t_.cols || m_.row_stride % elements != 0) {
            failStrides(("must be 1 and a multiple of " + std::to_string(elements) + " from cols on").c_str());
        }
    }

    [[noreturn]] void failStrides(const char *must) const {
        fail(QWEN3_STATUS_BAD_TENSOR_STRIDES, "%s: col_stride is %zu and row_stride %zu, %s", name_.c_str(),
             m_.col_stride, m_.row_stride, must);
    }

    void requireMultiple(const char *member, size_t value, uint32_t unit) const {
        if (value % unit != 0) {
            fail(QWEN3_STATUS_BAD_TENSOR_SHAPE, "%s: %s is %zu, must be a multiple of %u in the layout %s",
                 name_.c_str(), member, value, unit, kLayouts[t_.layout]);
        }
    }

    void checkLayout() {
        const bool words = t_.layout != QWEN3_LAYOUT_PLAIN;
        const bool four = t_.dtype == QWEN3_DTYPE_U4;
        if (words && !four && (t_.dtype != QWEN3_DTYPE_U8 || t_.layout == QWEN3_LAYOUT_AWQ)) {
            fail(QWEN3_STATUS_BAD_TENSOR_DTYPE, "%s: dtype is %s, must be %s in the layout %s", name_.c_str(),
                 storedDTypeName(t_.dtype), t_.layout == QWEN3_LAYOUT_AWQ ? "U4" : "U4 or U8", kLayouts[t_.layout]);
        }
        if ((words || four) && (m_.row_stride != t_.cols || m_.col_stride != 1)) {
            failStrides("must both be 0 for words and codes of 4 bits");
        }
        const uint32_t per_word = four ? 8 : 4;
        if (t_.layout == QWEN3_LAYOUT_GPTQ) {
            requireMultiple("cols", t_.cols, per_word);
        }
        if (t_.layout == QWEN3_LAYOUT_AWQ || (t_.layout == QWEN3_LAYOUT_GPTQ && t_.zeros != nullptr)) {
            requireMultiple("rows", t_.rows, per_word);
        }
        if (words && t_.block_rows > 1) {
            fail(QWEN3_STATUS_BAD_PARAM, "%s: block_rows is %u, must be 1 in the layout %s", name_.c_str(),
                 t_.block_rows, kLayouts[t_.layout]);
        }
        m_.block_rows = words ? 1 : m_.block_rows;
        const size_t row_bytes = (t_.cols + 1) / 2;
        if (four && !words && row_bytes * 2 != t_.cols) {
            fail(QWEN3_STATUS_BAD_TENSOR_SHAPE, "%s: cols is %zu, must be even for codes of 4 bits", name_.c_str(),
                 t_.cols);
        }
        if (m_.rowsAreColumns()) {
            m_.row_stride = 1;
            m_.col_stride = t_.rows;
        }
    }

    void checkScales() const {
        const bool known = t_.scale_dtype == QWEN3_DTYPE_F8_E8M0 || isFloatDType(m_.scale_dtype);
        if (t_.scales == nullptr ? t_.scale_dtype != 0 : !known) {
            fail(QWEN3_STATUS_BAD_TENSOR_DTYPE, "%s: scale_dtype is %d, must be %s", name_.c_str(), t_.scale_dtype,
                 t_.scales == nullptr ? "0: scales is NULL" : "F16 (12), F32 (13), BF16 (19) or F8_E8M0 (112)");
        }
        if (t_.groups != nullptr && t_.dtype == QWEN3_DTYPE_F8_E4M3) {
            fail(QWEN3_STATUS_NOT_IMPLEMENTED, "%s: groups of F8_E4M3 columns out of order are not implemented",
                 name_.c_str());
        }
    }

    void checkZeros() const {
        constexpr int32_t kMost = 1 << 16;
        if (t_.zero_offset < -kMost || t_.zero_offset > kMost) {
            fail(QWEN3_STATUS_BAD_PARAM, "%s: zero_offset is %" PRId32 ", must be from %d to %d", name_.c_str(),
                 t_.zero_offset, -kMost, kMost);
        }
        if (t_.dtype == QWEN3_DTYPE_F8_E4M3 && (t_.zeros != nullptr || t_.zero_dtype != 0 || t_.zero_offset != 0)) {
            fail(QWEN3_STATUS_BAD_PARAM, "%s: zeros, zero_dtype and zero_offset must be 0: F8_E4M3 has no zero points",
                 name_.c_str());
        }
        const auto require = [&](bool good, const char *must) {
            if (!good) {
                fail(QWEN3_STATUS_BAD_TENSOR_DTYPE, "%s: zero_dtype is %d, must be %s", name_.c_str(), t_.zero_dtype,
                     must);
            }
        };
        const DType zero = m_.zero_dtype;
        if (t_.zeros == nullptr) {
            require(t_.zero_dtype == 0, "0: zeros is NULL");
        } else if (t_.layout == QWEN3_LAYOUT_PLAIN) {
            require(zero == DType::kU8 || zero == DType::kI8 || isFloatDType(zero),
                    "I8 (3), U8 (7), F16 (12), F32 (13) or BF16 (19) in the layout PLAIN");
        } else {
            require(zero == m_.dtype, "the dtype of the codes in layouts of words");
        }
        if (isFloatDType(zero) && t_.zero_offset != 0) {
            fail(QWEN3_STATUS_BAD_PARAM, "%s: zero_offset is %" PRId32 ", must be 0 with a float zero_dtype",
                 name_.c_str(), t_.zero_offset);
        }
    }

    // Groups decide what the columns are packed as, so they are read before anything else is.
    void readGroups() {
        if (t_.groups == nullptr) {
            return;
        }
        m_.groups.resize(t_.cols);
        if (!copyReadable(m_.groups.data(), t_.groups, t_.cols * sizeof(uint32_t))) {
            failUnreadable((name_ + "'s groups").c_str());
        }
        bool in_order = true;
        for (uint32_t col = 0; col < m_.cols; ++col) {
            const uint32_t group = m_.groups[col];  // negative numbers are large ones
            if (group >= m_.ngroups()) {
                fail(QWEN3_STATUS_BAD_PARAM, "%s: groups[%u] is %" PRId32 ", must be from 0 to %u", name_.c_str(), col,
                     static_cast<int32_t>(group), m_.ngroups() - 1);
            }
            in_order = in_order && group == col / m_.block_cols;
        }
        if (in_order) {
            m_.groups.clear();
        }
    }

    const Qwen3Tensor &t_;
    const std::string &name_;
    StoredMatrix m_;
};

}  // namespace

const char *storedDTypeName(int32_t dtype) {
    for (const Name &stored : kStored) {
        if (stored.value == dtype) {
            return stored.name;
        }
    }
    return nullptr;
}

StoredMatrix readStored(const Qwen3Tensor &tensor, const std::string &name) {
    return Checker(tensor, name).read();
}

void requirePlain(const Qwen3Tensor &t, const std::string &name) {
    const char *dtype = storedDTypeName(t.dtype);
    const auto refuse = [&](const char *members) {
        fail(QWEN3_STATUS_BAD_PARAM, "%s: %s must be 0: the dtype %s has none", name.c_str(), members,
             dtype != nullptr ? dtype : dtypeName(static_cast<DType>(t.dtype)));
    };
    if (t.scales != nullptr || t.scale_dtype != 0) {
        refuse("scales and scale_dtype");
    }
    if (t.zeros != nullptr || t.zero_dtype != 0 || t.zero_offset != 0) {
        refuse("zeros, zero_dtype and zero_offset");
    }
    if (t.groups != nullptr) {
        refuse("groups");
    }
    if (t.block_rows != 0 || t.block_cols != 0) {
        refuse("block_rows and block_cols");
    }
}

}  // namespace q3
