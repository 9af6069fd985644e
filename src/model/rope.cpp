#include "model/rope.h"

#include <algorithm>
#include <cmath>

namespace q3 {
namespace {

constexpr double kTwoPi = 6.283185307179586;

// YaRN: high frequencies stay, low ones are divided by the factor, and those in between are mixed along a ramp over the
// dimensions.
void scaleYarn(std::vector<double> &inv_freq, double theta, const Qwen3ModelOptions &o) {
    const double dim = 2.0 * static_cast<double>(inv_freq.size());
    const double beta_fast = o.rope_beta_fast > 0.0F ? static_cast<double>(o.rope_beta_fast) : 32.0;
    const double beta_slow = o.rope_beta_slow > 0.0F ? static_cast<double>(o.rope_beta_slow) : 1.0;
    const auto dimension = [&](double rotations) {
        return dim * std::log(o.rope_original_ctx / (rotations * kTwoPi)) / (2.0 * std::log(theta));
    };
    double low = dimension(beta_fast);
    double high = dimension(beta_slow);
    if (o.rope_no_truncate == 0) {
        low = std::floor(low);
        high = std::ceil(high);
    }
    low = std::max(low, 0.0);
    high = std::min(high, dim - 1.0);
    if (low == high) {
        high += 0.001;
    }
    for (size_t i = 0; i < inv_freq.size(); ++i) {
        const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
        inv_freq[i] = inv_freq[i] / static_cast<double>(o.rope_factor) * ramp + inv_freq[i] * (1.0 - ramp);
    }
}

// Llama 3: short wavelengths stay, long ones are divided by the factor, with a smooth step between the two bounds.
void scaleLlama3(std::vector<double> &inv_freq, const Qwen3ModelOptions &o) {
    const double low_factor = static_cast<double>(o.rope_low_freq_factor);
    const double high_factor = static_cast<double>(o.rope_high_freq_factor);
    for (double &f : inv_freq) {
        const double turns = o.rope_original_ctx * f / kTwoPi;  // that the pair makes over the original context
        const double smooth = std::clamp((turns - low_factor) / (high_factor - low_factor), 0.0, 1.0);
        f = (1.0 - smooth) * f / static_cast<double>(o.rope_factor) + smooth * f;
    }
}

}  // namespace

Rope::Rope(uint32_t dh, float theta, const Qwen3ModelOptions &options) : inv_freq_(dh / 2) {
    const auto base = static_cast<double>(theta);
    for (size_t i = 0; i < inv_freq_.size(); ++i) {
        inv_freq_[i] = std::pow(base, -2.0 * static_cast<double>(i) / dh);
    }
    const auto factor = static_cast<double>(options.rope_factor);
    switch (options.rope_type) {
    case QWEN3_ROPE_LINEAR:
        for (double &f : inv_freq_) {
            f /= factor;
        }
        break;
    case QWEN3_ROPE_YARN:
        scaleYarn(inv_freq_, base, options);
        if (options.rope_attention_factor > 0.0F) {
            attention_factor_ = static_cast<double>(options.rope_attention_factor);
        } else if (factor > 1.0) {
            attention_factor_ = 0.1 * std::log(factor) + 1.0;
        }
        break;
    case QWEN3_ROPE_LLAMA3:
        scaleLlama3(inv_freq_, options);
        break;
    default:
        break;
    }
}

void Rope::fill(uint32_t position, float *cos, float *sin) const {
    for (size_t i = 0; i < inv_freq_.size(); ++i) {
        const double angle = position * inv_freq_[i];
        cos[i] = static_cast<float>(std::cos(angle) * attention_factor_);
        sin[i] = static_cast<float>(std::sin(angle) * attention_factor_);
    }
}

}  // namespace q3
