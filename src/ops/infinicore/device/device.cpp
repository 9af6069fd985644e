#include "ops/infinicore/device/device.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "ops/devices.h"
#include "ops/infinicore/device/check.h"
#include "ops/infinicore/device/library.h"
#include "ops/infinicore/infinicore.h"
#include "runtime/error.h"

namespace q3::infinicore {
namespace {

constexpr size_t kZeroChunk = size_t{1} << 20;

void initRuntime(int32_t type) {
    loadInfinicore(type);
    // Not std::call_once, which ends the process when it is left by an exception and there is no memory.
    static std::mutex mutex;
    static bool done = false;
    const std::lock_guard<std::mutex> lock(mutex);
    if (!done) {
        INFINI_CHECK(infinirtInit());
        done = true;
    }
}

}  // namespace

std::shared_ptr<Device> Device::open(int32_t type, int32_t id, int32_t nthreads) {
    if (type < 0 || type > QWEN3_DEVICE_ALI) {
        fail(QWEN3_STATUS_DEVICE_TYPE_NOT_SUPPORTED, "device %d is no Qwen3Device", static_cast<int>(type));
    }
    if (type >= static_cast<int>(INFINI_DEVICE_TYPE_COUNT)) {
        fail(QWEN3_STATUS_DEVICE_TYPE_NOT_SUPPORTED,
             "InfiniCore %s does not know device %s: run %s, then rebuild this library", version(), deviceName(type),
             installHint(type).c_str());
    }
    initRuntime(type);
    const auto infini_type = static_cast<infiniDevice_t>(type);
    int count = 0;
    const infiniStatus_t status = infinirtGetDeviceCount(infini_type, &count);
    if (status == INFINI_STATUS_DEVICE_TYPE_NOT_SUPPORTED) {
        fail(QWEN3_STATUS_DEVICE_TYPE_NOT_SUPPORTED, "the InfiniCore in %s was built without device %s: run %s",
             infinicoreFolder(), deviceName(type), installHint(type).c_str());
    }
    if (status != INFINI_STATUS_SUCCESS) {
        fail(QWEN3_STATUS_DEVICE_NOT_FOUND, "InfiniCore cannot count the %s devices (status %d): is the driver there?",
             deviceName(type), static_cast<int>(status));
    }
    if (id < 0 || id >= count) {
        fail(QWEN3_STATUS_DEVICE_NOT_FOUND, "device %s:%d does not exist: InfiniCore sees %d %s device%s",
             deviceName(type), static_cast<int>(id), count, deviceName(type), count == 1 ? "" : "s");
    }

    std::shared_ptr<Device> device(new Device(infini_type, id));
    device->threads_ = !device->isCpu() ? 1 : static_cast<uint32_t>(nthreads > 0 ? nthreads : maxThreads());
    DeviceScope scope(*device);
    INFINI_CHECK(infinirtStreamCreate(&device->stream_));
    device->has_stream_ = true;
    return device;
}

Device::~Device() {
    if (!has_stream_ || abandoned_) {
        return;
    }
    try {
        DeviceScope scope(*this);
        infinirtStreamDestroy(stream_);
    } catch (...) {  // the device is gone, and its stream with it
    }
}

std::string Device::name() const {
    return std::string(deviceName(type_)) + ":" + std::to_string(id_);
}

void Device::synchronize() const {
    if (abandoned_) {
        fail(QWEN3_STATUS_INTERNAL_ERROR,
             "%s waits for ever for a sum over devices in which one of them failed twice: destroy this model and "
             "create it again",
             name().c_str());
    }
    settle();
    check(std::exchange(unreported_, INFINI_STATUS_SUCCESS), "infinirtStreamSynchronize");
}

void Device::settle() const noexcept {
    if (abandoned_) {
        return;
    }
    const infiniStatus_t status = infinirtStreamSynchronize(stream_);
    if (unreported_ == INFINI_STATUS_SUCCESS) {
        unreported_ = status;
    }
}

// InfiniCore 0.1.0 has no memset: one chunk from the host, then copies within the device that double it.
void Device::zero(void *data, size_t bytes) const {
    if (bytes == 0) {
        return;
    }
    if (isCpu()) {
        std::memset(data, 0, bytes);
        return;
    }
    char *const base = static_cast<char *>(data);
    size_t done = std::min(bytes, kZeroChunk);
    static const std::vector<char> zeros(kZeroChunk, 0);  // static: when one copy fails, others may still read it
    uploadAsync(base, zeros.data(), done);
    while (done < bytes) {
        const size_t size = std::min(done, bytes - done);
        copyAsync(base + done, base, size);
        done += size;
    }
    synchronize();
}

void Device::upload(void *dst, const void *src, size_t bytes) const {
    uploadAsync(dst, src, bytes);
    synchronize();
}

void Device::uploadAsync(void *dst, const void *src, size_t bytes) const {
    INFINI_CHECK(infinirtMemcpyAsync(dst, src, bytes, INFINIRT_MEMCPY_H2D, stream_));
}

void Device::downloadAsync(void *dst, const void *src, size_t bytes) const {
    INFINI_CHECK(infinirtMemcpyAsync(dst, src, bytes, INFINIRT_MEMCPY_D2H, stream_));
}

void Device::copyAsync(void *dst, const void *src, size_t bytes) const {
    INFINI_CHECK(infinirtMemcpyAsync(dst, src, bytes, INFINIRT_MEMCPY_D2D, stream_));
}

// ------------------------------------------------------------------ DeviceScope

DeviceScope::DeviceScope(const Device &device) {
    infinirtGetDevice(&old_type_, &old_id_);
    restore_device_ = old_type_ != device.type() || old_id_ != device.id();
    // Always set: the native runtime's current device may differ from infinirt's. A failed call still changes
    // infinirt's own idea of the device, so that is undone before throwing.
    const infiniStatus_t status = infinirtSetDevice(device.type(), device.id());
    if (status != INFINI_STATUS_SUCCESS) {
        try {
            failStatus(status, "infinirtSetDevice");
        } catch (...) {
            infinirtSetDevice(old_type_, old_id_);
            throw;
        }
    }
    if (device.isCpu()) {
        const int threads = maxThreads();
        if (static_cast<uint32_t>(threads) != device.threads()) {
            setThreads(static_cast<int>(device.threads()));
            old_threads_ = threads;
        }
    }
}

DeviceScope::~DeviceScope() {
    if (old_threads_ > 0) {
        setThreads(old_threads_);
    }
    if (restore_device_) {
        infinirtSetDevice(old_type_, old_id_);
    }
}

}  // namespace q3::infinicore
