#include "ops/cpu/arithmetic.h"

#include <algorithm>
#include <vector>

#include "runtime/error.h"

namespace q3::cpu {
namespace {

// Whether a table multiplies pairs of bf16 as they are.
bool dotsPairs(const KernelTable &kernels) {
    return kernels.pair_bytes == 2 * sizeof(uint16_t);
}

// What a format's kernels can be multiplied with, the default first: the fastest whose effect on the output is that of
// other engines (docs/quantisation.md, docs/numerics.md), or the most exact one where a table is no faster with less.
std::vector<Activations> choicesOf(WeightFormat format, const KernelTable &kernels) {
    const bool bytes = kernels.codes[k16Bits][kQ8].order == kSplitCodes;
    switch (format) {
    case kF32:
    case kF16:
        return {Activations::kF32};
    case kBf16:
    case kBf12:
    case kF8:
        if (dotsPairs(kernels)) {
            return {Activations::kBf16, Activations::kBf16x2, Activations::kF32};
        }
        return {Activations::kF32, Activations::kBf16x2, Activations::kBf16};
    case kQ8:
        if (bytes) {
            return {Activations::kInt8, Activations::kInt16};
        }
        return {Activations::kInt16, Activations::kInt8};
    case kQ4:
        return {Activations::kInt8, Activations::kInt16};
    default:
        if (affineOf(format).takesWideCodes()) {
            return {Activations::kInt8, Activations::kInt16};
        }
        return {Activations::kInt8};
    }
}

bool contains(const std::vector<Activations> &choices, Activations activations) {
    return std::find(choices.begin(), choices.end(), activations) != choices.end();
}

}  // namespace

Arithmetic resolveActivations(Activations asked, DType weights, const KernelTable &kernels) {
    if (asked != Activations::kAuto) {
        const std::vector<Activations> choices = choicesOf(formatOf(weights), kernels);
        if (!contains(choices, asked)) {
            std::string names;
            for (const Activations choice : choices) {
                names += std::string(", ") + activationsName(choice);
            }
            fail(QWEN3_STATUS_BAD_PARAM, "options.activations is %s: weights packed as %s take auto%s",
                 activationsName(asked), dtypeName(weights), names.c_str());
        }
    }
    Arithmetic out;
    forEachFormat([&](auto format) {
        const std::vector<Activations> choices = choicesOf(decltype(format)::value, kernels);
        out.of[decltype(format)::value] = contains(choices, asked) ? asked : choices.front();
    });
    const Activations main = out.of[formatOf(weights)];
    // Attention in bf16 adds a thirtieth to what 8-bit codes and int8 weights cost, a twentieth with int4 ones. The
    // first layer's finer codes take off more than that (docs/quantisation.md).
    const bool packed = formatOf(weights) == kQ8 || formatOf(weights) == kQ4;
    const bool coded = packed && main == Activations::kInt8 && dotsPairs(kernels);
    out.attention = main == Activations::kBf16 || coded ? Activations::kBf16 : Activations::kF32;
    const bool bytes = formatOf(weights) == kQ8 || formatOf(weights) == kA8;
    out.fine_input = bytes && main == Activations::kInt8;
    return out;
}

std::string arithmeticName(const Arithmetic &arithmetic, const PerFormat<bool> &formats) {
    std::string text;
    for (const FormatInfo &info : kFormats) {
        if (formats[info.format]) {
            text += std::string(info.name) + "=" + activationsName(arithmetic.of[info.format]) + " ";
        }
    }
    if (arithmetic.fine_input) {
        text += std::string("input=") + activationsName(Activations::kInt16) + " ";
    }
    return text + "attention=" + activationsName(arithmetic.attention);
}

}  // namespace q3::cpu
