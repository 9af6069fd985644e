// AVX2 + FMA + F16C kernels. Compiled with those flags, so this file includes only intrinsics, C headers and kernels.h
// and keeps everything in an unnamed namespace: an inline function compiled here must never replace its portable copy.
//
// Registers: a tile of R rows x 16 columns takes 2 R accumulators, so R <= 6 leaves 4 for the operands. The one-row
// GEMV instead runs 4 panels at once: 8 independent chains cover the FMA latency, and 4 sequential streams per thread
// keep more cache-line fills in flight than one does.
#include <immintrin.h>

#include "ops/cpu/kernels.h"

// Accumulators live in registers only if the compiler unrolls the loops over them, which -O3 alone does not promise.
#define Q3_UNROLL _Pragma("GCC unroll 8")

namespace q3::cpu {
namespace {

inline __m256 loadF16(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
}

inline __m256 loadBf16(const uint16_t *p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

// 8 columns starting at element `index` of plain row-major data.
template <WeightType T> inline __m256 loadPlain(const void *data, size_t index) {
    if constexpr (T == kF32) {
        return _mm256_loadu_ps(static_cast<const float *>(data) + index);
    } else if constexpr (T == kF16) {
        return loadF16(static_cast<const uint16_t *>(data) + index);
    } else {
        return loadBf16(static_cast<const uint16_t *>(data) + index);
    }
}

// The products of R rows of x with P panels, 16 columns each: 2 R P registers.
template <int R, int P> struct Products {
    __m256 sum[R][P][2];

    Products() {
        Q3_UNROLL
        for (int r = 0; r < R; ++r) {
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                sum[r][p][0] = _mm256_setzero_ps();
                sum[r][p][1] = _mm256_setzero_ps();
            }
        }
    }

    // Adds one k of panel p: its 16 weights times x[r][k]. The row's value is broadcast here, from L1, rather than kept
    // for all panels: with six rows there is no register to keep it in.
    inline void add(int p, __m256 w0, __m256 w1, const float *x, size_t ldx) {
        Q3_UNROLL
        for (int r = 0; r < R; ++r) {
            const __m256 value = _mm256_broadcast_ss(x + r * ldx);
            sum[r][p][0] = _mm256_fmadd_ps(w0, value, sum[r][p][0]);
            sum[r][p][1] = _mm256_fmadd_ps(w1, value, sum[r][p][1]);
        }
    }

    void store(float *y, size_t ldy) const {
        Q3_UNROLL
        for (int r = 0; r < R; ++r) {
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                _mm256_storeu_ps(y + r * ldy + p * kPanelRows, sum[r][p][0]);
                _mm256_storeu_ps(y + r * ldy + p * kPanelRows + 8, sum[r][p][1]);
            }
        }
    }
};

// Even or odd k of 8 rows of a bf16 pair.
inline __m256 bf16Even(const char *pair, int half) {
    const __m256i bits = _mm256_load_si256(reinterpret_cast<const __m256i *>(pair) + half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}

inline __m256 bf16Odd(const char *pair, int half) {
    const __m256i bits = _mm256_load_si256(reinterpret_cast<const __m256i *>(pair) + half);
    return _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int>(0xffff0000U))));
}

template <WeightType T, int R, int P>
inline void multiplyFloats(const char *panels, size_t panel_bytes, uint32_t k, const float *x, size_t ldx,
                           Products<R, P> &products) {
    if constexpr (T == kBf16) {
        for (uint32_t i = 0; i < k; i += 2) {
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                const char *pair = panels + p * panel_bytes + size_t{i} * kPanelRows * 2;
                products.add(p, bf16Even(pair, 0), bf16Even(pair, 1), x + i, ldx);
                if (i + 1 < k) {  // an odd k ends with half a pair
                    products.add(p, bf16Odd(pair, 0), bf16Odd(pair, 1), x + i + 1, ldx);
                }
            }
        }
    } else {
        for (uint32_t i = 0; i < k; ++i) {
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                const char *panel = panels + p * panel_bytes;
                products.add(p, loadPlain<T>(panel, size_t{i} * kPanelRows),
                             loadPlain<T>(panel, size_t{i} * kPanelRows + 8), x + i, ldx);
            }
        }
    }
}

