#include "ops/cpu/kv.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/half.h"

namespace q3::cpu {
namespace {

// Elements of a head that are converted at a time.
constexpr uint32_t kTogether = 128;
static_assert(kTogether % kValueWidth == 0, "whole panels of values");

// Stores the codes of n values at stride `stride` and returns their scale. NaN and infinity become a NaN scale.
uint16_t storeCodes(const float *in, uint32_t n, int8_t *codes, size_t stride) {
    float largest = 0.0F;
    bool finite = true;
    for (uint32_t i = 0; i < n; ++i) {
        finite = finite && std::isfinite(in[i]);
        largest = std::max(largest, std::fabs(in[i]));
    }
    const uint16_t scale = !finite || largest < kLeastScale ? 0 : bf16Up(largest / 127.0F);
    const float inverse = scale == 0 ? 0.0F : 1.0F / bf16ToFloat(scale);
    for (uint32_t i = 0; i < n; ++i) {
        codes[i * stride] = scale == 0 ? int8_t{0} : static_cast<int8_t>(std::nearbyint(in[i] * inverse));
    }
    return finite ? scale : uint16_t{0x7fc0};
}

// out[j] = the bf16 of row[j] and of row[ld + j]
void pairRows(const float *row, size_t ld, uint32_t n, uint32_t *out) {
    for (uint32_t j = 0; j < n; ++j) {
        out[j] = floatToBf16(row[j]) | uint32_t{floatToBf16(row[ld + j])} << 16;
    }
}

}  // namespace

KvLayout::KvLayout(const ModelConfig &config, DType dtype, const KernelTable &kernels, Activations attention)
    : kernels_(kernels), dtype_(dtype), codes_(dtype == DType::kInt8),
      pairs_(dtype == DType::kBf16 && attention == Activations::kBf16), format_(formatOf(dtype)),
      nlayer_(config.nlayer), nkvh_(config.nkvh), dh_(config.dh), value_width_(roundUp(config.dh, kValueWidth)),
      key_bytes_(size_t{dh_} * kBlockTokens * elementSize()), head_bytes_(headBytes()) {}

size_t KvLayout::blockBytes() const {
    return size_t{nlayer_} * nkvh_ * head_bytes_;
}

std::string KvLayout::name() const {
    return std::string("cpu-") + dtypeName(dtype_) +
           (pairs_ ? " in pairs" : " in panels of " + std::to_string(valuePanel()));
}

size_t KvLayout::headBytes() const {
    const size_t elements = size_t{kBlockTokens} * (dh_ + value_width_);
    if (!codes_) {
        return elements * elementSize();
    }
    const size_t scales = size_t{kBlockTokens} * (keyScales() + value_width_ / kPanelRows);
    return (elements + scales * sizeof(uint16_t) + 63) / 64 * 64;
}

// Stores elements [e, e + n) of a token's key and value in pairs, n <= kTogether.
void KvLayout::storePairs(const Tile &tile, uint32_t slot, uint32_t e, uint32_t n, const float *k,
                          const float *v) const {
    uint16_t keys[kTogether];
    uint16_t values[kTogether];
    kernels_.store[kBf16](keys, k, n);
    kernels_.store[kBf16](values, v, n);
    char *key_at = tile.keys + (size_t{e / 2} * kBlockTokens + slot) * 2 * sizeof(uint16_t);
    for (uint32_t j = 0; j < n; j += 2) {
        std::memcpy(key_at + size_t{j} * kBlockTokens * sizeof(uint16_t), keys + j, 2 * sizeof(uint16_t));
    }
    auto *value_at = reinterpret_cast<uint16_t *>(tile.values) + (size_t{slot / 2} * value_width_ + e) * 2 + slot % 2;
    for (uint32_t j = 0; j < n; ++j) {
        value_at[size_t{j} * 2] = values[j];
    }
}

// Stores elements [e, e + n) of a token's key and value one by one, n <= kTogether.
void KvLayout::storeElements(const Tile &tile, uint32_t slot, uint32_t e, uint32_t n, const float *k,
                             const float *v) const {
    const size_t size = elementSize();
    for (uint32_t i = 0; i < n; i += kValueWidth) {  // two panels, which lie side by side
        kernels_.store[format_](tile.values + valueElement((e + i) / kPanelRows, slot) * size, v + i,
                                std::min(kValueWidth, n - i));
    }
    // A token's K is a column of its tile, so it is converted as a row and then placed element by element.
    float converted[kTogether];
    kernels_.store[format_](converted, k, n);
    const auto place = [&](auto element) {
        using Element = decltype(element);
        const auto *from = reinterpret_cast<const char *>(converted);
        char *to = tile.keys + (size_t{e} * kBlockTokens + slot) * sizeof(Element);
        for (uint32_t j = 0; j < n; ++j) {
            std::memcpy(to + j * kBlockTokens * sizeof(Element), from + j * sizeof(Element), sizeof(Element));
        }
    };
    if (size == sizeof(float)) {
        place(float{});
    } else {
        place(uint16_t{});
    }
}

void KvLayout::storeCoded(const Tile &tile, uint32_t slot, const float *k, const float *v) const {
    for (uint32_t e = 0; e < dh_; e += kKeyGroup) {
        auto *codes = reinterpret_cast<int8_t *>(tile.keys) + size_t{e} * kBlockTokens + slot;
        tile.key_scales[e / kKeyGroup * kBlockTokens + slot] =
            storeCodes(k + e, std::min(kKeyGroup, dh_ - e), codes, kBlockTokens);
    }
    for (uint32_t e = 0; e < dh_; e += kPanelRows) {
        char *values = tile.values + size_t{e} * kBlockTokens + size_t{slot} * kPanelRows;
        tile.value_scales[e / kPanelRows * kBlockTokens + slot] =
            storeCodes(v + e, std::min(kPanelRows, dh_ - e), reinterpret_cast<int8_t *>(values), 1);
    }
}

void KvLayout::storeToken(const Tile &tile, uint32_t slot, const float *k, const float *v) const {
    if (codes_) {
        return storeCoded(tile, slot, k, v);
    }
    const auto store = pairs_ ? &KvLayout::storePairs : &KvLayout::storeElements;
    for (uint32_t e = 0; e < dh_; e += kTogether) {
        (this->*store)(tile, slot, e, std::min(kTogether, dh_ - e), k + e, v + e);
    }
}

void KvLayout::loadKeys(const Tile &tile, float *out) const {
    if (!codes_) {
        kernels_.load[format_](out, tile.keys, dh_ * kBlockTokens);
        return;
    }
    for (uint32_t e = 0; e < dh_; e += kKeyGroup) {
        kernels_.loadCodes(out + size_t{e} * kBlockTokens, tile.keys + size_t{e} * kBlockTokens,
                           tile.key_scales + e / kKeyGroup * kBlockTokens, std::min(kKeyGroup, dh_ - e), true);
    }
}

void KvLayout::loadValues(const Tile &tile, uint32_t panel, float *out) const {
    const uint32_t elements = kBlockTokens * valuePanel();
    const char *values = tile.values + size_t{panel} * elements * elementSize();
    if (codes_) {
        kernels_.loadCodes(out, values, tile.value_scales + panel * kBlockTokens, kBlockTokens, false);
    } else {
        kernels_.load[format_](out, values, elements);
    }
}

void KvLayout::pairKeys(const Tile &tile, uint32_t *out, float *scratch) const {
    loadKeys(tile, scratch);
    for (uint32_t i = 0; i < dh_ / 2; ++i) {
        pairRows(scratch + size_t{i} * 2 * kBlockTokens, kBlockTokens, kBlockTokens, out + size_t{i} * kBlockTokens);
    }
}

void KvLayout::pairValues(const Tile &tile, uint32_t *out, float *scratch) const {
    const uint32_t width = valuePanel();
    for (uint32_t panel = 0; panel < value_width_ / width; ++panel) {
        loadValues(tile, panel, scratch);
        for (uint32_t i = 0; i < kBlockTokens / 2; ++i) {
            pairRows(scratch + size_t{i} * 2 * width, width, width, out + size_t{i} * value_width_ + panel * width);
        }
    }
}

void *KvMemory::allocate(size_t bytes) {
    if (free_.empty()) {
        constexpr size_t kSlab = size_t{64} << 20;  // its last part, less than a huge page, lies in small ones
        const size_t size = (bytes + 63) / 64 * 64;
        const size_t count = std::max<size_t>(1, std::min<size_t>(kSlab / size, 64));
        free_.reserve(free_.capacity() + count);  // so that release() never allocates
        slabs_.emplace_back(size * count);        // zeroed; untouched pages take no memory
        for (size_t i = count; i-- > 0;) {
            free_.push_back(slabs_.back().as<char>() + i * size);
        }
    }
    void *block = free_.back();
    free_.pop_back();
    return block;
}

void KvMemory::release(void *block) noexcept {
    free_.push_back(block);
}

void KvMemory::copy(void *dst, const void *src, size_t bytes) {
    std::memcpy(dst, src, bytes);
}

}  // namespace q3::cpu
