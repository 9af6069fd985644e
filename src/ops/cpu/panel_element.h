// Reads single weights of panels (formats.h), where speed does not matter.
#pragma once

#include <cstring>

#include "ops/cpu/formats.h"
#include "ops/half.h"

namespace q3::cpu {

template <WeightFormat T> float loadFloat(const void *data, size_t index) {
    if constexpr (T == kF32) {
        return static_cast<const float *>(data)[index];
    } else {
        static_assert(T == kF16 || T == kBf16, "no element of this format");
        const uint16_t half = static_cast<const uint16_t *>(data)[index];
        return T == kF16 ? f16ToFloat(half) : bf16ToFloat(half);
    }
}

// Code (row, k) of a panel of q8 or q4: a byte, or a nibble.
template <WeightFormat T> int codeAt(const void *panel, uint32_t row, uint32_t k) {
    const uint32_t i = k % kGroup;
    const auto *codes = static_cast<const uint8_t *>(panel) + codesOffset(T, k / kGroup);
    if constexpr (T == kQ8) {
        return codes[(i / 4 * kPanelRows + row) * 4 + i % 4];
    } else {
        static_assert(T == kQ4, "no code of this format");
        return codes[(i / 8 * kPanelRows + row) * 4 + i % 4] >> (i / 4 % 2 * 4) & 15;
    }
}

template <WeightFormat T> float scaleAt(const void *panel, uint32_t row, uint32_t group) {
    const char *scales = static_cast<const char *>(panel) + scalesOffset(T, group);
    return bf16ToFloat(reinterpret_cast<const uint16_t *>(scales)[row]);
}

inline uint16_t bf12At(const void *panel, uint32_t row, uint32_t k) {
    const char *group = static_cast<const char *>(panel) + k / kGroup * kBf12GroupBytes;
    const uint32_t i = k % kGroup;
    Bf12Header header;
    std::memcpy(&header, group, sizeof header);
    if ((header.pairs >> (i / 2) & 1) != 0) {
        const uint16_t *raw = header.raw;
        for (uint32_t pair = 0; pair < i / 2; ++pair) {  // raw pairs before this one
            raw += size_t{header.pairs >> pair & 1U} * 2 * kPanelRows;
        }
        return raw[row * 2 + i % 2];
    }
    const auto *codes = reinterpret_cast<const uint8_t *>(group + sizeof header + i / 4 * kBf12QuadBytes);
    const uint32_t pair = i / 2 % 2;
    const uint32_t place = kBf12Order[row] * 2 + i % 2;
    const uint32_t nibble = codes[place] >> (pair * 4) & 15U;
    const uint32_t upper = (header.base - kBf12Below[nibble]) & 0xffU;
    return static_cast<uint16_t>(upper << 8 | codes[(1 + pair) * kBf12PairBytes + place]);
}

// A weight of a format of codes with scales as checkpoints have them.
struct AffineElement {
    int code;
    float zero, scale, minimum;
    float value() const { return scale * (static_cast<float>(code) - zero) - minimum; }
};

inline uint8_t byteAt(const char *data, size_t index) {
    return static_cast<uint8_t>(data[index]);
}

inline int codeOfRun(const AffineInfo &info, const char *run, uint32_t row, uint32_t k) {
    const uint32_t step = k / 4;
    if (info.bits == 8) {
        return byteAt(run, (size_t{step} * kPanelRows + row) * 4 + k % 4);
    }
    if (info.bits == 6) {
        const auto part = [&](uint32_t t) { return byteAt(run, ((step / 4 * 3 + t) * kPanelRows + row) * 4 + k % 4); };
        return step % 4 < 3 ? part(step % 4) & 63 : part(0) >> 6 | part(1) >> 6 << 2 | part(2) >> 6 << 4;
    }
    const int low = byteAt(run, (size_t{step} / 2 * kPanelRows + row) * 4 + k % 4) >> (step % 2 * 4) & 15;
    const char *plane = run + kGroup / 2 * kPanelRows;
    return info.bits == 4 ? low : low | (byteAt(plane, size_t{row} * 4 + k % 4) >> step & 1) << 4;
}

template <WeightFormat T> AffineElement affineAt(const void *panel, uint32_t row, uint32_t k) {
    constexpr AffineInfo info = affineOf(T);
    const char *group = static_cast<const char *>(panel) + k / infoOf(T).group * infoOf(T).group_bytes;
    const uint32_t in_group = k % infoOf(T).group;
    const char *run = group + info.headBytes() + in_group / kGroup * info.runBytes();
    const size_t piece = in_group / (kGroup / info.pieces);
    const auto half = [&](size_t index) { return f16ToFloat(reinterpret_cast<const uint16_t *>(group)[index]); };
    AffineElement e{codeOfRun(info, run, row, k % kGroup), static_cast<float>(info.zero), 0.0F, 0.0F};
    switch (info.scales) {
    case AffineInfo::kHalf:
        e.scale = half(row);
        break;
    case AffineInfo::kHalfZero:
        e.scale = half(row);
        e.zero = static_cast<float>(byteAt(group, kScaleBytes + row));
        break;
    case AffineInfo::kWide:
        e.scale = reinterpret_cast<const float *>(group)[row];
        break;
    case AffineInfo::kWideZero:
        e.scale = reinterpret_cast<const float *>(group)[row];
        e.zero = static_cast<float>(byteAt(group, kPanelRows * sizeof(float) + row));
        break;
    case AffineInfo::kSuper: {
        const char *factors = group + kScaleBytes * (info.minimum ? 2 : 1);
        const auto factor = [&](size_t index) { return static_cast<float>(static_cast<int8_t>(factors[index])); };
        e.scale = half(row) * factor(piece * kPanelRows + row);
        if (info.minimum) {
            const size_t least = info.runs() * info.pieces + piece;
            e.minimum = half(kPanelRows + row) * factor(least * kPanelRows + row);
        }
        break;
    }
    case AffineInfo::kFull: {
        const auto *floats = reinterpret_cast<const float *>(group);
        e.scale = floats[piece * kPanelRows + row];
        e.minimum = floats[(info.pieces + piece) * kPanelRows + row];
        e.zero = half((4 * info.pieces + piece) * kPanelRows + row);
        break;
    }
    case AffineInfo::kNone:
        break;
    }
    return e;
}

// The value of an e4m3 byte: its bits have a place in an f16 of 2^-8 the size. 0x7f and 0xff are NaN there, 480 here.
inline float e4m3Value(uint8_t code) {
    return f16ToFloat(static_cast<uint16_t>((code & 0x80U) << 8 | (code & 0x7fU) << 7)) * 256.0F;
}

// The byte of (row, k) of an f8 panel, k in the panel's first group.
constexpr size_t f8Byte(uint32_t row, uint32_t k) {
    return kF8HeadBytes + size_t{k} / 4 * 4 * kPanelRows + row / 4 * 16 + k % 4 / 2 * 8 + row % 4 * 2 + k % 2;
}

// Weight (row, k).
template <WeightFormat T> float weightAt(const void *panel, uint32_t row, uint32_t k) {
    if constexpr (T == kBf12) {
        return bf16ToFloat(bf12At(panel, row, k));
    } else if constexpr (T == kF8) {
        const char *group = static_cast<const char *>(panel) + panelOffset(kF8, k / kF8Group * kF8Group);
        const float scale = reinterpret_cast<const float *>(group)[row];
        return e4m3Value(byteAt(group, f8Byte(row, k % kF8Group))) * scale;
    } else if constexpr (isAffine(T)) {
        return affineAt<T>(panel, row, k).value();
    } else if constexpr (takesCodes(T)) {
        const int code = codeAt<T>(panel, row, k) - infoOf(T).zero_code;
        return static_cast<float>(code) * scaleAt<T>(panel, row, k / kGroup);
    } else if constexpr (T == kBf16) {
        return loadFloat<T>(panel, (size_t{k} / 2 * kPanelRows + row) * 2 + k % 2);
    } else {
        return loadFloat<T>(panel, size_t{k} * kPanelRows + row);
    }
}

}  // namespace q3::cpu