template <WeightType T> void unpack(const void *panel, uint32_t k0, uint32_t count, float *out) {
    if constexpr (T == kBf16) {
        const char *pair = static_cast<const char *>(panel) + size_t{k0} * kPanelRows * 2;
        for (uint32_t i = 0; i < count; i += 2, pair += size_t{kPanelRows} * 4) {
            Q3_UNROLL
            for (int h = 0; h < 2; ++h) {
                _mm256_storeu_ps(out + size_t{i} * kPanelRows + h * 8, bf16Even(pair, h));
                if (i + 1 < count) {
                    _mm256_storeu_ps(out + size_t{i + 1} * kPanelRows + h * 8, bf16Odd(pair, h));
                }
            }
        }
    } else {
        for (uint32_t i = 0; i < count * 2; ++i) {
            _mm256_storeu_ps(out + i * 8, loadPlain<T>(panel, size_t{k0} * kPanelRows + i * 8));
        }
    }
}

template <WeightType T, int R>
void tileRows(const float *a, size_t a_row, size_t a_col, const void *b, size_t ldb, uint32_t k, float *c, size_t ldc,
              bool accumulate) {
    __m256 acc[R][2];
    Q3_UNROLL
    for (int r = 0; r < R; ++r) {
        acc[r][0] = accumulate ? _mm256_loadu_ps(c + r * ldc) : _mm256_setzero_ps();
        acc[r][1] = accumulate ? _mm256_loadu_ps(c + r * ldc + 8) : _mm256_setzero_ps();
    }
    for (uint32_t i = 0; i < k; ++i) {
        const __m256 b0 = loadPlain<T>(b, i * ldb);
        const __m256 b1 = loadPlain<T>(b, i * ldb + 8);
        Q3_UNROLL
        for (int r = 0; r < R; ++r) {
            const __m256 value = _mm256_broadcast_ss(a + r * a_row + i * a_col);
            acc[r][0] = _mm256_fmadd_ps(value, b0, acc[r][0]);
            acc[r][1] = _mm256_fmadd_ps(value, b1, acc[r][1]);
        }
    }
    Q3_UNROLL
    for (int r = 0; r < R; ++r) {
        _mm256_storeu_ps(c + r * ldc, acc[r][0]);
        _mm256_storeu_ps(c + r * ldc + 8, acc[r][1]);
    }
}

template <WeightType T>
void tile(const float *a, size_t a_row, size_t a_col, const void *b, size_t ldb, uint32_t k, float *c, size_t ldc,
          uint32_t rows, bool accumulate) {
    switch (rows) {
    case 1:
        return tileRows<T, 1>(a, a_row, a_col, b, ldb, k, c, ldc, accumulate);
    case 2:
        return tileRows<T, 2>(a, a_row, a_col, b, ldb, k, c, ldc, accumulate);
    case 3:
        return tileRows<T, 3>(a, a_row, a_col, b, ldb, k, c, ldc, accumulate);
    case 4:
        return tileRows<T, 4>(a, a_row, a_col, b, ldb, k, c, ldc, accumulate);
    case 5:
        return tileRows<T, 5>(a, a_row, a_col, b, ldb, k, c, ldc, accumulate);
    default:
        return tileRows<T, 6>(a, a_row, a_col, b, ldb, k, c, ldc, accumulate);
    }
}

// 8 of a group's 16 scales.
inline __m256 groupScales(const char *group, int half) {
    return loadBf16(reinterpret_cast<const uint16_t *>(group) + half * 8);
}

inline __m256 loadQ8(const char *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
}

void unpackQ8(const void *panel, uint32_t k0, uint32_t count, float *out) {
    for (uint32_t first = 0; first < count; first += kGroup) {  // k0 is a multiple of kGroup
        const char *group = static_cast<const char *>(panel) + (k0 + first) / kGroup * kQ8GroupBytes;
        const __m256 scales[2] = {groupScales(group, 0), groupScales(group, 1)};
        const uint32_t end = count - first < kGroup ? count : first + kGroup;
        for (uint32_t i = first; i < end; ++i) {
            const char *q = group + 2 * kPanelRows + size_t{i - first} * kPanelRows;
            _mm256_storeu_ps(out + size_t{i} * kPanelRows, _mm256_mul_ps(loadQ8(q), scales[0]));
            _mm256_storeu_ps(out + size_t{i} * kPanelRows + 8, _mm256_mul_ps(loadQ8(q + 8), scales[1]));
        }
    }
}

