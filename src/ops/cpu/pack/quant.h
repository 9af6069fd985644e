// Packing of 32 k of 16 rows into the q8, q4 and bf12 panel formats (formats.h).
#pragma once

#include <cstddef>
#include <cstdint>

namespace q3::cpu {

// Packs k [32 g, 32 g + 32) of a panel. tile [32][16] floats, zeros beyond k.
void quantizeGroupQ8(const float *tile, char *panel, uint32_t g);
void quantizeGroupQ4(const float *tile, char *panel, uint32_t g);

// tile [16][16][2] bf16 in pairs of k, of which the first count k exist.
// Returns how many pairs of k bf12 cannot hold and keeps raw.
uint32_t countRawBf12(const uint32_t *tile, uint32_t count);
// Packs the tile into `group`, which must be zeroed, and its raw pairs into raw[count][16][2], which is aligned to 64
// bytes. Returns the number of raw pairs.
uint32_t packGroupBf12(const uint32_t *tile, uint32_t count, char *group, uint16_t *raw);

}  // namespace q3::cpu
