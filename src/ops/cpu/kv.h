// KV blocks of the CPU backend: where a tile lies in a block, how a token is stored in it, and how a tile becomes
// floats; and the memory of blocks.
#pragma once

#include <string>
#include <vector>

#include "ops/block_memory.h"
#include "ops/cpu/host_buffer.h"
#include "ops/cpu/kernels/kernels.h"
#include "ops/types.h"

namespace q3::cpu {

// A block holds kBlockTokens tokens of all layers: per layer and KV head one tile, K [dh][16 tokens] and then
// V [valueWidth() / w][16 tokens][w], where w is valuePanel(). Elements are f32, f16, bf16 or int8.
//
// int8 tiles keep codes, and behind them bf16 scales: K one per token and 32 elements of the head,
// [ceil(dh / 32)][16 tokens]; V one per token and panel of 16 elements, [valueWidth() / 16][16 tokens].
//
// Where attention is in bf16 and so are elements, they lie in pairs, as it multiplies them: K [dh / 2][16 tokens][2], V
// [8 pairs of tokens][valueWidth()][2]. Tiles of other elements are brought into that form when they are read.
class KvLayout {
public:
    // The width of a kernel's tile, so that a K tile is one [dh][16] matrix.
    static constexpr uint32_t kBlockTokens = kPanelRows;

    // dtype: F32, F16, BF16 or INT8. attention: Arithmetic::attention. The table must outlive the layout.
    KvLayout(const ModelConfig &config, DType dtype, const KernelTable &kernels, Activations attention);

    size_t blockBytes() const;
    // Names all that decides where an element lies in a block of known size: files of blocks outlive the library.
    std::string name() const;

    bool keepsCodes() const { return codes_; }
    bool keepsPairs() const { return pairs_; }
    WeightFormat format() const { return format_; }  // of elements, unless keepsCodes()
    size_t elementSize() const { return codes_ ? 1 : elementBytes(format_); }
    uint32_t valueWidth() const { return value_width_; }  // dh rounded up to whole panels of kValueWidth
    uint32_t valuePanel() const { return codes_ ? kPanelRows : kValueWidth; }

    struct Tile {
        char *keys;
        char *values;
        uint16_t *key_scales;    // of int8, else null
        uint16_t *value_scales;  // of int8, else null
    };
    Tile tile(void *block, uint32_t layer, uint32_t head) const {
        char *keys = static_cast<char *>(block) + (size_t{layer} * nkvh_ + head) * head_bytes_;
        char *values = keys + key_bytes_;
        if (!codes_) {
            return {keys, values, nullptr, nullptr};
        }
        auto *scales = reinterpret_cast<uint16_t *>(values + size_t{value_width_} * kBlockTokens);
        return {keys, values, scales, scales + size_t{kBlockTokens} * keyScales()};
    }

    // k, v [dh]
    void storeToken(const Tile &tile, uint32_t slot, const float *k, const float *v) const;
    // out [dh][16 tokens]
    void loadKeys(const Tile &tile, float *out) const;
    // out [16 tokens][valuePanel()], panel < valueWidth() / valuePanel()
    void loadValues(const Tile &tile, uint32_t panel, float *out) const;
    // The tile's keys or values in pairs of bf16, of a layout that does not keep them so; scratch: 16 * valueWidth().
    void pairKeys(const Tile &tile, uint32_t *out, float *scratch) const;
    void pairValues(const Tile &tile, uint32_t *out, float *scratch) const;

private:
    static constexpr uint32_t kKeyGroup = 32;  // elements of a key that share a scale
    static_assert(kKeyGroup % kPanelRows == 0, "a panel of keys lies in one group");

    uint32_t keyScales() const { return (dh_ + kKeyGroup - 1) / kKeyGroup; }  // of a token
    size_t headBytes() const;
    void storePairs(const Tile &tile, uint32_t slot, uint32_t e, uint32_t n, const float *k, const float *v) const;
    void storeElements(const Tile &tile, uint32_t slot, uint32_t e, uint32_t n, const float *k, const float *v) const;
    void storeCoded(const Tile &tile, uint32_t slot, const float *k, const float *v) const;

    const KernelTable &kernels_;
    DType dtype_;
    bool codes_;  // int8
    bool pairs_;
    WeightFormat format_;
    uint32_t nlayer_, nkvh_, dh_;
    uint32_t value_width_;
    size_t key_bytes_;   // of a tile of keys
    size_t head_bytes_;  // of a layer and head
};

// Cuts blocks from slabs in huge pages: attention walks from block to block, and with pages of 4 KiB nearly every tile
// would miss the TLB. Slabs live as long as the object; released blocks are kept for the next allocate. Not
// thread-safe.
class KvMemory final : public BlockMemory {
public:
    void *allocate(size_t bytes) override;
    void release(void *block) noexcept override;
    void copy(void *dst, const void *src, size_t bytes) override;

private:
    std::vector<HostBuffer> slabs_;
    std::vector<void *> free_;
};

}  // namespace q3::cpu
