#include "model/weights.h"

#include <cstdio>

#include "ops/half.h"
#include "runtime/error.h"
#include "runtime/packed_file.h"
#include "runtime/readable.h"

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

// Part of the rows or columns of a tensor: [first, first + count) of total.
struct Span {
    uint32_t total, first, count;
};

Span whole(uint32_t total) {
    return {total, 0, total};
}

class Packer {
public:
    // in: where each rank loads its packed weights from instead of packing; or none.
    Packer(const ModelConfig &config, const std::vector<RankSlice> &slices, const Qwen3Weights &weights,
           const Qwen3ModelOptions &options, const std::vector<std::unique_ptr<Backend>> &backends, RankGroup &group,
           const std::vector<std::unique_ptr<PackedReader>> &in)
        : c_(config), slices_(slices), w_(weights), dt_mat_(static_cast<DType>(weights.dt_mat)), options_(options),
          backends_(backends), group_(group), in_(in) {
        const uint64_t layer = uint64_t{c_.d} * (c_.qkvWidth() + c_.nh * c_.dh + 3 * uint64_t{c_.di});
        const uint64_t tables = uint64_t{c_.dvoc} * c_.d * (w_.output_embd == nullptr ? 1 : 2);
        total_ = (layer * c_.nlayer + tables) * dtypeSize(dt_mat_);
        layer_bytes_ = layer * dtypeSize(dt_mat_);
    }

    // All ranks pack their part of one tensor or layer at a time, so that no pointer is read during report().
    std::vector<ModelWeights> pack() {
        std::vector<ModelWeights> result(slices_.size());
        // The largest tensors first: their file pages are then released before the packed layers add up, so that the
        // peak of memory is the packed weights and one layer.
        const bool tied = w_.output_embd == nullptr;
        const char *head_name = tied ? "input_embd" : "output_embd";
        const void *head_data = tied ? w_.input_embd : w_.output_embd;
        group_.run([&](uint32_t rank) {
            const RankSlice &s = slices_[rank];
            result[rank].output_norm = norm(rank, "output_norm", -1, w_.output_norm, c_.d);
            result[rank].head = linear(rank, table(head_name, head_data, s.first_vocab, s.config.dvoc));
        });
        const uint64_t head_bytes = uint64_t{c_.dvoc} * c_.d * dtypeSize(dt_mat_);
        report(head_bytes);
        packEmbeddings(result);
        const uint64_t tables = tied ? head_bytes : 2 * head_bytes;
        report(tables);
        for (uint32_t i = 0; i < c_.nlayer; ++i) {
            group_.run([&](uint32_t rank) { result[rank].layers.push_back(packLayer(rank, i)); });
            report(tables + layer_bytes_ * (i + 1));
        }
        return result;
    }

private:
    // The file that the rank's weights are read from, or null when they are to be packed.
    PackedReader *saved(uint32_t rank) const { return in_.empty() ? nullptr : in_[rank].get(); }

    std::unique_ptr<PackedLinear> linear(uint32_t rank, const LinearSource &source) {
        return backends_[rank]->makeLinear(source, saved(rank));
    }

    void packEmbeddings(std::vector<ModelWeights> &result) {
        EmbeddingSource source{table("input_embd", w_.input_embd, 0, c_.dvoc), {}, options_.borrow_weights != 0};
        for (size_t rank = 0; w_.output_embd == nullptr && rank < result.size(); ++rank) {
            source.heads.push_back(result[rank].head.get());
        }
        if (source.heads.empty() && in_.empty()) {
            checkTable("input_embd", w_.input_embd);
        }
        const bool shared = backends_[0]->sharesEmbedding();
        group_.run([&](uint32_t rank) {
            if (rank == 0 || !shared) {
                result[rank].embedding = backends_[rank]->makeEmbedding(source, saved(rank));
            }
        });
        for (size_t rank = 1; shared && rank < result.size(); ++rank) {
            result[rank].embedding = result[0].embedding;
        }
    }

