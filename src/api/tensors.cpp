#include "api/tensors.h"

#include <algorithm>
#include <map>
#include <string>
#include <tuple>

#include "api/stored_tensors.h"
#include "api/structs.h"
#include "api/validate.h"
#include "runtime/error.h"

namespace q3 {
namespace {

constexpr size_t kMaxTensors = size_t{1} << 24;
constexpr size_t kMaxStride = size_t{1} << 32;
// Somebody reads the first few; the rest is counted.
constexpr size_t kMaxListed = 10;

// ---------------------------------------------------------------- what a role is

enum class Kind { kTable, kNorm, kMatrix, kBias, kRouter, kExperts };

// The layer's matrices by rows: a role of kind kMatrix or kBias is `count` of them, one after the other, from `first`
// on. Those of an expert likewise.
enum Part : uint32_t { kQ, kK, kV, kO, kGate, kUp, kDown, kParts };
enum Norm : uint32_t { kAttnNorm, kQNorm, kKNorm, kFfnNorm, kNorms };
enum ExpertPart : uint32_t { kExpertGate, kExpertUp, kExpertDown, kExpertParts };
enum Table : uint32_t { kInputEmbd, kOutputNorm, kOutputEmbd, kTables };

struct Role {
    int32_t role;
    const char *name;  // in messages: Qwen3Weights' member
    Kind kind;
    uint32_t first;  // Part, Norm, ExpertPart or Table
    uint32_t count = 1;
};

constexpr Role kRoles[] = {
    {QWEN3_TENSOR_INPUT_EMBD, "input_embd", Kind::kTable, kInputEmbd},
    {QWEN3_TENSOR_OUTPUT_NORM, "output_norm", Kind::kTable, kOutputNorm},
    {QWEN3_TENSOR_OUTPUT_EMBD, "output_embd", Kind::kTable, kOutputEmbd},
    {QWEN3_TENSOR_ATTN_NORM, "attn_norm", Kind::kNorm, kAttnNorm},
    {QWEN3_TENSOR_ATTN_Q_NORM, "attn_q_norm", Kind::kNorm, kQNorm},
    {QWEN3_TENSOR_ATTN_K_NORM, "attn_k_norm", Kind::kNorm, kKNorm},
    {QWEN3_TENSOR_FFN_NORM, "ffn_norm", Kind::kNorm, kFfnNorm},
    {QWEN3_TENSOR_ATTN_QKV, "attn_qkv", Kind::kMatrix, kQ, 3},
    {QWEN3_TENSOR_ATTN_Q, "attn_q", Kind::kMatrix, kQ},
    {QWEN3_TENSOR_ATTN_K, "attn_k", Kind::kMatrix, kK},
    {QWEN3_TENSOR_ATTN_V, "attn_v", Kind::kMatrix, kV},
    {QWEN3_TENSOR_ATTN_O, "attn_o", Kind::kMatrix, kO},
    {QWEN3_TENSOR_FFN_GATE_UP, "ffn_gate_up", Kind::kMatrix, kGate, 2},
    {QWEN3_TENSOR_FFN_GATE, "ffn_gate", Kind::kMatrix, kGate},
    {QWEN3_TENSOR_FFN_UP, "ffn_up", Kind::kMatrix, kUp},
    {QWEN3_TENSOR_FFN_DOWN, "ffn_down", Kind::kMatrix, kDown},
    {QWEN3_TENSOR_ATTN_QKV_B, "attn_qkv_b", Kind::kBias, kQ, 3},
    {QWEN3_TENSOR_ATTN_Q_B, "attn_q_b", Kind::kBias, kQ},
    {QWEN3_TENSOR_ATTN_K_B, "attn_k_b", Kind::kBias, kK},
    {QWEN3_TENSOR_ATTN_V_B, "attn_v_b", Kind::kBias, kV},
    {QWEN3_TENSOR_ATTN_O_B, "attn_o_b", Kind::kBias, kO},
    {QWEN3_TENSOR_FFN_ROUTER, "ffn_router", Kind::kRouter, 0},
    {QWEN3_TENSOR_EXPERT_GATE_UP, "expert_gate_up", Kind::kExperts, kExpertGate, 2},
    {QWEN3_TENSOR_EXPERT_GATE, "expert_gate", Kind::kExperts, kExpertGate},
    {QWEN3_TENSOR_EXPERT_UP, "expert_up", Kind::kExperts, kExpertUp},
    {QWEN3_TENSOR_EXPERT_DOWN, "expert_down", Kind::kExperts, kExpertDown},
};

const Role &roleOf(int32_t number) {
    for (const Role &role : kRoles) {
        if (role.role == number) {
            return role;
        }
    }
    fail(QWEN3_STATUS_INTERNAL_ERROR, "no tensor role %d", number);
}

struct Shape {
    uint64_t rows, cols;
};

Shape partShape(const ModelConfig &c, uint32_t part) {
    const uint64_t q = uint64_t{c.nh} * c.dh;
    const uint64_t kv = uint64_t{c.nkvh} * c.dh;
    const Shape shapes[kParts] = {{q, c.d}, {kv, c.d}, {kv, c.d}, {c.d, q}, {c.di, c.d}, {c.di, c.d}, {c.d, c.di}};
    return shapes[part];
}

Shape shapeOf(const ModelConfig &c, const Role &role) {
    if (role.kind == Kind::kTable) {
        return role.first == kOutputNorm ? Shape{c.d, 1} : Shape{c.dvoc, c.d};
    }
    if (role.kind == Kind::kNorm) {
        return {role.first == kQNorm || role.first == kKNorm ? c.dh : c.d, 1};
    }
    if (role.kind == Kind::kRouter) {
        return {c.nexperts, c.d};
    }
    if (role.kind == Kind::kExperts) {
        return role.first == kExpertDown ? Shape{c.d, c.dm} : Shape{uint64_t{role.count} * c.dm, c.d};
    }
    Shape shape{0, role.kind == Kind::kBias ? 1 : partShape(c, role.first).cols};
    for (uint32_t part = role.first; part < role.first + role.count; ++part) {
        shape.rows += partShape(c, part).rows;
    }
    return shape;
}

HostMatrix &partOf(LayerTensors &l, uint32_t part) {
    HostMatrix *const parts[kParts] = {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down};
    return *parts[part];
}

HostMatrix &partOf(ExpertTensors &e, uint32_t part) {
    HostMatrix *const parts[kExpertParts] = {&e.gate, &e.up, &e.down};
    return *parts[part];
}

HostNorm &normOf(LayerTensors &l, uint32_t norm) {
    HostNorm *const norms[kNorms] = {&l.attn_norm, &l.q_norm, &l.k_norm, &l.ffn_norm};
    return *norms[norm];
}

bool isVector(const Role &role) {
    return role.kind == Kind::kNorm || role.kind == Kind::kBias || role.role == QWEN3_TENSOR_OUTPUT_NORM;
}

std::string describe(const Role &role, size_t layer) {
    return role.kind == Kind::kTable ? role.name : role.name + (" of layer " + std::to_string(layer));
}

// ---------------------------------------------------------------- putting them together

class Collector {
public:
    explicit Collector(const ModelConfig &config) : c_(config) { out_.layers.resize(config.nlayer); }

