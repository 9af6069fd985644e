// Device memory and pinned host memory.
#include "state.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace fake {

static constexpr size_t kPage = 4096;

// Freeing memory that a stream has yet to use is an error; the tasks are run first so that they still find it.
static void checkMemoryUnused(Lock &lock, uintptr_t begin, uintptr_t end, const char *what) {
    State &s = state();
    for (bool again = !s.lost; again;) {  // a lost device does nothing any more
        again = false;
        for (Stream *stream : s.streams) {
            for (const auto &task : stream->queue) {
                const bool uses = std::any_of(task->uses.begin(), task->uses.end(), [&](const Range &range) {
                    return range.begin < end && begin < range.end;
                });
                if (uses) {
                    violationLocked(std::string(what) + ": memory is freed before " + task->name + " has used it");
                    const infiniStatus_t error = waitFor(lock, stream, stream->enqueued);
                    stream->error = error;
                    again = true;
                    break;
                }
            }
            if (again) {
                break;
            }
        }
    }
}

char *backing(int device, const void *pointer, size_t bytes, const char *what) {
    State &s = state();
    const Lock lock(s.mutex);
    const int owner = deviceOf(pointer);
    const auto address = uintptr_t(pointer);
    char text[200];
    if (owner != device) {
        std::snprintf(text, sizeof text, "%s: %p is %s, not memory of device %d", what, pointer,
                      pointer == nullptr ? "null"
                      : owner < 0        ? "host memory"
                                         : "memory of another device",
                      device);
        violationLocked(text);
        return nullptr;
    }
    auto it = s.allocations.upper_bound(address);
    if (it != s.allocations.begin() && address < std::prev(it)->first + std::prev(it)->second.size) {
        --it;
        if (bytes <= it->first + it->second.size - address) {
            return it->second.data + (address - it->first);
        }
        std::snprintf(text, sizeof text, "%s: %zu bytes at offset %zu of an allocation of %zu", what, bytes,
                      size_t(address - it->first), it->second.size);
    } else {
        std::snprintf(text, sizeof text, "%s: %p is not allocated", what, pointer);
    }
    violationLocked(text);
    return nullptr;
}

}  // namespace fake

extern "C" {

infiniStatus_t infinirtMalloc(void **p_ptr, size_t size) {
    FAKE_ENTER()
    FAKE_NOT_CAPTURING()
    FAKE_FAIL("malloc")
    FAKE_DEVICE()
    if (p_ptr == nullptr) {
        return INFINI_STATUS_NULL_POINTER;
    }
    if (size == 0) {
        *p_ptr = nullptr;
        return INFINI_STATUS_SUCCESS;
    }
    fake::State &s = fake::state();
    char *data;
    {
        const fake::Lock lock(s.mutex);
        fake::Device &d = s.devices[size_t(device)];
        // Whole pages and an unused one between allocations.
        const size_t span = (size + fake::kPage - 1) / fake::kPage * fake::kPage + fake::kPage;
        if (size > s.memory - std::min(s.memory, d.bytes) || span > fake::kArenaBytes - d.arena_used) {
            return INFINI_STATUS_INTERNAL_ERROR;  // what CUDA's out of memory becomes in 0.1.0
        }
        data = static_cast<char *>(std::aligned_alloc(256, (size + 255) / 256 * 256));  // as device memory is
        if (data == nullptr) {
            return INFINI_STATUS_INTERNAL_ERROR;
        }
        char *const pointer = d.arena + d.arena_used;
        d.arena_used += span;
        d.bytes += size;
        d.peak = std::max(d.peak, d.bytes);
        s.allocations[uintptr_t(pointer)] = {size, device, data};
        *p_ptr = pointer;
    }
    std::memset(data, 0xff, size);  // NaN in every float format
    return INFINI_STATUS_SUCCESS;
}

infiniStatus_t infinirtFree(void *ptr) {
    const bool ok = fake::enter(__func__);
    if (ptr == nullptr) {
        return INFINI_STATUS_SUCCESS;
    }
    FAKE_NOT_CAPTURING()
    FAKE_DEVICE()
    fake::State &s = fake::state();
    fake::Lock lock(s.mutex);
    auto it = s.allocations.find(uintptr_t(ptr));
    if (it == s.allocations.end() || it->second.device != device) {
        return fake::violationLocked("infinirtFree: not an allocation of device " + std::to_string(device));
    }
    fake::checkMemoryUnused(lock, it->first, it->first + it->second.size, __func__);
    it = s.allocations.find(uintptr_t(ptr));
    s.devices[size_t(device)].bytes -= it->second.size;
    std::free(it->second.data);
    s.allocations.erase(it);
    return ok ? INFINI_STATUS_SUCCESS : INFINI_STATUS_INTERNAL_ERROR;
}

infiniStatus_t infinirtMallocHost(void **p_ptr, size_t size) {
    FAKE_ENTER()
    FAKE_NOT_CAPTURING()
    FAKE_FAIL("malloc_host")
    FAKE_DEVICE()
    if (p_ptr == nullptr) {
        return INFINI_STATUS_NULL_POINTER;
    }
    char *const data = static_cast<char *>(std::malloc(std::max<size_t>(size, 1)));
    if (data == nullptr) {
        return INFINI_STATUS_INTERNAL_ERROR;
    }
    std::memset(data, 0xff, size);
    const fake::Lock lock(fake::state().mutex);
    fake::state().host[uintptr_t(data)] = size;
    fake::state().host_bytes += int64_t(size);
    *p_ptr = data;
    return INFINI_STATUS_SUCCESS;
}

infiniStatus_t infinirtFreeHost(void *ptr) {
    const bool ok = fake::enter(__func__);
    if (ptr == nullptr) {
        return INFINI_STATUS_SUCCESS;
    }
    FAKE_NOT_CAPTURING()
    FAKE_DEVICE()
    fake::State &s = fake::state();
    fake::Lock lock(s.mutex);
    const auto it = s.host.find(uintptr_t(ptr));
    if (it == s.host.end()) {
        return fake::violationLocked("infinirtFreeHost: not pinned host memory");
    }
    const uintptr_t begin = it->first, end = begin + it->second;
    s.host_bytes -= int64_t(it->second);
    s.host.erase(it);
    fake::checkMemoryUnused(lock, begin, end, __func__);
    std::free(ptr);
    return ok ? INFINI_STATUS_SUCCESS : INFINI_STATUS_INTERNAL_ERROR;
}

infiniStatus_t infinirtMallocAsync(void **p_ptr, size_t size, infinirtStream_t) {
    return infinirtMalloc(p_ptr, size);
}

infiniStatus_t infinirtFreeAsync(void *ptr, infinirtStream_t stream) {
    const infiniStatus_t status = infinirtStreamSynchronize(stream);
    return status != INFINI_STATUS_SUCCESS ? status : infinirtFree(ptr);
}

}  // extern "C"
