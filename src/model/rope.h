// Rotary frequencies, unscaled or scaled as Hugging Face's rope_scaling / rope_parameters say.
#pragma once

#include <cstdint>
#include <vector>

#include "infinicore_infer/models/qwen3.h"

namespace q3 {

class Rope {
public:
    // options must have passed validation.
    Rope(uint32_t dh, float theta, const Qwen3ModelOptions &options);

    // cos[dh / 2] and sin[dh / 2] of one position, times the attention factor.
    void fill(uint32_t position, float *cos, float *sin) const;

private:
    std::vector<double> inv_freq_;  // [dh / 2]
    double attention_factor_ = 1.0;
};

}  // namespace q3
