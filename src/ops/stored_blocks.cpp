#include "ops/stored_blocks.h"

#include <cstring>

#include "ops/half.h"

namespace q3 {
namespace {

constexpr uint32_t kSmall = 32;  // elements of the blocks with scales of their own
constexpr uint32_t kSuper = 256;

constexpr int16_t kNonLinear[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

uint16_t halfAt(const uint8_t *p) {
    return readAs<uint16_t>(reinterpret_cast<const char *>(p));
}

// Pieces of one scale d * factor and minimum dmin * dmin_factor.
CodePiece piece(uint16_t d, int d_factor, uint16_t dmin = 0, int dmin_factor = 0) {
    return {f16ToFloat(d) * static_cast<float>(d_factor),
            f16ToFloat(dmin) * static_cast<float>(dmin_factor),
            0,
            d,
            dmin,
            static_cast<int16_t>(d_factor),
            static_cast<int16_t>(dmin_factor)};
}

void bothPieces(CodePiece *pieces, const CodePiece &value) {
    pieces[0] = pieces[1] = value;
}

// The nibbles of 16 bytes: element e in the low half of byte e, element 16 + e in the high one.
void nibbles(const uint8_t *bytes, int16_t *codes) {
    for (uint32_t e = 0; e < kSmall / 2; ++e) {
        codes[e] = static_cast<int16_t>(bytes[e] & 15);
        codes[e + kSmall / 2] = static_cast<int16_t>(bytes[e] >> 4);
    }
}

// Bit e of a word becomes bit 4 of code e.
void addFifthBits(const uint8_t *bits, int16_t *codes) {
    const auto word = readAs<uint32_t>(reinterpret_cast<const char *>(bits));
    for (uint32_t e = 0; e < kSmall; ++e) {
        codes[e] = static_cast<int16_t>(codes[e] | static_cast<int16_t>((word >> e & 1U) << 4));
    }
}

void shift(int16_t *codes, uint32_t count, int16_t zero) {
    for (uint32_t e = 0; e < count; ++e) {
        codes[e] = static_cast<int16_t>(codes[e] - zero);
    }
}

// Two bits of each element of Q2_K and Q3_K.
void pairsOfBits(const uint8_t *bytes, int16_t *codes) {
    for (uint32_t e = 0; e < kSuper; ++e) {
        codes[e] = static_cast<int16_t>(bytes[e / 128 * 32 + e % 32] >> (e % 128 / 32 * 2) & 3);
    }
}

// Six-bit scale and minimum j of Q4_K's and Q5_K's twelve bytes.
CodePiece scaleK4(const uint8_t *block, uint32_t j) {
    const uint8_t *s = block + 4;
    const int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
    const int minimum = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4;
    return piece(halfAt(block), scale, halfAt(block + 2), minimum);
}

// Nibbles of Q4_K and Q5_K: 64 elements share 32 bytes, the first 32 low.
void nibblesK4(const uint8_t *bytes, int16_t *codes) {
    for (uint32_t e = 0; e < kSuper; ++e) {
        codes[e] = static_cast<int16_t>(bytes[e / 64 * 32 + e % 32] >> (e / 32 % 2 * 4) & 15);
    }
}

void unpackQ2K(const uint8_t *block, int16_t *codes, CodePiece *pieces) {
    pairsOfBits(block + 16, codes);
    for (uint32_t j = 0; j < kSuper / kPiece; ++j) {
        pieces[j] = piece(halfAt(block + 80), block[j] & 15, halfAt(block + 82), block[j] >> 4);
    }
}

void unpackQ3K(const uint8_t *block, int16_t *codes, CodePiece *pieces) {
    pairsOfBits(block + 32, codes);
    for (uint32_t e = 0; e < kSuper; ++e) {
        codes[e] = static_cast<int16_t>(codes[e] - ((block[e % 32] >> (e / 32) & 1) != 0 ? 0 : 4));
    }
    const uint8_t *s = block + 96;
    for (uint32_t j = 0; j < kSuper / kPiece; ++j) {
        const int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
        const int high = s[8 + j % 4] >> (2 * (j / 4)) & 3;
        pieces[j] = piece(halfAt(block + 108), (low | high << 4) - 32);
    }
}

void unpackQ4K(const uint8_t *block, int16_t *codes, CodePiece *pieces) {
    nibblesK4(block + 16, codes);
    for (uint32_t j = 0; j < kSuper / kSmall; ++j) {
        bothPieces(pieces + 2 * size_t{j}, scaleK4(block, j));
    }
}

void unpackQ5K(const uint8_t *block, int16_t *codes, CodePiece *pieces) {
    nibblesK4(block + 48, codes);
    for (uint32_t e = 0; e < kSuper; ++e) {
        codes[e] = static_cast<int16_t>(codes[e] | (block[16 + e % 32] >> (e / 32) & 1) << 4);
    }
    for (uint32_t j = 0; j < kSuper / kSmall; ++j) {
        bothPieces(pieces + 2 * size_t{j}, scaleK4(block, j));
    }
}

void unpackQ6K(const uint8_t *block, int16_t *codes, CodePiece *pieces) {
    for (uint32_t e = 0; e < kSuper; ++e) {
        const uint32_t half = e / 128;
        const uint32_t r = e % 128;
        const int low = r < 64 ? block[64 * half + r] & 15 : block[64 * half + r - 64] >> 4;
        const int high = block[128 + 32 * half + r % 32] >> (2 * (r / 32)) & 3;
        codes[e] = static_cast<int16_t>((low | high << 4) - 32);
    }
    for (uint32_t j = 0; j < kSuper / kPiece; ++j) {
        pieces[j] = piece(halfAt(block + 208), static_cast<int8_t>(block[192 + j]));
    }
}

void unpackIq4Xs(const uint8_t *block, int16_t *codes, CodePiece *pieces) {
    const uint32_t high = halfAt(block + 2);
    for (uint32_t j = 0; j < kSuper / kSmall; ++j) {
        int16_t *group = codes + j * kSmall;
        nibbles(block + 8 + j * 16, group);
        for (uint32_t e = 0; e < kSmall; ++e) {
            group[e] = kNonLinear[group[e]];
        }
        const int low = block[4 + j / 2] >> (4 * (j % 2)) & 15;
        bothPieces(pieces + 2 * size_t{j},
                   piece(halfAt(block), (low | static_cast<int>(high >> (2 * j) & 3) << 4) - 32));
    }
}

// Blocks of 32 with one f16 scale, and an f16 minimum, which is added, at `minimum` or -1.
void scaleOf(const uint8_t *block, CodePiece *pieces, bool minimum) {
    CodePiece value = piece(halfAt(block), 1);
    if (minimum) {
        value.dmin = static_cast<uint16_t>(halfAt(block + 2) ^ 0x8000U);
        value.minimum = f16ToFloat(value.dmin);
        value.dmin_factor = 1;
    }
    bothPieces(pieces, value);
}

}  // namespace

BlockShape blockShape(DType dtype) {
    switch (dtype) {
    case DType::kGgufQ4_0:
    case DType::kGgufIq4Nl:
        return {kSmall, 18};
    case DType::kGgufQ4_1:
        return {kSmall, 20};
    case DType::kGgufQ5_0:
        return {kSmall, 22};
    case DType::kGgufQ5_1:
        return {kSmall, 24};
    case DType::kGgufQ8_0:
        return {kSmall, 34};
    case DType::kGgufQ2K:
        return {kSuper, 84};
    case DType::kGgufQ3K:
        return {kSuper, 110};
    case DType::kGgufQ4K:
        return {kSuper, 144};
    case DType::kGgufQ5K:
        return {kSuper, 176};
    case DType::kGgufQ6K:
        return {kSuper, 210};
    case DType::kGgufIq4Xs:
        return {kSuper, 136};
    default:
        return {0, 0};
    }
}

void decodeBlock(DType dtype, const char *block, float *out) {
    int16_t codes[kSuper];
    CodePiece pieces[kSuper / kPiece];
    unpackBlock(dtype, reinterpret_cast<const uint8_t *>(block), codes, pieces);
    for (uint32_t e = 0; e < blockShape(dtype).elements; ++e) {
        const CodePiece &piece = pieces[e / kPiece];
        out[e] = piece.scale * static_cast<float>(codes[e]) - piece.minimum;
    }
}

void unpackBlock(DType dtype, const uint8_t *block, int16_t *codes, CodePiece *pieces) {
    switch (dtype) {
    case DType::kGgufQ4_0:
        nibbles(block + 2, codes);
        shift(codes, kSmall, 8);
        scaleOf(block, pieces, false);
        break;
    case DType::kGgufQ4_1:
        nibbles(block + 4, codes);
        scaleOf(block, pieces, true);
        break;
    case DType::kGgufQ5_0:
        nibbles(block + 6, codes);
        addFifthBits(block + 2, codes);
        shift(codes, kSmall, 16);
        scaleOf(block, pieces, false);
        break;
    case DType::kGgufQ5_1:
        nibbles(block + 8, codes);
        addFifthBits(block + 4, codes);
        scaleOf(block, pieces, true);
        break;
    case DType::kGgufQ8_0:
        for (uint32_t e = 0; e < kSmall; ++e) {
            codes[e] = static_cast<int16_t>((block[2 + e] ^ 0x80) - 0x80);  // a signed byte
        }
        scaleOf(block, pieces, false);
        break;
    case DType::kGgufIq4Nl:
        nibbles(block + 2, codes);
        for (uint32_t e = 0; e < kSmall; ++e) {
            codes[e] = kNonLinear[codes[e]];
        }
        scaleOf(block, pieces, false);
        break;
    case DType::kGgufQ2K:
        unpackQ2K(block, codes, pieces);
        break;
    case DType::kGgufQ3K:
        unpackQ3K(block, codes, pieces);
        break;
    case DType::kGgufQ4K:
        unpackQ4K(block, codes, pieces);
        break;
    case DType::kGgufQ5K:
        unpackQ5K(block, codes, pieces);
        break;
    case DType::kGgufQ6K:
        unpackQ6K(block, codes, pieces);
        break;
    case DType::kGgufIq4Xs:
        unpackIq4Xs(block, codes, pieces);
        break;
    default:
        break;
    }
}

}  // namespace q3
