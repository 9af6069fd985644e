#include "model/weights.h"

#include <algorithm>
#include <cstdio>
#include <optional>
#include <utility>
#include <vector>

#include "ops/half.h"
#include "runtime/error.h"
#include "runtime/packed_file.h"
#include "runtime/readable.h"

namespace q3 {
namespace {

enum class Matrix { kQkv, kAttnOut, kGateUp, kDown, kRouter };

// What matters most on the models measured (docs/quantisation.md): the first layer, whose errors all others inherit,
// and what decides where attention looks. In a model of few layers the first is no small part.
Precision precisionOf(Matrix matrix, uint32_t layer, uint32_t nlayer) {
    if (matrix == Matrix::kRouter) {
        return Precision::kExact;  // another expert is a jump
    }
    if (layer == 0 && nlayer >= 4) {
        return matrix == Matrix::kQkv ? Precision::kInput : Precision::kHigh;
    }
    return matrix == Matrix::kQkv ? Precision::kRaised : Precision::kPlain;
}

void addExperts(const ModelConfig &c, const RankSlice &s, const LayerTensors &t, int32_t layer, LayerSources &l) {
    const auto linear = [&](const char *name, Matrix matrix, uint32_t experts) {
        LinearSource source{name, layer, {}, 0, precisionOf(matrix, static_cast<uint32_t>(layer), c.nlayer)};
        source.experts = experts;
        return source;
    };
    l.router = linear("ffn_router", Matrix::kRouter, 0);
    l.router.parts = {t.router};
    l.ffn_gate_up = linear("expert_gate_up", Matrix::kGateUp, c.nexperts);
    l.ffn_gate_up.gate_up = true;
    l.ffn_down = linear("expert_down", Matrix::kDown, c.nexperts);
    for (const ExpertTensors &expert : t.experts) {
        l.ffn_gate_up.parts.push_back(rowsOf(expert.gate, s.first_expert_inner, s.config.dm));
        l.ffn_gate_up.parts.push_back(rowsOf(expert.up, s.first_expert_inner, s.config.dm));
        l.ffn_down.parts.push_back(columnsOf(expert.down, s.first_expert_inner, s.config.dm));
    }
}

// What a rank packs of one layer.
LayerSources sourcesOf(const ModelConfig &c, const RankSlice &s, const LayerTensors &t, uint32_t index) {
    const auto layer = static_cast<int32_t>(index);
    const auto norm = [&](const char *name, const HostNorm &host, uint32_t size, bool rope = false) {
        return NormSource{name, layer, host.dtype, host.data, size, rope};
    };
    const auto linear = [&](const char *name, Matrix matrix, std::vector<HostMatrix> parts) {
        return LinearSource{name, layer, std::move(parts), 0, precisionOf(matrix, index, c.nlayer)};
    };
    const uint32_t q = s.config.nh * c.dh;
    const uint32_t kv = s.config.nkvh * c.dh;
    LayerSources l;
    l.attn_norm = norm("attn_norm", t.attn_norm, c.d);
    l.q_norm = norm("attn_q_norm", t.q_norm, c.dh, true);
    l.k_norm = norm("attn_k_norm", t.k_norm, c.dh, true);
    l.ffn_norm = norm("ffn_norm", t.ffn_norm, c.d);
    l.attn_qkv = linear("attn_qkv", Matrix::kQkv,
                        {rowsOf(t.q, s.first_head * c.dh, q), rowsOf(t.k, s.first_kv_head * c.dh, kv),
                         rowsOf(t.v, s.first_kv_head * c.dh, kv)});
    l.attn_qkv.rope_rows = q + kv;
    l.attn_o = linear("attn_o", Matrix::kAttnOut, {columnsOf(t.o, s.first_head * c.dh, q)});
    if (s.rank != 0) {
        l.attn_o.parts[0].bias = nullptr;  // the ranks' products are summed: one of them has the bias
    }
    if (!t.experts.empty()) {
        addExperts(c, s, t, layer, l);
        return l;
    }
    l.ffn_gate_up = linear("ffn_gate_up", Matrix::kGateUp,
                           {rowsOf(t.gate, s.first_inner, s.config.di), rowsOf(t.up, s.first_inner, s.config.di)});
    l.ffn_gate_up.gate_up = true;
    l.ffn_down = linear("ffn_down", Matrix::kDown, {columnsOf(t.down, s.first_inner, s.config.di)});
    return l;
}

void writeLayer(const LayerWeights &layer, PackedWriter &out, const Backend &backend) {
    eachWeight([&](const auto &weight) { backend.save(*weight, out); }, layer);
}

class Packer {
public:
    // in: where each rank loads its packed weights from instead of packing; or none. out: where a single rank's weights
    // go as soon as they are packed, so that no more than one layer is in memory; or null.
    Packer(const ModelConfig &config, const std::vector<RankSlice> &slices, const ModelTensors &tensors,
           const Qwen3ModelOptions &options, const std::vector<std::unique_ptr<Backend>> &backends, RankGroup &group,
           const std::vector<std::unique_ptr<PackedReader>> &in, PackedWriter *out = nullptr)
        : c_(config), slices_(slices), tensors_(tensors), options_(options), backends_(backends), group_(group),
          in_(in), out_(out), total_(bytesOf(tensors.head()) + (tensors.tied() ? 0 : bytesOf(tensors.input_embd))) {
        for (const LayerTensors &layer : tensors.layers) {
            total_ += bytesOf(layer);
        }
    }