    LayerWeights packLayer(uint32_t rank, uint32_t i) {
        const RankSlice &s = slices_[rank];
        const Span q{c_.nh * c_.dh, s.first_head * c_.dh, s.config.nh * c_.dh};
        const Span kv{c_.nkvh * c_.dh, s.first_kv_head * c_.dh, s.config.nkvh * c_.dh};
        const Span inner{c_.di, s.first_inner, s.config.di};
        const Span d = whole(c_.d);
        LayerWeights l;
        l.attn_norm = norm(rank, "attn_norm", static_cast<int32_t>(i), w_.attn_norm[i], c_.d);
        l.q_norm = norm(rank, "attn_q_norm", static_cast<int32_t>(i), w_.attn_q_norm[i], c_.dh, true);
        l.k_norm = norm(rank, "attn_k_norm", static_cast<int32_t>(i), w_.attn_k_norm[i], c_.dh, true);
        l.ffn_norm = norm(rank, "ffn_norm", static_cast<int32_t>(i), w_.ffn_norm[i], c_.d);

        LinearSource qkv = source("attn_qkv", i, Matrix::kQkv);
        if (w_.attn_qkv != nullptr) {
            addStacked(qkv, w_.attn_qkv[i], at(w_.attn_qkv_b, i), {q, kv, kv}, d);
        } else {
            addStacked(qkv, w_.attn_q[i], at(w_.attn_q_b, i), {q}, d);
            addStacked(qkv, w_.attn_k[i], at(w_.attn_k_b, i), {kv}, d);
            addStacked(qkv, w_.attn_v[i], at(w_.attn_v_b, i), {kv}, d);
        }
        qkv.rope_rows = q.count + kv.count;
        l.attn_qkv = linear(rank, qkv);

        LinearSource o = source("attn_o", i, Matrix::kAttnOut);
        // The ranks' products are summed: one of them has the bias.
        addStacked(o, w_.attn_o[i], rank == 0 ? at(w_.attn_o_b, i) : nullptr, {d}, q);
        l.attn_o = linear(rank, o);

        LinearSource gate_up = source("ffn_gate_up", i, Matrix::kGateUp);
        gate_up.gate_up = true;
        if (w_.ffn_gate_up != nullptr) {
            addStacked(gate_up, w_.ffn_gate_up[i], nullptr, {inner, inner}, d);
        } else {
            addStacked(gate_up, w_.ffn_gate[i], nullptr, {inner}, d);
            addStacked(gate_up, w_.ffn_up[i], nullptr, {inner}, d);
        }
        l.ffn_gate_up = linear(rank, gate_up);

        LinearSource down = source("ffn_down", i, Matrix::kDown);
        addStacked(down, w_.ffn_down[i], nullptr, {d}, inner);
        l.ffn_down = linear(rank, down);
        return l;
    }

    LinearSource source(const char *name, uint32_t layer, Matrix matrix) const {
        return {name, static_cast<int32_t>(layer), dt_mat_, {}, 0, precisionOf(matrix, layer, c_.nlayer)};
    }

    // Appends what a rank has of the parts of one tensor that stacks `rows` output features, in whichever of the two
    // layouts.
    void addStacked(LinearSource &target, const void *data, const void *bias, std::initializer_list<Span> rows,
                    Span cols) const {
        const size_t size = dtypeSize(target.dtype);
        const bool rows_first = w_.transpose_linear_weights != 0;
        size_t total = 0;
        for (const Span &span : rows) {
            total += span.total;
        }
        size_t offset = 0;
        for (const Span &span : rows) {
            const size_t row = offset + span.first;
            HostMatrix part{};
            part.rows = span.count;
            part.cols = cols.count;
            part.row_stride = rows_first ? cols.total : 1;
            part.col_stride = rows_first ? 1 : total;
            part.data = static_cast<const char *>(data) + (row * part.row_stride + cols.first * part.col_stride) * size;
            part.bias = bias == nullptr ? nullptr : static_cast<const char *>(bias) + row * size;
            target.parts.push_back(part);
            offset += span.total;
        }
    }

    LinearSource table(const char *name, const void *data, uint32_t first, uint32_t rows) const {
        const char *start = static_cast<const char *>(data) + size_t{first} * c_.d * dtypeSize(dt_mat_);
        // The head decides between close tokens and is a small part of a model.
        return {name, -1, dt_mat_, {HostMatrix{start, rows, c_.d, c_.d, 1, nullptr}}, 0, Precision::kHigh};
    }

    // Backends check what they pack, but a table may be used where it is, row by row, so it is checked here.
    void checkTable(const char *name, const void *data) const {
        const size_t row_bytes = c_.d * dtypeSize(dt_mat_);
        if (!isReadable(data, c_.dvoc * row_bytes)) {
            failUnreadable(name);
        }
        for (uint32_t row = 0; row < c_.dvoc; ++row) {
            const int64_t bad = findNonFinite(static_cast<const char *>(data) + row * row_bytes, c_.d, dt_mat_);
            if (bad >= 0) {
                fail(QWEN3_STATUS_BAD_WEIGHTS, "%s is NaN or infinite at row %u, column %lld", name, row,
                     static_cast<long long>(bad));
            }
        }
    }

    std::unique_ptr<PackedNorm> norm(uint32_t rank, const char *name, int32_t layer, const void *data, uint32_t size,
                                     bool rope = false) {
        const NormSource source{name, layer, static_cast<DType>(w_.dt_norm), data, size, rope};
        return backends_[rank]->makeNorm(source, saved(rank));
    }

