// The kernels, written once for all vector instruction sets and instantiated by each kernels_*.cpp with its traits S:
//   F, I, H, B                kLanes floats, kLanes int32, kLanes pairs of int16, kLanes quads of int8
//   Q                         sums of the products of quads, kLanes of them in any form
//   kLanes, kParts            lanes of a vector; vectors of a panel's 16 rows
//   kTileRows, kRegisters     rows of a register tile; vector registers
//   load, store, loadFirst, storeFirst, broadcast, set, zero, fma(a, b, c) = a * b + c,
//   accumulate(sum, a, b) = fma(a, b, sum), ...                                               on F
//   loadBits, setBits, setInt, shiftLeft<n>, addInt, toFloat, toInt (to nearest), narrow, narrowBytes, ... on I
//   widen (int8 -> H), broadcastPair, dotPairs(sum, w, x)               on H, sums in I
//   loadQuads, lowNibbles, highNibbles, broadcastQuad, noQuads -> 0,
//   dotQuads(sum, w, x) (w 0 to 15, x signed), totalQuads -> I                                 on B, sums in Q
//   tableBf12(base), wordsBf12(codes, second, low, table, words)        a pair of bf12 as words of a bf16 panel
// A set with better products specialises Steps (simd_quant.h) or replaces slots of its table.
// Files compiled with an instruction set's flags include only intrinsics, C headers and these simd_*.h, in which
// everything is in an unnamed namespace: an inline function compiled with them must never replace its portable copy.
#pragma once

#include "ops/cpu/kernels/simd_attention.h"
#include "ops/cpu/kernels/simd_float.h"
#include "ops/cpu/kernels/simd_quant.h"
#include "ops/cpu/kernels/simd_rows.h"

namespace q3::cpu {
namespace {

template <typename S> constexpr Kernels simdTable(const char *name) {
    static_assert(S::kLanes * S::kParts == kPanelRows && S::kTileRows <= kMaxTileRows, "traits");
    return {
        name,
        S::kTileRows,
        S::kTileRows,
        {gemv<S, kF32>, gemv<S, kF16>, gemv<S, kBf16>, gemv<S, kBf12>},
        expandBf12<S>,
        tile<S>,
        {score<S, kF32>, score<S, kF16>, score<S, kBf16>},
        {weigh<S, kF32>, weigh<S, kF16>, weigh<S, kBf16>},
        {gemvQuant<S, kQ8>, gemvQuant<S, kQ4>},
        false,
        {quantize<S, kQ8>, quantize<S, kQ4>},
        rmsnorm<S>,
        add<S>,
        rope<S>,
        max<S>,
        expSum<S>,
        siluMul<S>,
        {storeF32, storeF16<S>, storeBf16<S>},
        {loadFloats<S, kF32>, loadFloats<S, kF16>, loadFloats<S, kBf16>},
        loadCodes<S>,
    };
}

}  // namespace
}  // namespace q3::cpu