    std::deque<StoredMatrix> &stored() { return out_.stored; }

    // `whole` has the shape of the role, of one expert where it is of those. Replaces what was there.
    void place(const Role &role, size_t layer, const HostMatrix &whole, uint32_t expert = 0) {
        if (role.kind == Kind::kTable) {
            if (role.first == kOutputNorm) {
                out_.output_norm = {whole.data, whole.dtype};
            } else {
                (role.first == kInputEmbd ? out_.input_embd : out_.output_embd) = whole;
            }
            return;
        }
        LayerTensors &l = out_.layers[layer];
        if (role.kind == Kind::kNorm) {
            normOf(l, role.first) = {whole.data, whole.dtype};
            return;
        }
        if (role.kind == Kind::kRouter) {
            l.router = whole;
            return;
        }
        if (role.kind == Kind::kExperts) {
            l.experts.resize(c_.nexperts);
            for (uint32_t i = 0; i < role.count; ++i) {
                partOf(l.experts[expert], role.first + i) = rowsOf(whole, i * c_.dm, whole.rows / role.count);
            }
            return;
        }
        uint32_t row = 0;
        for (uint32_t part = role.first; part < role.first + role.count; ++part) {
            HostMatrix &target = partOf(l, part);
            const HostMatrix slice = rowsOf(whole, row, static_cast<uint32_t>(partShape(c_, part).rows));
            if (role.kind == Kind::kBias) {
                target.bias = slice.data;
                target.bias_dtype = slice.dtype;
            } else {
                const HostMatrix old = target;
                target = slice;
                target.bias = old.bias;
                target.bias_dtype = old.bias_dtype;
            }
            row += slice.rows;
        }
    }