    void report(uint64_t done) const {
        if (options_.progress != nullptr && options_.progress(options_.progress_user_data, done, total_) != 0) {
            fail(QWEN3_STATUS_CANCELLED, "the progress callback stopped loading after %llu of %llu bytes",
                 static_cast<unsigned long long>(done), static_cast<unsigned long long>(total_));
        }
    }

    const ModelConfig &c_;
    const std::vector<RankSlice> &slices_;
    const Qwen3Weights &w_;
    const DType dt_mat_;
    const Qwen3ModelOptions &options_;
    const std::vector<std::unique_ptr<Backend>> &backends_;
    RankGroup &group_;
    const std::vector<std::unique_ptr<PackedReader>> &in_;
    uint64_t total_ = 0;
    uint64_t layer_bytes_ = 0;
};

// Everything but the caller's key that the bytes of saved weights depend on; empty if the backend cannot save.
std::string identityOf(const ModelConfig &c, const std::vector<RankSlice> &slices, const Qwen3Weights &w,
                       const Qwen3ModelOptions &options, Backend &backend) {
    const std::string layout = backend.packedLayout();
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
    std::string identity = layout + text;
    for (size_t rank = 0; slices.size() > 1 && rank < slices.size(); ++rank) {
        const ModelConfig &s = slices[rank].config;
        std::snprintf(text, sizeof text, " rank=%u,%u,%u,%u", s.nh, s.nkvh, s.di, s.dvoc);
        identity += text;
    }
    identity += " precision=";
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
    uint64_t total = head->bytes() + output_norm->bytes();
    for (const LayerWeights &l : layers) {
        total += l.attn_norm->bytes() + l.q_norm->bytes() + l.k_norm->bytes() + l.ffn_norm->bytes();
        total += l.attn_qkv->bytes() + l.attn_o->bytes() + l.ffn_gate_up->bytes() + l.ffn_down->bytes();
    }
    return total;
}

std::vector<ModelWeights> packWeights(const ModelConfig &config, const std::vector<RankSlice> &slices,
                                      const Qwen3Weights &weights, const Qwen3ModelOptions &options,
                                      const std::vector<std::unique_ptr<Backend>> &backends, RankGroup &group) {
    const std::string identity = identityOf(config, slices, weights, options, *backends[0]);
    int32_t cache = QWEN3_CACHE_UNUSED;
    if (options.cache_path != nullptr && !identity.empty()) {
        try {
            std::vector<std::unique_ptr<PackedReader>> readers;
            readers.reserve(slices.size());
            for (uint32_t rank = 0; rank < slices.size(); ++rank) {
                readers.push_back(
                    std::make_unique<PackedReader>(options.cache_path, withKey(identity, options.cache_key), rank));
            }
            std::vector<ModelWeights> loaded =
                Packer(config, slices, weights, options, backends, group, readers).pack();
            for (const auto &reader : readers) {
                reader->finish();
            }
            loaded[0].identity = identity;
            loaded[0].cache = QWEN3_CACHE_LOADED;
            return loaded;
        } catch (const PackedFileError &error) {
            cache = error.reason() == PackedFileError::kAbsent  ? QWEN3_CACHE_ABSENT
                    : error.reason() == PackedFileError::kStale ? QWEN3_CACHE_STALE
                                                                : QWEN3_CACHE_CORRUPT;
        }
    }
    std::vector<ModelWeights> packed = Packer(config, slices, weights, options, backends, group, {}).pack();
    packed[0].identity = identity;
    packed[0].cache = cache;
    return packed;
}

// In the order in which Packer makes them.
void writeWeights(const ModelWeights &weights, PackedWriter &out, const Backend &backend, bool embedding) {
    backend.save(*weights.output_norm, out);
    backend.save(*weights.head, out);
    if (embedding) {
        backend.save(*weights.embedding, out);
    }
    for (const LayerWeights &l : weights.layers) {
        for (const auto *norm : {&l.attn_norm, &l.q_norm, &l.k_norm, &l.ffn_norm}) {
            backend.save(**norm, out);
        }
        for (const auto *matrix : {&l.attn_qkv, &l.attn_o, &l.ffn_gate_up, &l.ffn_down}) {
            backend.save(**matrix, out);
        }
    }
}

void saveWeights(const std::vector<const ModelWeights *> &ranks, const char *path, const char *key,
                 const Backend &backend) {
    if (ranks[0]->identity.empty()) {
        fail(QWEN3_STATUS_NOT_IMPLEMENTED, "this backend cannot save its packed weights");
    }
    PackedFileWriter out(path, withKey(ranks[0]->identity, key));
    for (const ModelWeights *weights : ranks) {
        const bool first = weights == ranks[0];
        if (!first) {
            out.nextSection();
        }
        writeWeights(*weights, out, backend, first || weights->embedding != ranks[0]->embedding);
    }
    out.commit();
}

}  // namespace q3
