#include "engine/kv_file.h"

#include <cerrno>
#include <sstream>

#include "runtime/error.h"

namespace q3 {
namespace {

// Changes when the same name=value lines no longer mean the same bytes.
constexpr int kFormat = 2;
constexpr char kKernels[] = "kernels=";

// Identifies the settings of the rotary embedding by what they do: the tables of a few positions tell any two apart.
uint64_t ropeHash(const Rope &rope, uint32_t dh) {
    std::vector<float> table(dh);
    HashWriter hash;
    for (const uint32_t position : {0U, 1U, 1000U, 100000U}) {
        rope.fill(position, table.data(), table.data() + dh / 2);
        hash.append(table.data(), table.size() * sizeof(float));
    }
    return hash.hash();
}

bool startsWith(const std::string &text, const char *start) {
    return text.rfind(start, 0) == 0;
}

std::vector<std::string> linesOf(const std::string &text) {
    std::vector<std::string> lines;
    std::istringstream in(text);
    for (std::string line; std::getline(in, line);) {
        lines.push_back(line);
    }
    return lines;
}

[[noreturn]] void failForeign(const char *path, const std::string &saved, const std::string &wanted) {
    const std::vector<std::string> theirs = linesOf(saved);
    const std::vector<std::string> ours = linesOf(wanted);
    if (theirs.empty() || theirs[0] != ours[0]) {
        fail(QWEN3_STATUS_CACHE_MISMATCH, "%s holds no KV cache, or one of another version", path);
    }
    for (size_t i = 1; i < ours.size(); ++i) {
        if (i < theirs.size() && theirs[i] != ours[i] && startsWith(theirs[i], kKernels) &&
            startsWith(ours[i], kKernels)) {
            fail(QWEN3_STATUS_CACHE_MISMATCH,
                 "the KV cache in %s was computed by other kernels, whose results differ in the last bits: it has "
                 "%.80s, "
                 "this CPU has %s",
                 path, theirs[i].c_str(), ours[i].c_str());
        }
        if (i >= theirs.size() || theirs[i] != ours[i]) {
            fail(QWEN3_STATUS_CACHE_MISMATCH, "the KV cache in %s is of another model: it has %.80s, this model has %s",
                 path, i < theirs.size() ? theirs[i].c_str() : "nothing", ours[i].c_str());
        }
    }
    fail(QWEN3_STATUS_CACHE_MISMATCH, "the KV cache in %s is of another model", path);
}

// Returns body(); what packed files throw becomes an error whose message names the file.
template <typename Body> auto reading(const char *path, const Body &body) {
    try {
        return body();
    } catch (const PackedFileError &error) {
        const int reason = error.systemError();
        if (reason != 0 && reason != ENOENT && reason != ENOTDIR) {
            fail(QWEN3_STATUS_UNREADABLE, "the file %s cannot be read now: %s", path, systemReason(reason).c_str());
        }
        if (error.reason() == PackedFileError::kAbsent) {
            fail(QWEN3_STATUS_IO_ERROR, "could not open the file %s: %s", path, systemReason(reason).c_str());
        }
        if (error.reason() == PackedFileError::kStale) {
            fail(QWEN3_STATUS_CACHE_MISMATCH, "the file %s is of another version of the format", path);
        }
        fail(QWEN3_STATUS_IO_ERROR, "the file %s is damaged: truncated, changed, or no KV cache at all", path);
    }
}

}  // namespace

std::string kvIdentity(const ModelConfig &config, const Rope &rope, const std::vector<const ModelWeights *> &weights,
                       const std::vector<std::unique_ptr<Backend>> &backends) {
    const std::string layout = backends[0]->kvLayout();
    if (layout.empty()) {
        fail(QWEN3_STATUS_NOT_IMPLEMENTED, "this backend cannot save or load KV caches: only the CPU backend can");
    }
    HashWriter hash;
    for (size_t rank = 0; rank < weights.size(); ++rank) {
        writeWeights(*weights[rank], hash, *backends[rank]);
    }
    char experts[96] = "";
    if (config.nexperts > 0) {
        formatText(experts, sizeof experts, ", dm %u, %u of %u experts%s", config.dm, config.nused, config.nexperts,
                   config.norm_topk ? ", normed" : "");
    }
    char text[640];
    formatText(text, sizeof text,
               "kv-file=%d %s\nsizes=nlayer %u, d %u, nh %u, nkvh %u, dh %u, di %u, dvoc %u%s\nepsilon=%a\n"
               "rope=%016llx\nndev=%zu\nkv=%s, %u tokens in %zu bytes\nweights=%016llx\n%s%s\n",
               kFormat, QWEN3_VERSION_STRING, config.nlayer, config.d, config.nh, config.nkvh, config.dh, config.di,
               config.dvoc, experts, static_cast<double>(config.epsilon),
               static_cast<unsigned long long>(ropeHash(rope, config.dh)), backends.size(), layout.c_str(),
               backends[0]->kvBlockTokens(), backends[0]->kvBlockBytes(), static_cast<unsigned long long>(hash.hash()),
               kKernels, backends[0]->numerics().c_str());
    return text;
}

void writeKvFile(const char *path, const std::string &identity, const uint32_t *tokens, const KVCache &cache,
                 const BlockPool &pool) {
    PackedFileWriter out(path, identity);
    out.blob(tokens, cache.length() * sizeof(uint32_t));
    for (uint64_t i = 0; i < pool.blocksFor(cache.length()); ++i) {
        for (uint32_t rank = 0; rank < pool.ranks(); ++rank) {
            out.blob(cache.blocks(rank)[i], pool.blockBytes() / pool.ranks());
        }
    }
    out.commit();
}

KvFileReader::KvFileReader(const char *path, const std::string &identity)
    : path_(path), reader_(reading(path, [&] { return PackedReader(path); })) {
    if (reader_.identity() != identity) {
        failForeign(path, reader_.identity(), identity);
    }
    reading(path, [&] {
        const size_t bytes = reader_.nextBytes();
        if (bytes == 0 || bytes % sizeof(uint32_t) != 0 || bytes / sizeof(uint32_t) > UINT32_MAX) {
            throw PackedFileError(PackedFileError::kCorrupt);
        }
        tokens_.resize(bytes / sizeof(uint32_t));
        reader_.read(tokens_.data(), bytes, inline_);
    });
}

void KvFileReader::requireBlocks(const BlockPool &pool) const {
    reading(path_.c_str(), [&] {
        if (!reader_.holds(pool.blocksFor(tokens_.size()) * pool.ranks(), pool.blockBytes() / pool.ranks())) {
            throw PackedFileError(PackedFileError::kCorrupt);
        }
    });
}

void KvFileReader::readBlocks(const KVCache &cache, const BlockPool &pool) {
    reading(path_.c_str(), [&] {
        for (uint64_t i = 0; i < pool.blocksFor(tokens_.size()); ++i) {
            for (uint32_t rank = 0; rank < pool.ranks(); ++rank) {
                reader_.read(cache.blocks(rank)[i], pool.blockBytes() / pool.ranks(), inline_);
            }
        }
        reader_.finish();
    });
}

}  // namespace q3
