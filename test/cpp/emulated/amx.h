// The intrinsics of AMX int8 and bf16 that the kernels use, in portable C, as the instruction set reference has them.
// Where the CPU would fault, the program stops; so it does when tiles are configured again before they are released,
// which the kernels promise their callers.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct EmulatedTile {
    uint32_t rows, row_bytes;
    int8_t data[16][64];
};

struct EmulatedTiles {
    bool configured;
    EmulatedTile tile[8];
};

inline EmulatedTiles &emulatedTiles() {
    static thread_local EmulatedTiles tiles;
    return tiles;
}

inline void amxRequire(bool condition, const char *what) {
    if (!condition) {
        fprintf(stderr, "emulated AMX: %s\n", what);
        abort();
    }
}

inline EmulatedTile &emulatedTile(int number) {
    amxRequire(emulatedTiles().configured, "a tile is used before LDTILECFG");
    EmulatedTile &tile = emulatedTiles().tile[number];
    amxRequire(tile.rows > 0 && tile.row_bytes > 0, "a tile without a size is used");
    return tile;
}

inline void _tile_loadconfig(const void *config) {
    const auto *bytes = static_cast<const uint8_t *>(config);
    amxRequire(!emulatedTiles().configured, "tiles were not released by the last user");
    amxRequire(bytes[0] == 1, "a palette other than 1");
    for (int i = 1; i < 64; ++i) {  // start_row too, which only an interrupted instruction sets
        const bool used = (i >= 16 && i < 32) || (i >= 48 && i < 56);
        amxRequire(used || bytes[i] == 0, "reserved bytes of the configuration are set");
    }
    for (int i = 0; i < 8; ++i) {
        uint16_t row_bytes;
        memcpy(&row_bytes, bytes + 16 + 2 * i, sizeof row_bytes);
        const uint8_t rows = bytes[48 + i];
        amxRequire(rows <= 16 && row_bytes <= 64 && (rows == 0) == (row_bytes == 0), "a tile of an impossible size");
        emulatedTiles().tile[i] = {rows, row_bytes, {}};
    }
    emulatedTiles().configured = true;
}

inline void _tile_release() {
    emulatedTiles() = {};
}

inline void _tile_zero(int tile) {
    memset(emulatedTile(tile).data, 0, sizeof(EmulatedTile::data));
}

inline void _tile_loadd(int tile, const void *base, size_t stride) {
    EmulatedTile &to = emulatedTile(tile);
    memset(to.data, 0, sizeof to.data);
    for (uint32_t row = 0; row < to.rows; ++row) {
        memcpy(to.data[row], static_cast<const char *>(base) + row * stride, to.row_bytes);
    }
}

inline void _tile_stored(int tile, void *base, size_t stride) {
    const EmulatedTile &from = emulatedTile(tile);
    for (uint32_t row = 0; row < from.rows; ++row) {
        memcpy(static_cast<char *>(base) + row * stride, from.data[row], from.row_bytes);
    }
}

// sum[m][n] += the products of four bytes a[m][k] * b[k][n], over k: those of a and b signed or not
template <typename Left, typename Right> inline void amxDotBytes(int sum, int a, int b) {
    EmulatedTile &to = emulatedTile(sum);
    const EmulatedTile &left = emulatedTile(a);
    const EmulatedTile &right = emulatedTile(b);
    amxRequire(sum != a && sum != b && a != b, "a product with one tile twice");
    amxRequire(to.rows == left.rows && to.row_bytes == right.row_bytes && left.row_bytes == right.rows * 4,
               "a product of tiles whose sizes do not fit");
    for (uint32_t m = 0; m < to.rows; ++m) {
        for (uint32_t n = 0; n < to.row_bytes / 4; ++n) {
            int32_t total;
            memcpy(&total, to.data[m] + size_t{4} * n, sizeof total);
            for (uint32_t k = 0; k < right.rows; ++k) {
                for (uint32_t i = 0; i < 4; ++i) {
                    total += static_cast<Left>(left.data[m][4 * k + i]) * static_cast<Right>(right.data[k][4 * n + i]);
                }
            }
            memcpy(to.data[m] + size_t{4} * n, &total, sizeof total);
        }
    }
}

inline void _tile_dpbsud(int sum, int a, int b) {
    amxDotBytes<int8_t, uint8_t>(sum, a, b);
}

// Subnormal numbers as zeros of their sign, whatever MXCSR says.
inline float amxFlushed(float v) {
    return fabsf(v) < 0x1p-126F ? copysignf(0.0F, v) : v;
}

// Element i of a tile's row of bf16.
inline float amxBf16(const int8_t *row, uint32_t i) {
    uint16_t half;
    memcpy(&half, row + size_t{2} * i, sizeof half);
    const uint32_t bits = uint32_t{half} << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return amxFlushed(value);
}

// sum[m][n] += (products of even k, each sum from zero) + (products of odd k)
inline void _tile_dpbf16ps(int sum, int a, int b) {
    EmulatedTile &to = emulatedTile(sum);
    const EmulatedTile &left = emulatedTile(a);
    const EmulatedTile &right = emulatedTile(b);
    amxRequire(sum != a && sum != b && a != b, "a product with one tile twice");
    amxRequire(to.rows == left.rows && to.row_bytes == right.row_bytes && left.row_bytes == right.rows * 4,
               "a product of tiles whose sizes do not fit");
    for (uint32_t m = 0; m < to.rows; ++m) {
        for (uint32_t n = 0; n < to.row_bytes / 4; ++n) {
            float parts[2] = {};
            for (uint32_t k = 0; k < right.rows; ++k) {
                for (uint32_t odd = 0; odd < 2; ++odd) {
                    parts[odd] = amxFlushed(
                        fmaf(amxBf16(left.data[m], 2 * k + odd), amxBf16(right.data[k], 2 * n + odd), parts[odd]));
                }
            }
            float total;
            memcpy(&total, to.data[m] + size_t{4} * n, sizeof total);
            total = amxFlushed(amxFlushed(total) + amxFlushed(parts[0] + parts[1]));
            memcpy(to.data[m] + size_t{4} * n, &total, sizeof total);
        }
    }
}