void unpackQ4(const void *panel, uint32_t k0, uint32_t count, float *out) {
    const __m256i low = _mm256_set1_epi32(15);
    const __m256i eight = _mm256_set1_epi32(8);
    for (uint32_t i = 0; i < count; i += 8) {
        const char *group = static_cast<const char *>(panel) + (k0 + i) / kGroup * kQ4GroupBytes;
        const char *words = group + 2 * kPanelRows + (k0 + i) % kGroup / 8 * kPanelRows * 4;
        Q3_UNROLL
        for (int h = 0; h < 2; ++h) {
            const __m256 scale = groupScales(group, h);
            __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(words) + h);
            for (uint32_t j = 0; j < 8 && i + j < count; ++j) {
                const __m256i q = _mm256_sub_epi32(_mm256_and_si256(x, low), eight);
                _mm256_storeu_ps(out + (i + j) * kPanelRows + h * 8, _mm256_mul_ps(_mm256_cvtepi32_ps(q), scale));
                x = _mm256_srli_epi32(x, 4);
            }
        }
    }
}

template <int R, int P>
inline void multiplyGroupQ8(const char *const *groups, const float *x, size_t ldx, Products<R, P> &products) {
    __m256 scales[P][2];
    Q3_UNROLL
    for (int p = 0; p < P; ++p) {
        scales[p][0] = groupScales(groups[p], 0);
        scales[p][1] = groupScales(groups[p], 1);
    }
    for (uint32_t i = 0; i < kGroup; ++i) {
        Q3_UNROLL
        for (int p = 0; p < P; ++p) {
            const char *q = groups[p] + 2 * kPanelRows + i * kPanelRows;
            products.add(p, _mm256_mul_ps(loadQ8(q), scales[p][0]), _mm256_mul_ps(loadQ8(q + 8), scales[p][1]), x + i,
                         ldx);
        }
    }
}

// One group of q4. Nibble j is masked out where it stands, an integer nibble * 16^j, and its conversion to float is
// exact; multiplying by scale / 16^j and adding -8 scale gives the weight, exactly, without a shift per nibble. Only
// the top nibble, which holds the sign bit, is shifted down.
inline __m256i nibbleQ4(__m256i words, int j) {
    return j < 7 ? _mm256_and_si256(words, _mm256_set1_epi32(15 << (j < 7 ? 4 * j : 0))) : _mm256_srli_epi32(words, 28);
}

template <int R, int P>
inline void multiplyGroupQ4(const char *const *groups, const float *x, size_t ldx, Products<R, P> &products) {
    __m256 scales[P][2][8];
    __m256 offset[P][2];
    Q3_UNROLL
    for (int p = 0; p < P; ++p) {
        Q3_UNROLL
        for (int h = 0; h < 2; ++h) {
            const __m256 scale = groupScales(groups[p], h);
            offset[p][h] = _mm256_mul_ps(scale, _mm256_set1_ps(-8.0F));
            __m256 shifted = scale;
            Q3_UNROLL
            for (int j = 0; j < 7; ++j) {
                scales[p][h][j] = shifted;
                shifted = _mm256_mul_ps(shifted, _mm256_set1_ps(0.0625F));
            }
            scales[p][h][7] = scale;
        }
    }
    for (uint32_t octet = 0; octet < kGroup / 8; ++octet) {
        Q3_UNROLL
        for (int j = 0; j < 8; ++j) {
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                __m256 w[2];
                Q3_UNROLL
                for (int h = 0; h < 2; ++h) {
                    const char *at = groups[p] + 2 * kPanelRows + octet * kPanelRows * 4 + h * 32;
                    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(at));
                    w[h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(nibbleQ4(words, j)), scales[p][h][j], offset[p][h]);
                }
                products.add(p, w[0], w[1], x + octet * 8 + j, ldx);
            }
        }
    }
}

