// The device a backend runs on, and RAII for its memory.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "infinirt.h"
#include "ops/block_memory.h"
#include "ops/types.h"

namespace q3::infinicore {

// One device with one stream. Everything that lives on the device holds a shared_ptr to it.
class Device {
public:
    // Throws DEVICE_TYPE_NOT_SUPPORTED or DEVICE_NOT_FOUND. nthreads: for the CPU device, 0: OpenMP's default.
    static std::shared_ptr<Device> open(int32_t type, int32_t id, int32_t nthreads);
    ~Device();
    Device(const Device &) = delete;
    Device &operator=(const Device &) = delete;

    bool isCpu() const { return type_ == INFINI_DEVICE_CPU; }
    infiniDevice_t type() const { return type_; }
    int id() const { return id_; }
    uint32_t threads() const { return threads_; }
    std::string name() const;  // "nvidia:0"
    infinirtStream_t stream() const { return stream_; }

    // The stream will never end what it has begun: from now on nothing waits for it, synchronize throws, and what it
    // may use is leaked instead of freed.
    void abandon() const noexcept { abandoned_ = true; }
    bool abandoned() const noexcept { return abandoned_; }

    // These need a DeviceScope.
    void synchronize() const;      // throws what has failed since the last call
    void settle() const noexcept;  // waits where nothing may be thrown: the next synchronize tells what failed
    void zero(void *data, size_t bytes) const;                           // complete on return
    void upload(void *dst, const void *src, size_t bytes) const;         // complete on return
    void uploadAsync(void *dst, const void *src, size_t bytes) const;    // src stays valid until synchronize
    void downloadAsync(void *dst, const void *src, size_t bytes) const;  // dst is valid after synchronize
    void copyAsync(void *dst, const void *src, size_t bytes) const;      // within the device

private:
    Device(infiniDevice_t type, int id) : type_(type), id_(id) {}
    infiniDevice_t type_;
    int id_;
    uint32_t threads_ = 1;
    infinirtStream_t stream_ = nullptr;
    bool has_stream_ = false;
    mutable infiniStatus_t unreported_ = INFINI_STATUS_SUCCESS;
    mutable bool abandoned_ = false;
};

// Makes a device current for this thread (infinirt's current device is thread-local) and, for the CPU, sets how many
// threads InfiniCore's OpenMP loops use; gives both back at the end.
class DeviceScope {
public:
    explicit DeviceScope(const Device &device);
    ~DeviceScope();
    DeviceScope(const DeviceScope &) = delete;
    DeviceScope &operator=(const DeviceScope &) = delete;

private:
    infiniDevice_t old_type_ = INFINI_DEVICE_CPU;
    int old_id_ = 0;
    int old_threads_ = 0;  // 0: not changed
    bool restore_device_ = false;
};

// Memory on a device, or pinned host memory that it can copy from and to asynchronously. Zeroed.
class Buffer {
public:
    enum class Place { Device, Host };
    Buffer() = default;
    Buffer(std::shared_ptr<Device> device, size_t bytes, Place place = Place::Device);  // throws OUT_OF_MEMORY
    ~Buffer();
    Buffer(Buffer &&other) noexcept { swap(other); }
    Buffer &operator=(Buffer &&other) noexcept {
        Buffer(std::move(other)).swap(*this);
        return *this;
    }

    void swap(Buffer &other) noexcept;
    char *data() const { return static_cast<char *>(data_); }
    size_t bytes() const { return bytes_; }
    explicit operator bool() const { return data_ != nullptr; }

private:
    std::shared_ptr<Device> device_;
    void *data_ = nullptr;
    size_t bytes_ = 0;
    Place place_ = Place::Device;
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
    Buffer arena_;
    std::vector<char *> free_;
};

}  // namespace q3::infinicore
