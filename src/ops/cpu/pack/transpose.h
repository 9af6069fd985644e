// Transposes 16 rows into columns of 16, the step that all packing shares, at about the speed of memory. Compiled for
// the baseline of each architecture: 128-bit vectors through the compilers' own vector types.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "ops/cpu/formats.h"

namespace q3::cpu {

typedef uint32_t Words4 __attribute__((vector_size(16)));

#if defined(__clang__)
#define Q3_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define Q3_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, Words4{i, j, k, l})
#endif

inline Words4 loadWords(const char *p) {
    Words4 value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

inline void storeWords(uint32_t *p, Words4 value) {
    std::memcpy(p, &value, sizeof value);
}

// Words 0..3 of 4 rows: out[w * kPanelRows + row].
inline void transpose4x4(const char *const rows[4], size_t offset, uint32_t *out) {
    const Words4 a = loadWords(rows[0] + offset);
    const Words4 b = loadWords(rows[1] + offset);
    const Words4 c = loadWords(rows[2] + offset);
    const Words4 d = loadWords(rows[3] + offset);
    const Words4 ab_low = Q3_SHUFFLE(a, b, 0, 4, 1, 5);  // a0 b0 a1 b1
    const Words4 ab_high = Q3_SHUFFLE(a, b, 2, 6, 3, 7);
    const Words4 cd_low = Q3_SHUFFLE(c, d, 0, 4, 1, 5);
    const Words4 cd_high = Q3_SHUFFLE(c, d, 2, 6, 3, 7);
    storeWords(out, Q3_SHUFFLE(ab_low, cd_low, 0, 1, 4, 5));
    storeWords(out + kPanelRows, Q3_SHUFFLE(ab_low, cd_low, 2, 3, 6, 7));
    storeWords(out + 2 * size_t{kPanelRows}, Q3_SHUFFLE(ab_high, cd_high, 0, 1, 4, 5));
    storeWords(out + 3 * size_t{kPanelRows}, Q3_SHUFFLE(ab_high, cd_high, 2, 3, 6, 7));
}

#undef Q3_SHUFFLE

// out[w][16] = word w of every row, w < nwords. Rows are 32-bit words of any alignment.
inline void transposeWords(const char *const rows[kPanelRows], size_t nwords, uint32_t *out) {
    constexpr size_t kLine = 16;  // words of a cache line: a row's line is used up before the next is touched
    size_t w = 0;
    for (; w + kLine <= nwords; w += kLine) {
        for (uint32_t j = 0; j < kPanelRows; j += 4) {
            for (size_t v = w; v < w + kLine; v += 4) {
                transpose4x4(rows + j, v * sizeof(uint32_t), out + v * kPanelRows + j);
            }
        }
    }
    for (; w < nwords; ++w) {
        for (uint32_t j = 0; j < kPanelRows; ++j) {
            std::memcpy(out + w * kPanelRows + j, rows[j] + w * sizeof(uint32_t), sizeof(uint32_t));
        }
    }
}

}  // namespace q3::cpu