// Header of a bf12 group, by value: groups are aligned to 16 bytes.
inline Bf12Header bf12Header(const char *group) {
    return *reinterpret_cast<const Bf12Header *>(group);
}

// A pair of k of a bf12 group as floats: w[odd k][half of the rows]. raw moves on when the pair is raw.
inline void decodePairBf12(const char *group, uint32_t pair, __m256i base, uint32_t raw_pairs, const uint16_t *&raw,
                           __m256 (&w)[2][2]) {
    if (__builtin_expect((raw_pairs >> pair & 1U) != 0, 0)) {
        const auto *pair_bytes = reinterpret_cast<const char *>(raw);
        Q3_UNROLL
        for (int h = 0; h < 2; ++h) {
            w[0][h] = bf16Even(pair_bytes, h);
            w[1][h] = bf16Odd(pair_bytes, h);
        }
        raw += 2 * kPanelRows;
        return;
    }
    const char *sm = group + sizeof(Bf12Header) + pair * kBf12PairBytes;
    const char *e = sm + size_t{2} * kPanelRows;
    const __m256i nibbles = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(e)));
    Q3_UNROLL
    for (int odd = 0; odd < 2; ++odd) {
        // Multiplies in place of shifts, since shifts and shuffles share two ports that the widening keeps busy.
        const __m256i nibble = _mm256_and_si256(nibbles, _mm256_set1_epi16(odd == 0 ? 0x0f : 0xf0));
        const __m256i exponent =
            _mm256_sub_epi16(base, _mm256_mullo_epi16(nibble, _mm256_set1_epi16(odd == 0 ? 128 : 8)));
        const __m256i byte =
            _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(sm + size_t{kPanelRows} * odd)));
        // byte * 257 has it twice: the sign comes from the upper copy, the mantissa from the lower.
        const __m256i twice = _mm256_mullo_epi16(byte, _mm256_set1_epi16(257));
        const __m256i value =
            _mm256_or_si256(_mm256_and_si256(twice, _mm256_set1_epi16(static_cast<int16_t>(0x807f))), exponent);
        const __m256i zero = _mm256_setzero_si256();
        w[odd][0] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, value));
        w[odd][1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, value));
    }
}

inline __m256i baseBf12(const Bf12Header &header) {
    return _mm256_set1_epi16(static_cast<int16_t>(header.base));
}

void unpackBf12(const void *panel, uint32_t k0, uint32_t count, float *out) {
    for (uint32_t first = 0; first < count; first += kGroup) {  // k0 is a multiple of kGroup
        const char *group = static_cast<const char *>(panel) + (k0 + first) / kGroup * kBf12GroupBytes;
        const Bf12Header header = bf12Header(group);
        const uint16_t *raw = header.raw;
        for (uint32_t i = first; i < count && i < first + kGroup; i += 2) {
            __m256 w[2][2];
            decodePairBf12(group, (i - first) / 2, baseBf12(header), header.pairs, raw, w);
            for (uint32_t odd = 0; odd < 2 && i + odd < count; ++odd) {
                _mm256_storeu_ps(out + size_t{i + odd} * kPanelRows, w[odd][0]);
                _mm256_storeu_ps(out + size_t{i + odd} * kPanelRows + 8, w[odd][1]);
            }
        }
    }
}

template <int R, int P>
inline void multiplyGroupBf12(const char *const *groups, const float *x, size_t ldx, Products<R, P> &products) {
    __m256i base[P];
    uint32_t pairs[P];
    const uint16_t *raw[P];
    Q3_UNROLL
    for (int p = 0; p < P; ++p) {
        const Bf12Header header = bf12Header(groups[p]);
        base[p] = baseBf12(header);
        pairs[p] = header.pairs;
        raw[p] = header.raw;
    }
    for (uint32_t pair = 0; pair < kGroup / 2; ++pair) {
        Q3_UNROLL
        for (int p = 0; p < P; ++p) {
            // Decoding keeps the core too busy to run ahead into the next group by itself.
            _mm_prefetch(groups[p] + kBf12GroupBytes + pair * kBf12PairBytes + 256, _MM_HINT_T0);
            __m256 w[2][2];
            decodePairBf12(groups[p], pair, base[p], pairs[p], raw[p], w);
            products.add(p, w[0][0], w[0][1], x + size_t{pair} * 2, ldx);
            products.add(p, w[1][0], w[1][1], x + size_t{pair} * 2 + 1, ldx);
        }
    }
}

