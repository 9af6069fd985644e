// RAII for memory of a device: single allocations, and the KV blocks.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "ops/block_memory.h"
#include "ops/infinicore/device/device.h"
#include "ops/types.h"

namespace q3::infinicore {

// Memory on a device, or pinned host memory that it can copy from and to asynchronously. Zeroed.
class DeviceBuffer {
public:
    enum class Place { kDevice, kHost };
    DeviceBuffer() = default;
    DeviceBuffer(std::shared_ptr<Device> device, size_t bytes, Place place = Place::kDevice);  // throws OUT_OF_MEMORY
    ~DeviceBuffer();
    DeviceBuffer(DeviceBuffer &&other) noexcept { swap(other); }
    DeviceBuffer &operator=(DeviceBuffer &&other) noexcept {
        DeviceBuffer(std::move(other)).swap(*this);
        return *this;
    }

    void swap(DeviceBuffer &other) noexcept;
    char *data() const { return static_cast<char *>(data_); }
    size_t bytes() const { return bytes_; }
    explicit operator bool() const { return data_ != nullptr; }

private:
    std::shared_ptr<Device> device_;
    void *data_ = nullptr;
    size_t bytes_ = 0;
    Place place_ = Place::kDevice;
};

// KV blocks on the device: each its own allocation, or, after useArena, slots of one as long as it has any.
class DeviceBlockMemory final : public BlockMemory {
public:
    explicit DeviceBlockMemory(std::shared_ptr<Device> device) : device_(std::move(device)) {}
    void *allocate(size_t bytes) override;
    void release(void *block) noexcept override;
    void copy(void *dst, const void *src, size_t bytes) override;

    // Blocks of block_bytes will come from an arena of at most limit_bytes, allocated with the first of them; it is
    // halved until it fits.
    void useArena(size_t block_bytes, uint64_t limit_bytes);
    char *arena() const { return arena_.data(); }
    size_t arenaBlocks() const { return arena_.bytes() / std::max<size_t>(block_bytes_, 1); }
    int64_t index(const void *block) const;  // of a slot of the arena, or -1

private:
    void *fromArena();

    std::shared_ptr<Device> device_;
    size_t block_bytes_ = 0;  // 0: no arena
    uint64_t wanted_ = 0;     // blocks of the arena that is still to be allocated
    DeviceBuffer arena_;
    std::vector<char *> free_;
};

}  // namespace q3::infinicore
