// Scalar quantisation of one row into the q8 and q4 panel formats of kernels.h.
#pragma once

#include <cstdint>

namespace q3::cpu {

// Writes row `row` (0..15) of a panel from k floats; groups past k keep zeros.
void quantizeRowQ8(const float *weights, uint32_t k, uint32_t row, char *panel);
void quantizeRowQ4(const float *weights, uint32_t k, uint32_t row, char *panel);

}  // namespace q3::cpu