constexpr size_t groupBytes(WeightType type) {
    return type == kQ8 ? kQ8GroupBytes : (type == kQ4 ? kQ4GroupBytes : kBf12GroupBytes);
}

template <WeightType T, int R, int P>
void gemvTile(const char *panels, size_t panel_bytes, uint32_t k, const float *x, size_t ldx, float *y, size_t ldy) {
    Products<R, P> products;
    if constexpr (T == kF32 || T == kF16 || T == kBf16) {
        multiplyFloats<T, R, P>(panels, panel_bytes, k, x, ldx, products);
        products.store(y, ldy);
    } else {
        const uint32_t whole = k / kGroup;
        for (uint32_t g = 0; g < whole; ++g) {
            const char *groups[P];
            Q3_UNROLL
            for (int p = 0; p < P; ++p) {
                groups[p] = panels + p * panel_bytes + g * groupBytes(T);
            }
            if constexpr (T == kQ8) {
                multiplyGroupQ8<R, P>(groups, x + size_t{g} * kGroup, ldx, products);
            } else if constexpr (T == kQ4) {
                multiplyGroupQ4<R, P>(groups, x + size_t{g} * kGroup, ldx, products);
            } else {
                multiplyGroupBf12<R, P>(groups, x + size_t{g} * kGroup, ldx, products);
            }
        }
        products.store(y, ldy);
        if (whole * kGroup < k) {  // the padded last group: no x beyond k may be read
            const uint32_t count = k - whole * kGroup;
            float weights[kGroup * kPanelRows];
            for (int p = 0; p < P; ++p) {
                (T == kQ8 ? unpackQ8 : (T == kQ4 ? unpackQ4 : unpackBf12))(panels + p * panel_bytes, whole * kGroup,
                                                                           count, weights);
                tile<kF32>(x + size_t{whole} * kGroup, ldx, 1, weights, kPanelRows, count, y + p * kPanelRows, ldy, R,
                           true);
            }
        }
    }
}

template <WeightType T, int R>
void gemvRows(const char *panels, size_t panel_bytes, uint32_t npanels, uint32_t k, const float *x, size_t ldx,
              float *y, size_t ldy) {
    // Panels at once: for one row 8 chains of multiply-adds cover their latency, and 4 streams that of memory; q4 has
    // too few registers for that. From four rows on the rows are chains enough.
    constexpr int P = R == 1 ? (T == kQ4 ? 2 : 4) : (R <= 3 ? 2 : 1);
    uint32_t p = 0;
    for (; p + P <= npanels; p += P) {
        gemvTile<T, R, P>(panels + p * panel_bytes, panel_bytes, k, x, ldx, y + p * kPanelRows, ldy);
    }
    for (; p < npanels; ++p) {
        gemvTile<T, R, 1>(panels + p * panel_bytes, panel_bytes, k, x, ldx, y + p * kPanelRows, ldy);
    }
}

template <WeightType T>
void gemv(const void *data, size_t panel_bytes, uint32_t npanels, uint32_t k, const float *x, size_t ldx, uint32_t rows,
          float *y, size_t ldy) {
    const char *panels = static_cast<const char *>(data);
    switch (rows) {
    case 1:
        return gemvRows<T, 1>(panels, panel_bytes, npanels, k, x, ldx, y, ldy);
    case 2:
        return gemvRows<T, 2>(panels, panel_bytes, npanels, k, x, ldx, y, ldy);
    case 3:
        return gemvRows<T, 3>(panels, panel_bytes, npanels, k, x, ldx, y, ldy);
    case 4:
        return gemvRows<T, 4>(panels, panel_bytes, npanels, k, x, ldx, y, ldy);
    case 5:
        return gemvRows<T, 5>(panels, panel_bytes, npanels, k, x, ldx, y, ldy);
    default:
        return gemvRows<T, 6>(panels, panel_bytes, npanels, k, x, ldx, y, ldy);
    }
}