    // All ranks pack their part of one tensor or layer at a time, so that no pointer is read during report().
    std::vector<ModelWeights> pack() {
        std::vector<ModelWeights> result(slices_.size());
        // The largest tensors first: their file pages are then released before the packed layers add up, so that the
        // peak of memory is the packed weights and one layer.
        const char *head_name = tensors_.tied() ? "input_embd" : "output_embd";
        group_.run([&](uint32_t rank) {
            const RankSlice &s = slices_[rank];
            const HostNorm &norm = tensors_.output_norm;
            make(rank, NormSource{"output_norm", -1, norm.dtype, norm.data, c_.d}, result[rank].output_norm);
            make(rank, table(head_name, rowsOf(tensors_.head(), s.first_vocab, s.config.dvoc)), result[rank].head);
        });
        report(bytesOf(tensors_.head()));
        packEmbeddings(result);
        if (out_ != nullptr) {
            writeWeights(result[0], *out_, *backends_[0]);
        }
        report(tensors_.tied() ? 0 : bytesOf(tensors_.input_embd));
        for (uint32_t i = 0; i < c_.nlayer; ++i) {
            group_.run([&](uint32_t rank) {
                LayerSources sources = sourcesOf(c_, slices_[rank], tensors_.layers[i], i);
                LayerWeights packed;
                eachWeight([&](const auto &source, auto &weight) { make(rank, source, weight); }, sources, packed);
                if (out_ != nullptr) {
                    writeLayer(packed, *out_, *backends_[rank]);
                } else {
                    result[rank].layers.push_back(std::move(packed));
                }
            });
            report(bytesOf(tensors_.layers[i]));
        }
        return result;
    }

private:
    // The file that the rank's weights are read from, or null when they are to be packed.
    PackedReader *saved(uint32_t rank) const { return in_.empty() ? nullptr : in_[rank].get(); }

    void make(uint32_t rank, const LinearSource &source, std::unique_ptr<PackedLinear> &packed) const {
        packed = backends_[rank]->makeLinear(source, saved(rank));
    }
    void make(uint32_t rank, const NormSource &source, std::unique_ptr<PackedNorm> &packed) const {
        packed = backends_[rank]->makeNorm(source, saved(rank));
    }

