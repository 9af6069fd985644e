#include "model/weights.h"

#include <cstdio>

#include "ops/half.h"
#include "runtime/error.h"
#include "runtime/packed_file.h"

namespace q3 {
namespace {

const void *at(const void *const *array, uint32_t layer) {
    return array == nullptr ? nullptr : array[layer];
}

enum class Matrix { kQkv, kAttnOut, kGateUp, kDown };

// What matters most on the models measured (docs/quantisation.md): the first layer, whose errors all others inherit,
// and what decides where attention looks. In a model of few layers the first is no small part.
Precision precisionOf(Matrix matrix, uint32_t layer, uint32_t nlayer) {
    if (layer == 0 && nlayer >= 4) {
        return Precision::kHigh;
    }
    return matrix == Matrix::kQkv ? Precision::kRaised : Precision::kPlain;
}

class Packer {
public:
    // in: where to load packed weights from instead of packing; or null.
    Packer(const ModelConfig &config, const Qwen3Weights &weights, const Qwen3ModelOptions &options, Ops &ops,
           PackedReader *in)
        : c_(config), w_(weights), options_(options), ops_(ops), in_(in) {
        const uint64_t layer = uint64_t{c_.d} * (c_.qkvWidth() + c_.nh * c_.dh + 3 * uint64_t{c_.di});
        const uint64_t tables = uint64_t{c_.dvoc} * c_.d * (w_.output_embd == nullptr ? 1 : 2);
        total_ = (layer * c_.nlayer + tables) * dtypeSize(w_.dt_mat);
        layer_bytes_ = layer * dtypeSize(w_.dt_mat);
    }

    ModelWeights pack() {
        ModelWeights result;
        // The largest tensors first: their file pages are then released before the packed layers add up, so that the
        // peak of memory is the packed weights and one layer.
        const bool tied = w_.output_embd == nullptr;
        result.output_norm = vector("output_norm", -1, w_.output_norm, c_.d);
        result.head = linear(table(tied ? "input_embd" : "output_embd", tied ? w_.input_embd : w_.output_embd));
        const uint64_t head_bytes = uint64_t{c_.dvoc} * c_.d * dtypeSize(w_.dt_mat);
        report(head_bytes);
        result.embedding = embedding(tied ? result.head.get() : nullptr);
        const uint64_t tables = tied ? head_bytes : 2 * head_bytes;
        report(tables);
        result.layers.reserve(c_.nlayer);
        for (uint32_t i = 0; i < c_.nlayer; ++i) {
            result.layers.push_back(packLayer(i));
            report(tables + layer_bytes_ * (i + 1));
        }
        return result;
    }

private:
    std::unique_ptr<Linear> linear(const LinearSource &source) {
        return in_ != nullptr ? ops_.loadLinear(source, *in_) : ops_.packLinear(source);
    }

    std::unique_ptr<Linear> gateUp(const LinearSource &source) {
        return in_ != nullptr ? ops_.loadGateUp(source, *in_) : ops_.packGateUp(source);
    }

    std::unique_ptr<Linear> embedding(const Linear *head) {
        const LinearSource source = table("input_embd", w_.input_embd);
        const bool borrow = options_.borrow_weights != 0;
        if (in_ != nullptr) {
            return ops_.loadEmbedding(source, head, borrow, *in_);
        }
        if (head == nullptr) {
            checkTable("input_embd", w_.input_embd);
        }
        return ops_.packEmbedding(source, head, borrow);
    }