inline float sumLanes(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    s = _mm_add_ss(s, _mm_movehdup_ps(s));
    return _mm_cvtss_f32(s);
}

// exp for x <= 88.7, about 2 ulp (Cephes' polynomial); anything below -87.3 gives the smallest normal number.
inline __m256 expPs(__m256 x) {
    x = _mm256_max_ps(_mm256_min_ps(x, _mm256_set1_ps(88.3762626647949F)), _mm256_set1_ps(-87.3365478515625F));
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341F)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375F), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4F), r);
    __m256 p = _mm256_set1_ps(1.9875691500e-4F);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3F));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3F));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2F));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1F));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1F));
    p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1.0F)));
    const __m256i scale = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(p, _mm256_castsi256_ps(scale));
}

// Lanes [0, n) on: for the last, partial vector of a row.
inline __m256i laneMask(uint32_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// Calls full(offset) for every whole vector of a row, then rest(offset, mask) once for what is left.
template <typename Full, typename Rest> inline void forVectors(uint32_t n, Full full, Rest rest) {
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        full(i);
    }
    if (i < n) {
        rest(i, laneMask(n - i));
    }
}

void rmsnorm(float *out, const float *x, const float *weight, uint32_t n, float epsilon) {
    __m256 sum = _mm256_setzero_ps();
    forVectors(
        n,
        [&](uint32_t i) {
            const __m256 v = _mm256_loadu_ps(x + i);
            sum = _mm256_fmadd_ps(v, v, sum);
        },
        [&](uint32_t i, __m256i mask) {
            const __m256 v = _mm256_maskload_ps(x + i, mask);
            sum = _mm256_fmadd_ps(v, v, sum);
        });
    const float mean = sumLanes(sum) / static_cast<float>(n);
    const __m256 scale = _mm256_set1_ps(1.0F / __builtin_sqrtf(mean + epsilon));
    forVectors(
        n,
        [&](uint32_t i) {
            const __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + i), scale);
            _mm256_storeu_ps(out + i, _mm256_mul_ps(v, _mm256_loadu_ps(weight + i)));
        },
        [&](uint32_t i, __m256i mask) {
            const __m256 v = _mm256_mul_ps(_mm256_maskload_ps(x + i, mask), scale);
            _mm256_maskstore_ps(out + i, mask, _mm256_mul_ps(v, _mm256_maskload_ps(weight + i, mask)));
        });
}

void add(float *x, const float *delta, uint32_t n) {
    forVectors(
        n,
        [&](uint32_t i) { _mm256_storeu_ps(x + i, _mm256_add_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(delta + i))); },
        [&](uint32_t i, __m256i mask) {
            const __m256 sum = _mm256_add_ps(_mm256_maskload_ps(x + i, mask), _mm256_maskload_ps(delta + i, mask));
            _mm256_maskstore_ps(x + i, mask, sum);
        });
}

void rope(float *x, const float *cos, const float *sin, uint32_t half) {
    for (uint32_t i = 0; i < half; i += 8) {
        const __m256i mask = laneMask(half - i);
        const __m256 low = _mm256_maskload_ps(x + i, mask);
        const __m256 high = _mm256_maskload_ps(x + half + i, mask);
        const __m256 c = _mm256_maskload_ps(cos + i, mask);
        const __m256 s = _mm256_maskload_ps(sin + i, mask);
        _mm256_maskstore_ps(x + i, mask, _mm256_fmsub_ps(low, c, _mm256_mul_ps(high, s)));
        _mm256_maskstore_ps(x + half + i, mask, _mm256_fmadd_ps(high, c, _mm256_mul_ps(low, s)));
    }
}

float max(const float *s, uint32_t n) {
    __m256 best = _mm256_set1_ps(s[0]);
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        best = _mm256_max_ps(best, _mm256_loadu_ps(s + i));
    }
    float lanes[8];
    _mm256_storeu_ps(lanes, best);
    float result = lanes[0];
    for (int l = 1; l < 8; ++l) {
        result = lanes[l] > result ? lanes[l] : result;
    }
    for (; i < n; ++i) {
        result = s[i] > result ? s[i] : result;
    }
    return result;
}