    // Throws unless the model is complete.
    ModelTensors finish(int32_t status, const char *arguments) {
        std::string missing;
        size_t count = 0;
        const auto require = [&](const void *data, int32_t role, size_t layer, const std::string &more = "") {
            if (data == nullptr && ++count <= kMaxListed) {
                missing += (missing.empty() ? "" : ", ") + describe(roleOf(role), layer) + more;
            }
        };
        require(out_.input_embd.data, QWEN3_TENSOR_INPUT_EMBD, 0);
        require(out_.output_norm.data, QWEN3_TENSOR_OUTPUT_NORM, 0);
        for (size_t i = 0; i < out_.layers.size(); ++i) {
            LayerTensors &l = out_.layers[i];
            const bool experts = l.router.data != nullptr || !l.experts.empty();
            l.experts.resize(experts ? c_.nexperts : 0);
            for (const Role &role : kRoles) {
                if (role.kind == Kind::kNorm) {
                    require(normOf(l, role.first).data, role.role, i);
                } else if (role.kind == Kind::kMatrix && role.count == 1) {
                    const HostMatrix &matrix = partOf(l, role.first);
                    const bool mlp = role.first >= kGate;
                    if (mlp && experts && matrix.data != nullptr) {
                        fail(QWEN3_STATUS_BAD_PARAM, "%s is given, but the layer has experts in its place",
                             describe(role, i).c_str());
                    }
                    if (!mlp || !experts) {
                        require(matrix.data, role.role, i);
                    }
                } else if (role.kind == Kind::kRouter && experts) {
                    require(l.router.data, role.role, i);
                } else if (role.kind == Kind::kExperts && role.count == 1) {
                    for (size_t e = 0; e < l.experts.size(); ++e) {
                        require(partOf(l.experts[e], role.first).data, role.role, i, ", expert " + std::to_string(e));
                    }
                }
            }
        }
        if (count > 0) {
            const std::string more = count > kMaxListed ? ", ... (" + std::to_string(count) + " in all)" : "";
            fail(status, "missing from %s: %s%s", arguments, missing.c_str(), more.c_str());
        }
        return std::move(out_);
    }

private:
    const ModelConfig &c_;
    ModelTensors out_;
};

// ---------------------------------------------------------------- Qwen3Weights

struct Field {
    int32_t role;
    const void *const *Qwen3Weights::*array;
};

constexpr Field kFields[] = {
    {QWEN3_TENSOR_ATTN_NORM, &Qwen3Weights::attn_norm},     {QWEN3_TENSOR_ATTN_Q_NORM, &Qwen3Weights::attn_q_norm},
    {QWEN3_TENSOR_ATTN_K_NORM, &Qwen3Weights::attn_k_norm}, {QWEN3_TENSOR_FFN_NORM, &Qwen3Weights::ffn_norm},
    {QWEN3_TENSOR_ATTN_QKV, &Qwen3Weights::attn_qkv},       {QWEN3_TENSOR_ATTN_Q, &Qwen3Weights::attn_q},
    {QWEN3_TENSOR_ATTN_K, &Qwen3Weights::attn_k},           {QWEN3_TENSOR_ATTN_V, &Qwen3Weights::attn_v},
    {QWEN3_TENSOR_ATTN_O, &Qwen3Weights::attn_o},           {QWEN3_TENSOR_FFN_GATE_UP, &Qwen3Weights::ffn_gate_up},
    {QWEN3_TENSOR_FFN_GATE, &Qwen3Weights::ffn_gate},       {QWEN3_TENSOR_FFN_UP, &Qwen3Weights::ffn_up},
    {QWEN3_TENSOR_FFN_DOWN, &Qwen3Weights::ffn_down},       {QWEN3_TENSOR_ATTN_QKV_B, &Qwen3Weights::attn_qkv_b},
    {QWEN3_TENSOR_ATTN_Q_B, &Qwen3Weights::attn_q_b},       {QWEN3_TENSOR_ATTN_K_B, &Qwen3Weights::attn_k_b},
    {QWEN3_TENSOR_ATTN_V_B, &Qwen3Weights::attn_v_b},       {QWEN3_TENSOR_ATTN_O_B, &Qwen3Weights::attn_o_b},
};

// What may not be given together: a fused array and one of its parts.
void checkForms(const Qwen3Weights &w) {
    for (const Field &fused : kFields) {
        const Role &whole = roleOf(fused.role);
        for (const Field &field : kFields) {
            const Role &part = roleOf(field.role);
            const bool inside = part.count == 1 && part.first >= whole.first && part.first < whole.first + whole.count;
            if (whole.count > 1 && part.kind == whole.kind && inside && w.*fused.array != nullptr &&
                w.*field.array != nullptr) {
                fail(QWEN3_STATUS_BAD_PARAM, "weights.%s and weights.%s are both given: one must be NULL", whole.name,
                     part.name);
            }
        }
    }
}

// A bias goes with a matrix of its own form.
void checkBiases(const Qwen3Weights &w) {
    for (const Field &bias : kFields) {
        const Role &role = roleOf(bias.role);
        for (const Field &field : kFields) {
            const Role &matrix = roleOf(field.role);
            if (role.kind == Kind::kBias && matrix.kind == Kind::kMatrix && matrix.first == role.first &&
                matrix.count == role.count && w.*bias.array != nullptr && w.*field.array == nullptr) {
                fail(QWEN3_STATUS_BAD_PARAM, "weights.%s is given, but weights.%s, which it belongs to, is NULL",
                     role.name, matrix.name);
            }
        }
    }
}

// rows_first: [rows, cols] in memory, else [cols, rows].
HostMatrix packedMatrix(const void *data, DType dtype, const Shape &shape, bool rows_first) {
    HostMatrix matrix;
    matrix.data = data;
    matrix.dtype = dtype;
    matrix.rows = static_cast<uint32_t>(shape.rows);
    matrix.cols = static_cast<uint32_t>(shape.cols);
    matrix.row_stride = rows_first ? shape.cols : 1;
    matrix.col_stride = rows_first ? 1 : shape.rows;
    return matrix;
}

void placeWeights(const ModelConfig &c, const Qwen3Weights &w, Collector &out) {
    if (w.nlayer != c.nlayer) {
        fail(QWEN3_STATUS_BAD_PARAM, "weights.nlayer is %zu, meta.nlayer is %u", w.nlayer, c.nlayer);
    }
    requireFloatDType(w.dt_norm, "weights.dt_norm");
    requireFloatDType(w.dt_mat, "weights.dt_mat");
    checkForms(w);
    checkBiases(w);
    const auto dt_norm = static_cast<DType>(w.dt_norm);
    const auto dt_mat = static_cast<DType>(w.dt_mat);
    const void *const tables[kTables] = {w.input_embd, w.output_norm, w.output_embd};
    for (const Role &role : kRoles) {
        if (role.kind == Kind::kTable) {
            const DType dtype = role.first == kOutputNorm ? dt_norm : dt_mat;
            out.place(role, 0, packedMatrix(tables[role.first], dtype, shapeOf(c, role), true));
        }
    }
    for (const Field &field : kFields) {
        const Role &role = roleOf(field.role);
        const void *const *array = w.*field.array;
        for (size_t i = 0; array != nullptr && i < c.nlayer; ++i) {
            if (array[i] == nullptr && role.kind == Kind::kBias) {
                fail(QWEN3_STATUS_NULL_POINTER, "weights.%s[%zu] is NULL", role.name, i);
            }
            if (array[i] != nullptr) {
                const bool rows_first = isVector(role) || w.transpose_linear_weights != 0;
                const DType dtype = role.kind == Kind::kNorm ? dt_norm : dt_mat;
                out.place(role, i, packedMatrix(array[i], dtype, shapeOf(c, role), rows_first));
            }
        }
    }
}

// ---------------------------------------------------------------- Qwen3Tensor

// Checks one element of options.tensors. Messages begin "options.tensors[3] (attn_q of layer 0)".
class TensorChecker {
public:
    TensorChecker(const ModelConfig &config, const Qwen3Tensor &tensor, size_t index)
        : c_(config), t_(tensor), name_("options.tensors[" + std::to_string(index) + "]") {}