    LayerWeights packLayer(uint32_t i) {
        const uint32_t q = c_.nh * c_.dh;
        const uint32_t kv = c_.nkvh * c_.dh;
        LayerWeights l;
        l.attn_norm = vector("attn_norm", static_cast<int32_t>(i), w_.attn_norm[i], c_.d);
        l.q_norm = vector("attn_q_norm", static_cast<int32_t>(i), w_.attn_q_norm[i], c_.dh, true);
        l.k_norm = vector("attn_k_norm", static_cast<int32_t>(i), w_.attn_k_norm[i], c_.dh, true);
        l.ffn_norm = vector("ffn_norm", static_cast<int32_t>(i), w_.ffn_norm[i], c_.d);

        LinearSource qkv = source("attn_qkv", i, Matrix::kQkv);
        if (w_.attn_qkv != nullptr) {
            addStacked(qkv, w_.attn_qkv[i], at(w_.attn_qkv_b, i), {q, kv, kv}, c_.d);
        } else {
            addStacked(qkv, w_.attn_q[i], at(w_.attn_q_b, i), {q}, c_.d);
            addStacked(qkv, w_.attn_k[i], at(w_.attn_k_b, i), {kv}, c_.d);
            addStacked(qkv, w_.attn_v[i], at(w_.attn_v_b, i), {kv}, c_.d);
        }
        qkv.rope_rows = q + kv;
        l.attn_qkv = linear(qkv);

        LinearSource o = source("attn_o", i, Matrix::kAttnOut);
        addStacked(o, w_.attn_o[i], at(w_.attn_o_b, i), {c_.d}, q);
        l.attn_o = linear(o);

        LinearSource gate_up = source("ffn_gate_up", i, Matrix::kGateUp);
        if (w_.ffn_gate_up != nullptr) {
            addStacked(gate_up, w_.ffn_gate_up[i], nullptr, {c_.di, c_.di}, c_.d);
        } else {
            addStacked(gate_up, w_.ffn_gate[i], nullptr, {c_.di}, c_.d);
            addStacked(gate_up, w_.ffn_up[i], nullptr, {c_.di}, c_.d);
        }
        l.ffn_gate_up = gateUp(gate_up);

        LinearSource down = source("ffn_down", i, Matrix::kDown);
        addStacked(down, w_.ffn_down[i], nullptr, {c_.d}, c_.di);
        l.ffn_down = linear(down);
        return l;
    }

    LinearSource source(const char *name, uint32_t layer, Matrix matrix) const {
        return {name, static_cast<int32_t>(layer), w_.dt_mat, {}, 0, precisionOf(matrix, layer, c_.nlayer)};
    }

    // Appends the parts of one tensor that stacks `rows` output features, in whichever of the two layouts.
    void addStacked(LinearSource &target, const void *data, const void *bias, std::initializer_list<uint32_t> rows,
                    uint32_t cols) const {
        const size_t size = dtypeSize(target.dtype);
        const bool rows_first = w_.transpose_linear_weights != 0;
        size_t total = 0;
        for (const uint32_t n : rows) {
            total += n;
        }
        size_t offset = 0;
        for (const uint32_t n : rows) {
            const size_t element = rows_first ? offset * cols : offset;
            HostMatrix part{};
            part.data = static_cast<const char *>(data) + element * size;
            part.rows = n;
            part.cols = cols;
            part.row_stride = rows_first ? cols : 1;
            part.col_stride = rows_first ? 1 : total;
            part.bias = bias == nullptr ? nullptr : static_cast<const char *>(bias) + offset * size;
            target.parts.push_back(part);
            offset += n;
        }
    }

    LinearSource table(const char *name, const void *data) const {
        // The head decides between close tokens and is a small part of a model.
        return {name, -1, w_.dt_mat, {HostMatrix{data, c_.dvoc, c_.d, c_.d, 1, nullptr}}, 0, Precision::kHigh};
    }

    // Backends check what they pack, but a table may be used where it is, row by row, so it is checked here.
    void checkTable(const char *name, const void *data) const {
        const size_t row_bytes = c_.d * dtypeSize(w_.dt_mat);
        for (uint32_t row = 0; row < c_.dvoc; ++row) {
            const int64_t bad = findNonFinite(static_cast<const char *>(data) + row * row_bytes, c_.d, w_.dt_mat);
            if (bad >= 0) {
                fail(QWEN3_STATUS_BAD_WEIGHTS, "%s is NaN or infinite at row %u, column %lld", name, row,
                     static_cast<long long>(bad));
            }
        }
    }

    std::unique_ptr<Vector> vector(const char *name, int32_t layer, const void *data, uint32_t size,
                                   bool rope = false) {
        const VectorSource source{name, layer, w_.dt_norm, data, size, rope};
        return in_ != nullptr ? ops_.loadVector(source, *in_) : ops_.packVector(source);
    }

    void report(uint64_t done) const {
        if (options_.progress != nullptr && options_.progress(options_.progress_user_data, done, total_) != 0) {
            fail(QWEN3_STATUS_CANCELLED, "the progress callback stopped loading after %llu of %llu bytes",
                 static_cast<unsigned long long>(done), static_cast<unsigned long long>(total_));
        }
    }