float expSum(float *s, uint32_t n, float shift) {
    const __m256 subtract = _mm256_set1_ps(shift);
    __m256 sum = _mm256_setzero_ps();
    forVectors(
        n,
        [&](uint32_t i) {
            const __m256 e = expPs(_mm256_sub_ps(_mm256_loadu_ps(s + i), subtract));
            _mm256_storeu_ps(s + i, e);
            sum = _mm256_add_ps(sum, e);
        },
        [&](uint32_t i, __m256i mask) {
            const __m256 e = expPs(_mm256_sub_ps(_mm256_maskload_ps(s + i, mask), subtract));
            _mm256_maskstore_ps(s + i, mask, e);
            sum = _mm256_add_ps(sum, _mm256_and_ps(e, _mm256_castsi256_ps(mask)));
        });
    return sumLanes(sum);
}

inline __m256 silu(__m256 g) {
    const __m256 e = expPs(_mm256_sub_ps(_mm256_setzero_ps(), g));
    return _mm256_div_ps(g, _mm256_add_ps(_mm256_set1_ps(1.0F), e));
}

void siluMul(float *out, const float *gate, const float *up, uint32_t n) {
    forVectors(
        n,
        [&](uint32_t i) {
            _mm256_storeu_ps(out + i, _mm256_mul_ps(silu(_mm256_loadu_ps(gate + i)), _mm256_loadu_ps(up + i)));
        },
        [&](uint32_t i, __m256i mask) {
            const __m256 value = silu(_mm256_maskload_ps(gate + i, mask));
            _mm256_maskstore_ps(out + i, mask, _mm256_mul_ps(value, _mm256_maskload_ps(up + i, mask)));
        });
}

void storeF32(void *out, const float *in, uint32_t n) {
    for (uint32_t i = 0; i < n; ++i) {
        static_cast<float *>(out)[i] = in[i];
    }
}

void storeHalves(uint16_t *out, __m128i halves, uint32_t n) {
    uint16_t lanes[8];
    _mm_storeu_si128(reinterpret_cast<__m128i *>(lanes), halves);
    for (uint32_t i = 0; i < n && i < 8; ++i) {
        out[i] = lanes[i];
    }
}

void storeF16(void *out, const float *in, uint32_t n) {
    const __m256 top = _mm256_set1_ps(65504.0F);
    const __m256 bottom = _mm256_set1_ps(-65504.0F);
    for (uint32_t i = 0; i < n; i += 8) {
        const __m256 v = _mm256_maskload_ps(in + i, laneMask(n - i));
        // The operand order keeps a NaN a NaN.
        const __m256 clamped = _mm256_max_ps(bottom, _mm256_min_ps(top, v));
        storeHalves(static_cast<uint16_t *>(out) + i, _mm256_cvtps_ph(clamped, _MM_FROUND_TO_NEAREST_INT), n - i);
    }
}

void storeBf16(void *out, const float *in, uint32_t n) {
    for (uint32_t i = 0; i < n; i += 8) {
        const __m256i bits = _mm256_castps_si256(_mm256_maskload_ps(in + i, laneMask(n - i)));
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
        const __m256i is_nan =
            _mm256_cmpgt_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)), _mm256_set1_epi32(0x7f800000));
        const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
        const __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
        storeHalves(static_cast<uint16_t *>(out) + i, halves, n - i);
    }
}

}  // namespace

const Kernels kAvx2Kernels = {
    "avx2",
    {gemv<kF32>, gemv<kF16>, gemv<kBf16>, gemv<kQ8>, gemv<kQ4>, gemv<kBf12>},
    {unpack<kF32>, unpack<kF16>, unpack<kBf16>, unpackQ8, unpackQ4, unpackBf12},
    {tile<kF32>, tile<kF16>, tile<kBf16>},
    rmsnorm,
    add,
    rope,
    max,
    expSum,
    siluMul,
    {storeF32, storeF16, storeBf16},
};

}  // namespace q3::cpu