    const Role &role() {
        for (const Role &role : kRoles) {
            if (role.role == t_.role) {
                name_ += " (" + describe(role, t_.layer) + ")";
                return role;
            }
        }
        fail(QWEN3_STATUS_BAD_PARAM, "%s: role is %d, which is no Qwen3TensorRole", name_.c_str(), t_.role);
    }

    // How many experts the tensor is of; 1 for other roles.
    uint32_t experts() const { return std::max(1U, t_.nexperts); }

    // The matrix, of the tensor's i-th expert where it has several. Codes are described in a new element of `stored`.
    HostMatrix matrix(const Role &role, std::deque<StoredMatrix> &stored, uint32_t i = 0) const {
        checkPlace(role);
        const bool floats = checkFormat(role);
        const Shape shape = shapeOf(c_, role);
        if (t_.rows != shape.rows || t_.cols != shape.cols) {
            fail(QWEN3_STATUS_BAD_TENSOR_SHAPE, "%s: shape is [%zu, %zu], must be [%llu, %llu]", name_.c_str(), t_.rows,
                 t_.cols, static_cast<unsigned long long>(shape.rows), static_cast<unsigned long long>(shape.cols));
        }
        HostMatrix matrix = packedMatrix(t_.data, static_cast<DType>(t_.dtype), shape, true);
        matrix.row_stride = t_.row_stride != 0 ? t_.row_stride : matrix.row_stride;
        matrix.col_stride = t_.col_stride != 0 ? t_.col_stride : matrix.col_stride;
        if (floats || t_.layout == QWEN3_LAYOUT_PLAIN) {
            checkStrides(role, matrix);
        }
        if (t_.data == nullptr) {
            fail(QWEN3_STATUS_NULL_POINTER, "%s: data is NULL", name_.c_str());
        }
        const void *data = expertData(matrix, i);
        matrix.data = data;
        if (!floats) {
            Qwen3Tensor one = t_;
            one.data = data;
            stored.push_back(readStored(one, name_));
            matrix.stored = &stored.back();
            matrix.row_stride = matrix.stored->row_stride;
            matrix.col_stride = matrix.stored->col_stride;
        }
        return matrix;
    }

private:
    // Of which layer and expert it is.
    void checkPlace(const Role &role) const {
        if (role.kind == Kind::kTable && t_.layer != 0) {
            fail(QWEN3_STATUS_BAD_PARAM, "%s: layer is %u, must be 0: it is of no layer", name_.c_str(), t_.layer);
        }
        if (t_.layer >= c_.nlayer) {
            fail(QWEN3_STATUS_BAD_PARAM, "%s: layer is %u, must be below meta.nlayer, %u", name_.c_str(), t_.layer,
                 c_.nlayer);
        }
        if ((role.kind == Kind::kExperts || role.kind == Kind::kRouter) && c_.nexperts == 0) {
            fail(QWEN3_STATUS_BAD_PARAM, "%s: options.nexperts is 0: the model has no experts", name_.c_str());
        }
        if (role.kind == Kind::kExperts) {
            if (uint64_t{t_.expert} + experts() > c_.nexperts) {
                fail(QWEN3_STATUS_BAD_PARAM,
                     "%s: expert and nexperts are %u and %u, must end below options.nexperts, %u", name_.c_str(),
                     t_.expert, t_.nexperts, c_.nexperts);
            }
            const auto dtype = static_cast<DType>(t_.dtype);
            if (experts() > 1 && !isFloatDType(dtype) && blockShape(dtype).elements == 0) {
                fail(QWEN3_STATUS_NOT_IMPLEMENTED,
                     "%s: nexperts is %u: codes of several experts in one tensor are not implemented but for GGUF's",
                     name_.c_str(), t_.nexperts);
            }
            return;
        }
        if (t_.expert != 0 || t_.nexperts != 0 || t_.expert_stride != 0) {
            fail(QWEN3_STATUS_BAD_PARAM,
                 "%s: expert, nexperts and expert_stride are %u, %u and %zu, must be 0: it is of no expert",
                 name_.c_str(), t_.expert, t_.nexperts, t_.expert_stride);
        }
    }

