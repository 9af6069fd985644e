// The kernels, written once for all vector instruction sets and instantiated by each isa_*.cpp with its traits S:
//   F, I, H, B                kLanes floats, kLanes int32, kLanes pairs of int16, kLanes quads of bytes
//   Q                         sums of the products of quads, kLanes of them in any form
//   kLanes, kParts            lanes of a vector; vectors of a panel's 16 rows
//   kTileRows, kRegisters     rows of a register tile; vector registers
//   load, store, loadFirst, storeFirst, broadcast, set, zero, fma(a, b, c) = a * b + c,
//   accumulate(sum, a, b) = fma(a, b, sum), ...                                               on F
//   loadBits, setBits, setInt, shiftLeft<n>, addInt, toFloat, toInt (to nearest), narrow, narrowBytes,
//   swapMiddle (0 2 1 3 of every four lanes), ...                                              on I
//   loadQuads, lowNibbles, highNibbles, broadcastQuad                                          on B
//   kByteDots: dotBytes(sum, w, x) with x signed, and w signed (kSignedBytes, makeSigned(w) = w - 128) or not, sums
//   in I; otherwise
//     words<shift, mask> (B -> H), broadcastPair, dotPairs(sum, w, x)                          on H, sums in I
//     noQuads -> 0, dotQuads(sum, w, x) (w 0 to 15, x signed), totalQuads -> I                 on B, sums in Q
//   kScales; if so scale(f, n) = f * 2^n for whole n, with results too small to be normal as zeros
//   kDotsBf16; if so broadcastBits -> I, dotBf16(sum, w, x) on F and pairs of bf16 in I (simd_bf16.h)
//   andBytes(v, mask), orMasked(a, v, mask) = a | (v & mask), shiftBytes<n> (left, or right if n < 0; bits may come
//   from neighbours) on B,
//   dotBytes(sum, w, x) on I and B (w 0 to 127, x signed), kDotsWide: or w to 255        what simd_affine.h takes
//   widenLower, widenUpper    the lower or upper 8 of every 16 bytes as 16-bit words, on I (simd_f8.h)
//   subnormalF8(magnitude, normal)    of 16-bit words: bf16 of magnitude * 2^-9 where magnitude is below 8 (simd_f8.h)
//   kLooksUpF8; if so F8Table, tableF8(), its kF8TableRegisters, lookUpF8(bytes, table, first, second): pairs of bf16
//   tableBf12(base), wordsBf12(codes, second, low, table, words)        a pair of bf12 as words of a bf16 panel
// A set with better products replaces slots of its table.
// Files compiled with an instruction set's flags include only intrinsics, C headers, kernels.h, formats.h and these
// simd_*.h, in which everything is in an unnamed namespace: an inline function compiled with them must never replace
// its portable copy.
#pragma once

#include "ops/cpu/kernels/simd_attention.h"
#include "ops/cpu/kernels/simd_bf16.h"
#include "ops/cpu/kernels/simd_f8.h"
#include "ops/cpu/kernels/simd_float.h"
#include "ops/cpu/kernels/simd_quant.h"
#include "ops/cpu/kernels/simd_rows.h"

namespace q3::cpu {
namespace {

// affine: kernels of the same traits, or of traits with the same products
template <typename S> constexpr KernelTable simdTable(const char *name, const AffineKernels &affine) {
    static_assert(S::kLanes * S::kParts == kPanelRows && S::kTileRows <= kMaxTileRows, "traits");
    KernelTable table{};
    table.name = name;
    table.affine = &affine;
    table.tile_rows = S::kTileRows;
    table.quant_tile_rows = kQuantTileRows<S>;
    table.quant_stream_rows = kOneStream<S> ? kQuantStreamRows : 0;
    forEachFormat([&](auto format) {
        constexpr WeightFormat T = decltype(format)::value;
        if constexpr (isAffine(T)) {
            table.codes[k8Bits][T] = {codeOrder<S, T, k8Bits>(), quantize<S, T, k8Bits>, nullptr};
            if constexpr (affineOf(T).takesWideCodes()) {
                table.codes[k16Bits][T] = {codeOrder<S, T, k16Bits>(), quantize<S, T, k16Bits>, nullptr};
            }
        } else if constexpr (takesCodes(T)) {
            table.codes[k8Bits][T] = codeKernels<S, T, k8Bits>();
            table.codes[k16Bits][T] = codeKernels<S, T, k16Bits>();
        } else if constexpr (T != kF8) {  // addF8
            table.multiplyPanels[T] = multiplyPanels<S, T>;
        }
        if constexpr (infoOf(T).plain) {
            table.score[T] = score<S, T>;
            table.weigh[T] = weigh<S, T>;
            table.load[T] = loadFloats<S, T>;
        }
    });
    table.store[kF32] = storeF32;
    table.store[kF16] = storeF16<S>;
    table.store[kBf16] = storeBf16<S>;
    table.expandBf12 = expandBf12<S>;
    addRounded<S>(table);
    addF8<S>(table);
    table.tile = tile<S>;
    table.rmsnorm = rmsnorm<S>;
    table.add = add<S>;
    table.rope = rope<S>;
    table.max = max<S>;
    table.expSum = expSum<S>;
    table.expRound = expRound<S>;
    table.scorePairs = scorePairs<S>;
    table.weighPairs = weighPairs<S>;
    table.siluMul = siluMul<S>;
    table.loadCodes = loadCodes<S>;
    return table;
}

}  // namespace
}  // namespace q3::cpu
