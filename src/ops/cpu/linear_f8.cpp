// Products with f8 layers: blocks of k are expanded to bf16, multiplied, and added with their scales.
#include <algorithm>

#include "ops/cpu/linear.h"

namespace q3::cpu {

// Adds the products of rows with a block of k: `bf16`, expanded, of which out[q] and groups[q] are panel q's sums and
// f8 group.
void Linears::addF8Block(const Panels &bf16, const Rows &rows, const char *const *groups, float *const *out, size_t ldo,
                         uint32_t thread) const {
    constexpr size_t width = kTogether * kPanelRows;
    constexpr size_t expanded = kTogether * panelOffset(kBf16, kF8Group) / sizeof(float);
    float *part = blockScratch(thread) + expanded;
    multiplyPanels(bf16, rows, part, width);
    for (uint32_t q = 0; q < bf16.count; ++q) {
        kernels_.addScaled(out[q], ldo, part + size_t{q} * kPanelRows, width,
                           reinterpret_cast<const float *>(groups[q]), rows.count);
    }
}

// out[row][panel * 16 + j] = products of a tile of rows with whole f8 panels, which are streamed as other formats'
// kernels do: kTogether panels that lie far apart.
void Linears::multiplyF8(const Panels &p, const Rows &rows, float *out, size_t ldo, uint32_t thread) const {
    auto *expanded = reinterpret_cast<uint16_t *>(blockScratch(thread));
    constexpr size_t bytes = panelOffset(kBf16, kF8Group);
    constexpr size_t weights = bytes / sizeof(uint16_t);
    for (uint32_t r = 0; r < rows.count; ++r) {
        std::fill(out + r * ldo, out + r * ldo + size_t{p.count} * kPanelRows, 0.0F);
    }
    const auto stream = [&](uint32_t first, uint32_t together, uint32_t apart) {
        for (uint32_t k0 = 0; k0 < p.k; k0 += kF8Group) {
            const uint32_t k = std::min(kF8Group, p.k - k0);
            const char *groups[kTogether];
            float *sums[kTogether];
            for (uint32_t q = 0; q < together; ++q) {
                const uint32_t panel = first + q * apart;
                groups[q] = p.data + panel * p.stride + panelOffset(kF8, k0);
                sums[q] = out + size_t{panel} * kPanelRows;
                kernels_.expandF8(groups[q] + kF8HeadBytes, k, expanded + q * weights);
            }
            addF8Block({reinterpret_cast<const char *>(expanded), bytes, together, kBf16, k0, k, k8Bits, true}, rows,
                       groups, sums, ldo, thread);
        }
    };
    const uint32_t apart = p.count / kTogether;
    for (uint32_t first = 0; first < apart; ++first) {
        stream(first, kTogether, apart);
    }
    for (uint32_t first = apart * kTogether; first < p.count; ++first) {
        stream(first, 1, 1);
    }
}

// A block of k of f8 panels, which are expanded already, added to product. f8: the first of the panels as they were,
// `stride` bytes apart.
void Linears::multiplyExpandedF8(const Panels &panels, const char *f8, size_t stride, const Rows &rows, float *product,
                                 uint32_t thread) const {
    constexpr size_t width = kTogether * kPanelRows;
    if (panels.k0 == 0) {
        std::fill(product, product + rows.count * width, 0.0F);
    }
    for (uint32_t i = 0; i < panels.k; i += kF8Group) {
        const char *groups[kTogether];
        float *sums[kTogether];
        for (uint32_t q = 0; q < panels.count; ++q) {
            groups[q] = f8 + q * stride + panelOffset(kF8, size_t{panels.k0} + i);
            sums[q] = product + size_t{q} * kPanelRows;
        }
        Panels block = panels;
        block.data += panelOffset(kBf16, i);
        block.k0 += i;
        block.k = std::min(kF8Group, panels.k - i);
        block.alone = true;
        addF8Block(block, rows, groups, sums, width, thread);
    }
}

}  // namespace q3::cpu