    // Where the i-th expert begins.
    const void *expertData(const HostMatrix &m, uint32_t i) const {
        if (experts() == 1) {
            return t_.data;
        }
        const size_t span = (m.rows - 1) * m.row_stride + (m.cols - 1) * m.col_stride + 1;
        const size_t stride = t_.expert_stride != 0 ? t_.expert_stride : size_t{m.rows} * m.cols;
        const BlockShape block = blockShape(m.dtype);
        const bool blocks = block.elements > 0;
        if (stride < span || stride > kMaxStride || (blocks && stride % block.elements != 0)) {
            fail(QWEN3_STATUS_BAD_TENSOR_STRIDES, "%s: expert_stride is %zu, must be from %zu to %zu%s", name_.c_str(),
                 stride, span, kMaxStride, blocks ? ", and whole blocks" : "");
        }
        const size_t bytes = blocks ? stride / block.elements * block.bytes : stride * dtypeSize(m.dtype);
        return static_cast<const char *>(t_.data) + i * bytes;
    }

    // The dtype and the layout; returns whether it is floats.
    bool checkFormat(const Role &role) const {
        if (t_.reserved != 0) {
            fail(QWEN3_STATUS_BAD_PARAM, "%s: reserved is %d, must be 0", name_.c_str(), t_.reserved);
        }
        if (t_.layout < QWEN3_LAYOUT_PLAIN || t_.layout > QWEN3_LAYOUT_PACK_QUANTIZED) {
            fail(QWEN3_STATUS_BAD_PARAM, "%s: layout is %d, which is no Qwen3TensorLayout", name_.c_str(), t_.layout);
        }
        const bool floats = isFloatDType(static_cast<DType>(t_.dtype));
        const char *stored = storedDTypeName(t_.dtype);
        if (!floats && stored == nullptr) {
            fail(QWEN3_STATUS_BAD_TENSOR_DTYPE,
                 "%s: dtype is %d, must be QWEN3_DTYPE_F16 (12), F32 (13), BF16 (19) or one for tensors only",
                 name_.c_str(), t_.dtype);
        }
        if (!floats && isVector(role)) {
            fail(QWEN3_STATUS_BAD_TENSOR_DTYPE, "%s: dtype is %s (%d), must be F16 (12), F32 (13) or BF16 (19)",
                 name_.c_str(), stored, t_.dtype);
        }
        if (floats) {
            requirePlain(t_, name_);
            if (t_.layout != QWEN3_LAYOUT_PLAIN) {
                fail(QWEN3_STATUS_BAD_PARAM, "%s: layout is %d, must be PLAIN (0) for floats", name_.c_str(),
                     t_.layout);
            }
        }
        return floats;
    }