    void packEmbeddings(std::vector<ModelWeights> &result) {
        EmbeddingSource source{table("input_embd", tensors_.input_embd), {}, borrowsEmbedding()};
        for (size_t rank = 0; tensors_.tied() && rank < result.size(); ++rank) {
            source.heads.push_back(result[rank].head.get());
        }
        if (source.heads.empty() && in_.empty()) {
            checkTable("input_embd", tensors_.input_embd);
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

    // Rows of codes are not read where they are.
    bool borrowsEmbedding() const { return options_.borrow_weights != 0 && tensors_.input_embd.stored == nullptr; }

    // The head decides between close tokens and is a small part of a model.
    static LinearSource table(const char *name, const HostMatrix &matrix) {
        return {name, -1, {matrix}, 0, Precision::kHigh};
    }

    // Backends check what they pack, but a table may be used where it is, row by row, so it is checked here. Its rows
    // are contiguous.
    static void checkTable(const char *name, const HostMatrix &table) {
        std::vector<char> copy(copyBytes(table, 1));
        std::optional<StoredReader> reader;
        if (table.stored != nullptr) {
            reader.emplace(*table.stored);
        }
        for (uint32_t row = 0; row < table.rows; ++row) {
            HostMatrix part;  // the file may be cut short meanwhile
            if (!copyRows(table, row, 1, copy.data(), part, reader ? &*reader : nullptr)) {
                failUnreadable(name);
            }
            const int64_t bad = findNonFinite(copy.data(), table.cols, part.dtype);
            if (bad >= 0) {
                fail(QWEN3_STATUS_BAD_WEIGHTS, "%s is NaN or infinite at row %u, column %lld", name, row,
                     static_cast<long long>(bad));
            }
        }
    }

    // After `bytes` more.
    void report(uint64_t bytes) {
        done_ += bytes;
        if (options_.progress != nullptr && options_.progress(options_.progress_user_data, done_, total_) != 0) {
            fail(QWEN3_STATUS_CANCELLED, "the progress callback stopped loading after %llu of %llu bytes",
                 static_cast<unsigned long long>(done_), static_cast<unsigned long long>(total_));
        }
    }

    const ModelConfig &c_;
    const std::vector<RankSlice> &slices_;
    const ModelTensors &tensors_;
    const Qwen3ModelOptions &options_;
    const std::vector<std::unique_ptr<Backend>> &backends_;
    RankGroup &group_;
    const std::vector<std::unique_ptr<PackedReader>> &in_;
    PackedWriter *out_;
    uint64_t total_;
    uint64_t done_ = 0;
};

// What the format that a matrix is kept in depends on.
std::string formatOf(const HostMatrix &matrix) {
    std::string text = dtypeName(matrix.dtype);
    if (const StoredMatrix *m = matrix.stored; m != nullptr && m->block_cols != 0) {
        char more[128];
        std::snprintf(more, sizeof more, "(%d,%d,%d,%d,%u,%u,%u,%d)", m->layout, static_cast<int>(m->scale_dtype),
                      m->zeros == nullptr ? 0 : static_cast<int>(m->zero_dtype), m->zero_offset, m->block_rows,
                      m->block_cols, matrix.first_col, m->groups.empty() ? 0 : 1);
        text += more;
    }
    return text;
}

// Of a packed layer: what its format may be by default, and whether it has a bias.
std::string formatOf(const LinearSource &source) {
    const bool bias = std::any_of(source.parts.begin(), source.parts.end(),
                                  [](const HostMatrix &part) { return part.bias != nullptr; });
    const bool codes = std::any_of(source.parts.begin(), source.parts.end(),
                                   [](const HostMatrix &part) { return part.stored != nullptr; });
    std::string text = dtypeName(commonDType(source));
    if (codes) {
        text = "";
        std::string last;  // the parts of experts are mostly the same
        for (const HostMatrix &part : source.parts) {
            const std::string format = formatOf(part);
            text += (text.empty() ? "" : "/") + (source.experts > 0 && format == last ? "" : format);
            last = format;
        }
    }
    return text + (bias ? "+b" : "");
}

// Everything but the caller's key that the bytes of saved weights depend on; empty if the backend cannot save.
std::string identityOf(const ModelConfig &c, const std::vector<RankSlice> &slices, const ModelTensors &tensors,
                       const Qwen3ModelOptions &options, Backend &backend) {
    const std::string layout = backend.packedLayout();
    if (layout.empty()) {
        return {};
    }
    char text[256];
    std::snprintf(text, sizeof text, " nlayer=%u d=%u nh=%u nkvh=%u dh=%u di=%u dvoc=%u tied=%d borrow=%d", c.nlayer,
                  c.d, c.nh, c.nkvh, c.dh, c.di, c.dvoc, tensors.tied() ? 1 : 0, options.borrow_weights != 0 ? 1 : 0);
    std::string identity = layout + text;
    if (c.nexperts > 0) {
        std::snprintf(text, sizeof text, " nexperts=%u nused=%u dm=%u norm_topk=%d", c.nexperts, c.nused, c.dm,
                      c.norm_topk ? 1 : 0);
        identity += text;
    }
    for (size_t rank = 0; slices.size() > 1 && rank < slices.size(); ++rank) {
        const ModelConfig &s = slices[rank].config;
        std::snprintf(text, sizeof text, " rank=%u,%u,%u,%u", s.nh, s.nkvh, s.di, s.dvoc);
        identity += text;
        if (c.nexperts > 0) {
            identity += "," + std::to_string(s.dm);
        }
    }
    identity += std::string(" head=") + formatOf(tensors.head()) + " embd=" + formatOf(tensors.input_embd);
    std::string last;  // layers like the one before are not spelled out
    for (uint32_t i = 0; i < c.nlayer; ++i) {
        const LayerSources layer = sourcesOf(c, slices[0], tensors.layers[i], i);
        std::string formats;
        for (const LinearSource *source :
             {&layer.attn_qkv, &layer.attn_o, &layer.ffn_gate_up, &layer.ffn_down, &layer.router}) {
            if (!isPresent(*source)) {
                continue;
            }
            formats += formatOf(*source) + static_cast<char>('0' + static_cast<int>(source->precision)) + ",";
        }
        identity += formats == last ? "=" : " " + formats;
        last = formats;
    }
    return identity;
}

std::string withKey(const std::string &identity, const char *key) {
    return identity + "\n" + (key == nullptr ? "" : key);
}

int32_t cacheState(PackedFileError::Reason reason) {
    switch (reason) {
    case PackedFileError::kAbsent:
        return QWEN3_CACHE_ABSENT;
    case PackedFileError::kUnreadable:
        return QWEN3_CACHE_UNREADABLE;
    case PackedFileError::kStale:
        return QWEN3_CACHE_STALE;
    case PackedFileError::kCorrupt:
        break;
    }
    return QWEN3_CACHE_CORRUPT;
}

}  // namespace

uint64_t ModelWeights::fileBytes() const {
    uint64_t total = 0;
    for (const LayerWeights &layer : layers) {
        total += layer.ffn_gate_up->fileBytes() + layer.ffn_down->fileBytes();
    }
    return total;
}

uint64_t ModelWeights::bytes() const {
    uint64_t total = head->bytes() + output_norm->bytes();
    for (const LayerWeights &layer : layers) {
        eachWeight([&](const auto &weight) { total += weight->bytes(); }, layer);
    }
    return total;
}

std::vector<ModelWeights> packWeights(const ModelConfig &config, const std::vector<RankSlice> &slices,
                                      const ModelTensors &tensors, const Qwen3ModelOptions &options,
                                      const std::vector<std::unique_ptr<Backend>> &backends, RankGroup &group) {
    const std::string identity = identityOf(config, slices, tensors, options, *backends[0]);
    const auto load = [&] {
        std::vector<std::unique_ptr<PackedReader>> readers;
        readers.reserve(slices.size());
        for (uint32_t rank = 0; rank < slices.size(); ++rank) {
            readers.push_back(
                std::make_unique<PackedReader>(options.cache_path, withKey(identity, options.cache_key), rank));
        }
        std::vector<ModelWeights> loaded = Packer(config, slices, tensors, options, backends, group, readers).pack();
        for (const auto &reader : readers) {
            reader->finish();
        }
        loaded[0].identity = identity;
        loaded[0].cache = QWEN3_CACHE_LOADED;
        return loaded;
    };
    const bool on_disk = options.experts == QWEN3_EXPERTS_DISK;
    if (on_disk && (identity.empty() || slices.size() > 1)) {
        fail(QWEN3_STATUS_NOT_IMPLEMENTED, "options.experts is disk, which only the cpu backend can, with ndev 1: %s",
             identity.empty() ? "this is another backend" : ("ndev is " + std::to_string(slices.size())).c_str());
    }
    int32_t cache = QWEN3_CACHE_UNUSED;
    if (options.cache_path != nullptr && !identity.empty()) {
        try {
            return load();
        } catch (const PackedFileError &error) {
            cache = cacheState(error.reason());
        }
    }
    if (on_disk) {
        PackedFileWriter out(options.cache_path, withKey(identity, options.cache_key));
        Packer(config, slices, tensors, options, backends, group, {}, &out).pack();
        out.commit();
        try {
            return load();
        } catch (const PackedFileError &error) {
            fail(QWEN3_STATUS_IO_ERROR, "%s cannot be read although it has just been written: %s", options.cache_path,
                 error.systemError() != 0 ? systemReason(error.systemError()).c_str() : "it has changed");
        }
    }
    std::vector<ModelWeights> packed = Packer(config, slices, tensors, options, backends, group, {}).pack();
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
    for (const LayerWeights &layer : weights.layers) {
        writeLayer(layer, out, backend);
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
