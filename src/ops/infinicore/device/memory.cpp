#include "ops/infinicore/device/memory.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "ops/infinicore/device/check.h"
#include "ops/infinicore/device/devices.h"
#include "ops/infinicore/infinicore.h"
#include "runtime/error.h"

// From libgomp, which libinfiniop uses. Declared here because <omp.h> is missing from some compilers.
extern "C" {
int omp_get_max_threads(void);
void omp_set_num_threads(int);
}

namespace q3::infinicore {

static constexpr size_t kZeroChunk = size_t(1) << 20;

// ------------------------------------------------------------------ Device

static void initRuntime() {
    static std::once_flag once;  // stays unset when the call throws, so that the next caller tries again
    std::call_once(once, [] { INFINI_CHECK(infinirtInit()); });
}

std::shared_ptr<Device> Device::open(int32_t type, int32_t id, int32_t nthreads) {
    if (type < 0 || type > QWEN3_DEVICE_ALI) {
        fail(QWEN3_STATUS_DEVICE_TYPE_NOT_SUPPORTED, "device %d is no Qwen3Device", int(type));
    }
    if (type >= int(INFINI_DEVICE_TYPE_COUNT)) {
        fail(QWEN3_STATUS_DEVICE_TYPE_NOT_SUPPORTED,
             "InfiniCore %s does not know device %s: run `%s`, then rebuild this library", version(), deviceName(type),
             installCommand(type));
    }
    initRuntime();
    const auto infini_type = static_cast<infiniDevice_t>(type);
    int count = 0;
    const infiniStatus_t status = infinirtGetDeviceCount(infini_type, &count);
    if (status == INFINI_STATUS_DEVICE_TYPE_NOT_SUPPORTED) {
        fail(QWEN3_STATUS_DEVICE_TYPE_NOT_SUPPORTED,
             "the installed InfiniCore was built without device %s: run `%s`, then rebuild this library",
             deviceName(type), installCommand(type));
    }
    if (status != INFINI_STATUS_SUCCESS) {
        fail(QWEN3_STATUS_DEVICE_NOT_FOUND, "InfiniCore cannot count the %s devices (status %d): is the driver there?",
             deviceName(type), int(status));
    }
    if (id < 0 || id >= count) {
        fail(QWEN3_STATUS_DEVICE_NOT_FOUND, "device %s:%d does not exist: InfiniCore sees %d %s device%s",
             deviceName(type), int(id), count, deviceName(type), count == 1 ? "" : "s");
    }

    std::shared_ptr<Device> device(new Device(infini_type, id));
    device->threads_ = !device->isCpu() ? 1 : uint32_t(nthreads > 0 ? nthreads : omp_get_max_threads());
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
    static const std::vector<char> zeros(kZeroChunk, 0);  // lives on: a copy may fail with others on the way
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
        const int threads = omp_get_max_threads();
        if (uint32_t(threads) != device.threads()) {
            omp_set_num_threads(int(device.threads()));
            old_threads_ = threads;
        }
    }
}

DeviceScope::~DeviceScope() {
    if (old_threads_ > 0) {
        omp_set_num_threads(old_threads_);
    }
    if (restore_device_) {
        infinirtSetDevice(old_type_, old_id_);
    }
}

// ------------------------------------------------------------------ Buffer

// CUDA reports exhausted memory as INTERNAL_ERROR; the CPU device reports SUCCESS and a null pointer.
static void *allocateRaw(const Device &device, size_t bytes, Buffer::Place place) {
    void *data = nullptr;
    const infiniStatus_t status =
        place == Buffer::Place::Device ? infinirtMalloc(&data, bytes) : infinirtMallocHost(&data, bytes);
    if (status != INFINI_STATUS_SUCCESS || data == nullptr) {
        fail(QWEN3_STATUS_OUT_OF_MEMORY, "cannot allocate %zu bytes of %s memory on %s (InfiniCore status %d)", bytes,
             place == Buffer::Place::Device ? "device" : "pinned host", device.name().c_str(), int(status));
    }
    return data;
}

Buffer::Buffer(std::shared_ptr<Device> device, size_t bytes, Place place)
    : device_(std::move(device)), bytes_(bytes), place_(place) {
    DeviceScope scope(*device_);
    data_ = allocateRaw(*device_, std::max<size_t>(bytes, 1), place);
    try {
        if (place == Place::Host) {
            std::memset(data_, 0, bytes);
        } else {
            device_->zero(data_, bytes);
        }
    } catch (...) {
        device_->settle();
        place == Place::Host ? infinirtFreeHost(data_) : infinirtFree(data_);
        throw;
    }
}

Buffer::~Buffer() {
    if (data_ == nullptr || device_->abandoned()) {
        return;
    }
    try {
        DeviceScope scope(*device_);
        device_->settle();  // nothing may still use it
        place_ == Place::Host ? infinirtFreeHost(data_) : infinirtFree(data_);
    } catch (...) {  // the device is gone, and its memory with it
    }
}

void Buffer::swap(Buffer &other) noexcept {
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
               ? int64_t(at - arena_.data()) / int64_t(block_bytes_)
               : -1;
}

// A slot, or null when the arena has none left or does not fit into the device's memory at all.
void *DeviceBlockMemory::fromArena() {
    for (; wanted_ > 0 && !arena_; wanted_ /= 2) {
        try {
            arena_ = Buffer(device_, wanted_ * block_bytes_);
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
    void *block = allocateRaw(*device_, std::max<size_t>(bytes, 1), Buffer::Place::Device);
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
        free_.push_back(static_cast<char *>(block));  // never more than there was room for
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