    void checkStrides(const Role &role, const HostMatrix &m) const {
        const auto refuse = [&](const char *must) {
            fail(QWEN3_STATUS_BAD_TENSOR_STRIDES, "%s: row_stride is %zu and col_stride %zu, %s", name_.c_str(),
                 m.row_stride, m.col_stride, must);
        };
        if (m.row_stride > kMaxStride || m.col_stride > kMaxStride) {
            refuse("must be at most 4294967296");
        }
        if (isVector(role) && m.row_stride != 1) {
            refuse("but the elements of a vector must follow each other");
        }
        if (role.role == QWEN3_TENSOR_INPUT_EMBD && m.col_stride != 1) {
            refuse("but the elements of a row must follow each other");
        }
        const bool apart = m.row_stride > (m.cols - 1) * m.col_stride || m.col_stride > (m.rows - 1) * m.row_stride;
        if (!isVector(role) && !apart) {
            refuse("which makes rows or columns overlap");
        }
    }

    const ModelConfig &c_;
    const Qwen3Tensor &t_;
    std::string name_;
};

// Which tensor gave what, so that the second one that gives it is refused.
class Givers {
public:
    explicit Givers(size_t nlayer) : givers_(nlayer * kSlots + kTables, kNobody) {}

    void claim(const Role &role, size_t layer, uint32_t expert, size_t index) {
        for (uint32_t i = 0; i < role.count; ++i) {
            size_t &giver = role.kind == Kind::kExperts
                                ? experts_.try_emplace({layer, expert, role.first + i}, kNobody).first->second
                                : givers_[slot(role, layer) + i];
            if (giver != kNobody) {
                fail(QWEN3_STATUS_BAD_PARAM,
                     "options.tensors[%zu] (%s): tensors[%zu] gave it, or a part of it, already", index,
                     describe(role, layer).c_str(), giver);
            }
            giver = index;
        }
    }

private:
    static constexpr size_t kNobody = ~size_t{0};
    static constexpr size_t kSlots = size_t{2} * kParts + kNorms + 1;

