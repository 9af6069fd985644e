// KV blocks of the CPU backend: where a tile lies in a block, how a token is stored in it, and how a tile becomes
// floats. int8 tiles keep codes, V's in panels of 16 elements, and bf16 scales behind them: K one per token and 32
// elements of the head, [ceil(dh / 32)][16 tokens]; V one per token and panel, [value_width / 16][16 tokens].
#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/pack/quant.h"
#include "ops/half.h"

namespace q3::cpu {
namespace {

constexpr uint32_t kKeyGroup = 32;
static_assert(kKeyGroup % kPanelRows == 0, "a panel of keys lies in one group");

// Codes of n values at stride `stride`; returns their scale. NaN and infinity become a NaN scale.
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

}  // namespace

size_t CpuBackend::kvHeadBytes() const {
    const size_t elements = size_t{kBlockTokens} * (config_.dh + value_width_);
    if (!kv_codes_) {
        return elements * elementSize();
    }
    const size_t scales = size_t{kBlockTokens} * ((config_.dh + kKeyGroup - 1) / kKeyGroup + value_width_ / kPanelRows);
    return (elements + scales * sizeof(uint16_t) + 63) / 64 * 64;
}

CpuBackend::KvTile CpuBackend::kvTile(void *block, uint32_t layer, uint32_t head) const {
    char *keys = static_cast<char *>(block) + (size_t{layer} * config_.nkvh + head) * kvHeadBytes();
    if (!kv_codes_) {
        return {keys, keys + size_t{config_.dh} * kBlockTokens * elementSize(), nullptr, nullptr};
    }
    char *values = keys + size_t{config_.dh} * kBlockTokens;
    auto *scales = reinterpret_cast<uint16_t *>(values + size_t{value_width_} * kBlockTokens);
    return {keys, values, scales, scales + size_t{kBlockTokens} * ((config_.dh + kKeyGroup - 1) / kKeyGroup)};
}

void CpuBackend::storeToken(const KvTile &tile, uint32_t slot, const float *k, const float *v) const {
    const size_t size = elementSize();
    if (kv_codes_) {
        for (uint32_t e = 0; e < config_.dh; e += kKeyGroup) {
            auto *codes = reinterpret_cast<int8_t *>(tile.keys) + size_t{e} * kBlockTokens + slot;
            tile.key_scales[e / kKeyGroup * kBlockTokens + slot] =
                storeCodes(k + e, std::min(kKeyGroup, config_.dh - e), codes, kBlockTokens);
        }
    }
    for (uint32_t e = 0; e < config_.dh; e += kPanelRows) {
        const uint32_t n = std::min(kPanelRows, config_.dh - e);
        if (kv_codes_) {
            char *values = tile.values + size_t{e} * kBlockTokens + size_t{slot} * kPanelRows;
            tile.value_scales[e / kPanelRows * kBlockTokens + slot] =
                storeCodes(v + e, n, reinterpret_cast<int8_t *>(values), 1);
            continue;
        }
        kernels_.store[kv_type_](tile.values + valueElement(e / kPanelRows, slot) * size, v + e, n);
        // K is scattered into its tile: convert, then place element by element.
        alignas(32) float converted[kPanelRows];
        kernels_.store[kv_type_](converted, k + e, n);
        for (uint32_t j = 0; j < n; ++j) {
            std::memcpy(tile.keys + (size_t{e + j} * kBlockTokens + slot) * size,
                        reinterpret_cast<const char *>(converted) + j * size, size);
        }
    }
}

// out [dh][16 tokens]
void CpuBackend::loadKeys(const KvTile &tile, float *out) const {
    if (!kv_codes_) {
        kernels_.load[kv_type_](out, tile.keys, config_.dh * kBlockTokens);
        return;
    }
    for (uint32_t e = 0; e < config_.dh; e += kKeyGroup) {
        kernels_.loadCodes(out + size_t{e} * kBlockTokens, tile.keys + size_t{e} * kBlockTokens,
                           tile.key_scales + e / kKeyGroup * kBlockTokens, std::min(kKeyGroup, config_.dh - e), true);
    }
}

// out [16 tokens][valuePanel()]
void CpuBackend::loadValues(const KvTile &tile, uint32_t panel, float *out) const {
    const uint32_t elements = kBlockTokens * valuePanel();
    const char *values = tile.values + size_t{panel} * elements * elementSize();
    if (kv_codes_) {
        kernels_.loadCodes(out, values, tile.value_scales + panel * kBlockTokens, kBlockTokens, false);
    } else {
        kernels_.load[kv_type_](out, values, elements);
    }
}

}  // namespace q3::cpu
