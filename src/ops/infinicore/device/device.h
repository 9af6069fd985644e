// The device that a backend runs on, and the scope in which it is a thread's current one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "infinirt.h"

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

    // Says that the stream will never end what it has begun. From then on nothing waits for it, synchronize throws, and
    // what the stream may use is leaked instead of freed.
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

}  // namespace q3::infinicore