    static size_t slot(const Role &role, size_t layer) {
        switch (role.kind) {
        case Kind::kTable:
            return role.first;
        case Kind::kNorm:
            return kTables + layer * kSlots + 2 * kParts + role.first;
        case Kind::kRouter:
            return kTables + layer * kSlots + 2 * kParts + kNorms;
        case Kind::kBias:
            return kTables + layer * kSlots + kParts + role.first;
        default:
            return kTables + layer * kSlots + role.first;
        }
    }

    std::vector<size_t> givers_;
    std::map<std::tuple<size_t, uint32_t, uint32_t>, size_t> experts_;  // by layer, expert and part
};

void placeTensors(const ModelConfig &c, const Qwen3ModelOptions &options, Collector &out) {
    if (options.ntensors > kMaxTensors) {
        fail(QWEN3_STATUS_BAD_PARAM, "options.ntensors is %zu, must be at most %zu", options.ntensors, kMaxTensors);
    }
    requirePointer(options.tensors, "options.tensors");
    const StructArray<const Qwen3Tensor> tensors(options.tensors, "options.tensors");
    Givers givers(c.nlayer);
    for (size_t i = 0; i < options.ntensors; ++i) {
        Qwen3Tensor tensor{};
        readStruct(tensors.at(i), tensors.argument(i), tensor);
        TensorChecker check(c, tensor, i);
        const Role &role = check.role();
        for (uint32_t e = 0; e < check.experts(); ++e) {
            const HostMatrix matrix = check.matrix(role, out.stored(), e);
            givers.claim(role, tensor.layer, tensor.expert + e, i);
            out.place(role, tensor.layer, matrix, tensor.expert + e);
        }
    }
}

}  // namespace

ModelTensors readTensors(const ModelConfig &config, const Qwen3Weights *weights, const Qwen3ModelOptions &options) {
    if (weights == nullptr && options.ntensors == 0) {
        fail(QWEN3_STATUS_NULL_POINTER, "weights is NULL, and options.tensors gives no tensors either");
    }
    Collector collector(config);
    if (weights != nullptr) {
        placeWeights(config, *weights, collector);
    }
    if (options.ntensors > 0) {
        placeTensors(config, options, collector);
        return collector.finish(QWEN3_STATUS_BAD_PARAM,
                                weights == nullptr ? "options.tensors" : "weights and options.tensors");
    }
    return collector.finish(QWEN3_STATUS_NULL_POINTER, "weights (NULL there)");
}

}  // namespace q3
