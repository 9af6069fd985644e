#include "ops/cpu/numerics.h"

#include <algorithm>
#include <vector>

#include "ops/cpu/host_buffer.h"
#include "ops/cpu/kernels/dispatch.h"
#include "runtime/error.h"
#include "runtime/packed_file.h"

namespace q3::cpu {
namespace {

// A size that is not a multiple of any vector's width.
constexpr uint32_t kSize = 997;

// Numbers that are the same on every machine, in [-4, 4).
std::vector<float> numbers(size_t count, uint32_t seed) {
    std::vector<float> values(count);
    for (float &value : values) {
        seed = seed * 1664525U + 1013904223U;
        value = static_cast<float>(static_cast<int32_t>(seed >> 8) - (1 << 23)) * 0x1p-21F;
    }
    return values;
}

uint64_t hashOf(const KernelTable &kernels) {
    HashWriter hash;
    const auto note = [&](const std::vector<float> &values) {
        hash.append(values.data(), values.size() * sizeof(float));
    };
    const std::vector<float> x = numbers(kSize, 1);
    const std::vector<float> w = numbers(kSize, 2);
    std::vector<float> out(kSize);

    kernels.rmsnorm(out.data(), x.data(), w.data(), kSize, 1e-6F);
    note(out);
    kernels.siluMul(out.data(), x.data(), w.data(), kSize);
    note(out);
    out = x;
    note({kernels.expSum(out.data(), kSize, kernels.max(out.data(), kSize))});
    note(out);
    out = x;
    kernels.rope(out.data(), w.data(), w.data() + kSize / 2, kSize / 2);
    kernels.add(out.data(), w.data(), kSize);
    note(out);

    constexpr uint32_t kDepth = 61;
    const std::vector<float> weights = numbers(size_t{kDepth} * kPanelRows, 3);
    const HostBuffer panel(weights.size() * sizeof(float));  // aligned as panels are
    std::copy(weights.begin(), weights.end(), panel.as<float>());
    std::vector<float> product(kPanelRows);
    kernels.multiplyPanels[kF32](panel.data(), panel.bytes(), 1, kDepth, x.data(), kDepth, 1, product.data(),
                                 kPanelRows, false);
    note(product);

    const HostBuffer pairs(panelBytes(kBf16, kDepth));
    kernels.store[kBf16](pairs.data(), weights.data(), kDepth / 2 * 2 * kPanelRows);
    const HostBuffer rounded(roundedRowBytes(kDepth, 1, kernels.pair_bytes));
    kernels.round[0](x.data(), kDepth, rounded.as<char>());
    kernels.multiplyRounded[0][kBf16](pairs.data(), pairs.bytes(), 1, kDepth, {rounded.as<char>(), rounded.bytes()}, 1,
                                      product.data(), kPanelRows, false);
    note(product);
    out.assign(1, kernels.expRound(w.data(), kDepth, 4.0F, kDepth, rounded.as<char>()));
    note(out);
    return hash.hash();
}

}  // namespace

std::string numericsOf(const KernelTable &kernels) {
    const uint64_t hash = hashOf(kernels);
    const char *name = kernels.name;
    for (const KernelEntry &entry : kernelEntries()) {  // best first, so the plainest equal table is found last
        if (entry.supported && hashOf(*entry.kernels) == hash) {
            name = entry.kernels->name;
        }
    }
    char text[64];
    formatText(text, sizeof text, "%s %016llx", name, static_cast<unsigned long long>(hash));
    return text;
}

}  // namespace q3::cpu
