// Scalar packing into the q8, q4 and bf12 panel formats of kernels.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace q3::cpu {

// Writes row `row` (0..15) of a panel from k floats; groups past k keep zeros.
void quantizeRowQ8(const float *weights, uint32_t k, uint32_t row, char *panel);
void quantizeRowQ4(const float *weights, uint32_t k, uint32_t row, char *panel);

// Pairs of k of 16 rows of bf16 [16][k] (row-major) that bf12 cannot hold and keeps raw.
size_t countRawBf12(const uint16_t *rows, uint32_t k);
// Writes a whole bf12 panel; raw receives countRawBf12 pairs of 2 * kPanelRows elements.
void packPanelBf12(const uint16_t *rows, uint32_t k, char *panel, uint16_t *raw);

}  // namespace q3::cpu
