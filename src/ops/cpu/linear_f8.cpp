// Products of many rows with f8 layers, whose panels were expanded to bf16: those of each block of k are added with its
// scales.
#include <algorithm>

#include "ops/cpu/linear.h"

namespace q3::cpu {

// A block of k of f8 panels, which are expanded already, added to product. f8: the first of the panels as they were,
// `stride` bytes apart.
void Linears::multiplyExpandedF8(const Panels &panels, const char *f8, size_t stride, const Rows &rows, float *product,
                                 uint32_t thread) const {
    constexpr size_t width = kTogether * kPanelRows;
    if (panels.k0 == 0) {
        std::fill(product, product + rows.count * width, 0.0F);
    }
    float *part = blockScratch(thread);
    for (uint32_t i = 0; i < panels.k; i += kF8Group) {
        Panels block = panels;
        block.data += panelOffset(kBf16, i);
        block.k0 += i;
        block.k = std::min(kF8Group, panels.k - i);
        block.alone = true;
        multiplyPanels(block, rows, part, width);
        for (uint32_t q = 0; q < panels.count; ++q) {
            const char *scales = f8 + q * stride + panelOffset(kF8, block.k0);
            kernels_.addScaled(product + size_t{q} * kPanelRows, width, part + size_t{q} * kPanelRows, width,
                               reinterpret_cast<const float *>(scales), rows.count);
        }
    }
}

}  // namespace q3::cpu
