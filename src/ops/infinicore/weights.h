// Weights on the device, packed from the caller's memory.
#pragma once

#include "ops/infinicore/device/buffers.h"
#include "ops/weights.h"

namespace q3::infinicore {

// [rows, cols] row-major on the device, all parts of the source stacked.
class DeviceLinear final : public PackedLinear {
public:
    size_t bytes() const override { return weight.bytes() + bias.bytes(); }
    uint32_t rows = 0;
    uint32_t cols = 0;
    DeviceBuffer weight;
    DeviceBuffer bias;  // [rows], or empty
};

class DeviceNorm final : public PackedNorm {
public:
    size_t bytes() const override { return data.bytes(); }
    uint32_t size = 0;
    DType dtype = DType::kF32;
    DeviceBuffer data;
};

// The token embedding stays in host memory: InfiniCore 0.1.0 has no embedding operator, so rows are gathered there
// and go to the device in one copy per step.
class HostEmbedding final : public PackedLinear {
public:
    size_t bytes() const override { return owned_bytes; }
    void readRow(void *dst, uint32_t row) const;  // [cols] in dst_dtype

    uint32_t rows = 0;
    uint32_t cols = 0;
    DType dst_dtype = DType::kF32;
    HostMatrix table{};     // the caller's, in `owned`, or the head's memory on the CPU device
    bool borrowed = false;  // the caller's, which may lie in a file that is cut short
    std::unique_ptr<char[]> owned;
    size_t owned_bytes = 0;
};

// The token embedding on the device, for the embedding operator: the head's rows when it is tied.
class DeviceEmbedding final : public PackedLinear {
public:
    size_t bytes() const override { return own == nullptr ? 0 : own->bytes(); }
    const DeviceLinear &table() const { return own == nullptr ? *head : *own; }

    const DeviceLinear *head = nullptr;
    std::unique_ptr<DeviceLinear> own;
};

// All throw BAD_WEIGHTS for NaN, infinities, and values that become infinite in `dtype`.
// interleave: 0, or dh: what is rotated (LinearSource::rope_rows, NormSource::rope) is packed so that the halves
// of each head alternate, and the interleaved rope does what the NeoX rope does to heads in the given order. Scores
// are sums over a head, in which the order does not matter.
std::unique_ptr<DeviceLinear> packLinear(const std::shared_ptr<Device> &device, const LinearSource &source, DType dtype,
                                         uint32_t interleave);
std::unique_ptr<DeviceNorm> packNorm(const std::shared_ptr<Device> &device, const NormSource &source, DType dtype,
                                     uint32_t interleave);
std::unique_ptr<HostEmbedding> packEmbedding(const Device &device, const LinearSource &source, DType dtype,
                                             const DeviceLinear *head, bool borrow);

}  // namespace q3::infinicore