    const ModelConfig &c_;
    const Qwen3Weights &w_;
    const Qwen3ModelOptions &options_;
    Ops &ops_;
    PackedReader *in_;
    uint64_t total_ = 0;
    uint64_t layer_bytes_ = 0;
};

// Everything but the caller's key that the bytes of saved weights depend on; empty if the backend cannot save.
std::string identityOf(const ModelConfig &c, const Qwen3Weights &w, const Qwen3ModelOptions &options, Ops &ops) {
    const std::string layout = ops.packedLayout();
    if (layout.empty()) {
        return {};
    }
    const bool bias =
        w.attn_qkv_b != nullptr || w.attn_q_b != nullptr || w.attn_k_b != nullptr || w.attn_v_b != nullptr;
    char text[256];
    std::snprintf(text, sizeof text,
                  " nlayer=%u d=%u nh=%u nkvh=%u dh=%u di=%u dvoc=%u dtype=%d tied=%d borrow=%d bias=%d,%d", c.nlayer,
                  c.d, c.nh, c.nkvh, c.dh, c.di, c.dvoc, w.dt_mat, w.output_embd == nullptr ? 1 : 0,
                  options.borrow_weights != 0 ? 1 : 0, bias ? 1 : 0, w.attn_o_b != nullptr ? 1 : 0);
    std::string identity = layout + text + " precision=";
    for (uint32_t layer = 0; layer < c.nlayer; ++layer) {
        for (const Matrix matrix : {Matrix::kQkv, Matrix::kAttnOut, Matrix::kGateUp, Matrix::kDown}) {
            identity += static_cast<char>('0' + static_cast<int>(precisionOf(matrix, layer, c.nlayer)));
        }
    }
    return identity;
}

std::string withKey(const std::string &identity, const char *key) {
    return identity + "\n" + (key == nullptr ? "" : key);
}

}  // namespace

uint64_t ModelWeights::bytes() const {
    uint64_t total = head->bytes() + embedding->bytes() + output_norm->bytes();
    for (const LayerWeights &l : layers) {
        total += l.attn_norm->bytes() + l.q_norm->bytes() + l.k_norm->bytes() + l.ffn_norm->bytes();
        total += l.attn_qkv->bytes() + l.attn_o->bytes() + l.ffn_gate_up->bytes() + l.ffn_down->bytes();
    }
    return total;
}

ModelWeights packWeights(const ModelConfig &config, const Qwen3Weights &weights, const Qwen3ModelOptions &options,
                         Ops &ops) {
    const std::string identity = identityOf(config, weights, options, ops);
    int32_t cache = QWEN3_CACHE_UNUSED;
    if (options.cache_path != nullptr && !identity.empty()) {
        try {
            PackedReader reader(options.cache_path, withKey(identity, options.cache_key));
            ModelWeights loaded = Packer(config, weights, options, ops, &reader).pack();
            reader.finish();
            loaded.identity = identity;
            loaded.cache = QWEN3_CACHE_LOADED;
            return loaded;
        } catch (const PackedFileError &error) {
            cache = error.reason() == PackedFileError::kAbsent  ? QWEN3_CACHE_ABSENT
                    : error.reason() == PackedFileError::kStale ? QWEN3_CACHE_STALE
                                                                : QWEN3_CACHE_CORRUPT;
        }
    }
    ModelWeights packed = Packer(config, weights, options, ops, nullptr).pack();
    packed.identity = identity;
    packed.cache = cache;
    return packed;
}

void saveWeights(const ModelWeights &weights, const char *path, const char *key, const Ops &ops) {
    if (weights.identity.empty()) {
        fail(QWEN3_STATUS_NOT_IMPLEMENTED, "this backend cannot save its packed weights");
    }
    PackedFileWriter out(path, withKey(weights.identity, key));
    // In the order in which Packer makes them.
    ops.save(*weights.output_norm, out);
    ops.save(*weights.head, out);
    ops.save(*weights.embedding, out);
    for (const LayerWeights &l : weights.layers) {
        for (const auto *vector : {&l.attn_norm, &l.q_norm, &l.k_norm, &l.ffn_norm}) {
            ops.save(**vector, out);
        }
        for (const auto *matrix : {&l.attn_qkv, &l.attn_o, &l.ffn_gate_up, &l.ffn_down}) {
            ops.save(**matrix, out);
        }
    }
    out.commit();
}

}  // namespace q3
