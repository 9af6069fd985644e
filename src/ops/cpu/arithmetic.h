// What the weights of each format are multiplied with: activations as floats, or rounded in one of several ways.
#pragma once

#include <string>

#include "ops/cpu/formats.h"
#include "ops/cpu/kernels/kernels.h"
#include "ops/types.h"

namespace q3::cpu {

// One choice per weight format and one for attention, made when a backend is made. All paths of a model (one row,
// tiles, blocks of k) keep to it, so that a result does not depend on its company.
struct Arithmetic {
    PerFormat<Activations> of{};
    bool fine_input = false;                    // layers of Precision::kInput meet codes of 16 bits where others meet 8
    Activations attention = Activations::kF32;  // or kBf16
};

// What a model whose main format is that of `weights` computes in. Formats that cannot take what is asked for get their
// default. Throws BAD_PARAM if the main format is one of them.
Arithmetic resolveActivations(Activations asked, DType weights, const KernelTable &kernels);

// A text that differs where results of a model with these formats do: "bf16=f32 attention=f32".
std::string arithmeticName(const Arithmetic &arithmetic, const PerFormat<bool> &formats);

}  // namespace q3::cpu
