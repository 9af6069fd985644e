#include "ops/infinicore/device/buffers.h"

#include <cstring>
#include <utility>

#include "ops/infinicore/device/check.h"
#include "runtime/error.h"

namespace q3::infinicore {
namespace {

// CUDA reports exhausted memory as INTERNAL_ERROR; the CPU device reports SUCCESS and a null pointer.
void *allocateRaw(const Device &device, size_t bytes, DeviceBuffer::Place place) {
    void *data = nullptr;
    const infiniStatus_t status =
        place == DeviceBuffer::Place::kDevice ? infinirtMalloc(&data, bytes) : infinirtMallocHost(&data, bytes);
    if (status != INFINI_STATUS_SUCCESS || data == nullptr) {
        fail(QWEN3_STATUS_OUT_OF_MEMORY, "cannot allocate %zu bytes of %s memory on %s (InfiniCore status %d)", bytes,
             place == DeviceBuffer::Place::kDevice ? "device" : "pinned host", device.name().c_str(),
             static_cast<int>(status));
    }
    return data;
}

}  // namespace

DeviceBuffer::DeviceBuffer(std::shared_ptr<Device> device, size_t bytes, Place place)
    : device_(std::move(device)), bytes_(bytes), place_(place) {
    DeviceScope scope(*device_);
    data_ = allocateRaw(*device_, std::max<size_t>(bytes, 1), place);
    try {
        if (place == Place::kHost) {
            std::memset(data_, 0, bytes);
        } else {
            device_->zero(data_, bytes);
        }
    } catch (...) {
        device_->settle();
        place == Place::kHost ? infinirtFreeHost(data_) : infinirtFree(data_);
        throw;
    }
}

DeviceBuffer::~DeviceBuffer() {
    if (data_ == nullptr || device_->abandoned()) {
        return;
    }
    try {
        DeviceScope scope(*device_);
        device_->settle();  // nothing may still use it
        place_ == Place::kHost ? infinirtFreeHost(data_) : infinirtFree(data_);
    } catch (...) {  // the device is gone, and its memory with it
    }
}

void DeviceBuffer::swap(DeviceBuffer &other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(place_, other.place_);
}

// ------------------------------------------------------------------ DeviceBlockMemory

void DeviceBlockMemory::useArena(size_t block_bytes, uint64_t limit_bytes) {
    block_bytes_ = block_bytes;
    wanted_ = std::max<uint64_t>(limit_bytes / block_bytes, 1);
}

int64_t DeviceBlockMemory::index(const void *block) const {
    const char *const at = static_cast<const char *>(block);
    return arena_ && at >= arena_.data() && at < arena_.data() + arena_.bytes()
               ? static_cast<int64_t>(at - arena_.data()) / static_cast<int64_t>(block_bytes_)
               : -1;
}

// A slot, or null when the arena has none left or does not fit into the device's memory at all.
void *DeviceBlockMemory::fromArena() {
    for (; wanted_ > 0 && !arena_; wanted_ /= 2) {
        try {
            arena_ = DeviceBuffer(device_, wanted_ * block_bytes_);
        } catch (const Error &error) {
            if (error.status() != QWEN3_STATUS_OUT_OF_MEMORY) {
                throw;
            }
            continue;
        }
        for (uint64_t i = wanted_; i-- > 0;) {
            free_.push_back(arena_.data() + i * block_bytes_);
        }
    }
    if (free_.empty()) {
        return nullptr;
    }
    char *const slot = free_.back();
    free_.pop_back();
    return slot;
}

void *DeviceBlockMemory::allocate(size_t bytes) {
    DeviceScope scope(*device_);
    if (bytes == block_bytes_ && bytes > 0) {
        if (void *const slot = fromArena(); slot != nullptr) {
            return slot;
        }
    }
    void *block = allocateRaw(*device_, std::max<size_t>(bytes, 1), DeviceBuffer::Place::kDevice);
    try {
        device_->zero(block, bytes);
    } catch (...) {
        device_->settle();
        infinirtFree(block);
        throw;
    }
    return block;
}

void DeviceBlockMemory::release(void *block) noexcept {
    if (block == nullptr || device_->abandoned()) {
        return;
    }
    if (index(block) >= 0) {
        free_.push_back(static_cast<char *>(block));  // has room for all slots, so it does not allocate
        return;
    }
    try {
        DeviceScope scope(*device_);
        device_->settle();
        infinirtFree(block);
    } catch (...) {
    }
}

void DeviceBlockMemory::copy(void *dst, const void *src, size_t bytes) {
    DeviceScope scope(*device_);
    device_->copyAsync(dst, src, bytes);
}

}  // namespace q3::infinicore
