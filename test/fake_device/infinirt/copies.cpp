#include <sys/uio.h>
#include <unistd.h>

#include <cstring>
#include <iterator>

#include "state.h"

namespace fake {
namespace {

// A fingerprint of host memory, or 0 when it cannot be read.
uint64_t fingerprint(const void *data, size_t size) {
    std::vector<char> copy(size);
    const iovec local{copy.data(), size}, remote{const_cast<void *>(data), size};
    if (process_vm_readv(getpid(), &local, 1, &remote, 1, 0) != ssize_t(size)) {
        return 0;
    }
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i + 8 <= size; i += 8) {
        uint64_t word;
        std::memcpy(&word, &copy[i], 8);
        hash = (hash ^ word) * 1099511628211u;
        hash ^= hash >> 29;
    }
    for (size_t i = size & ~size_t(7); i < size; ++i) {
        hash = (hash ^ uint8_t(copy[i])) * 1099511628211u;
    }
    return hash | 1;
}

// Whether host memory came from infinirtMallocHost.
bool pinned(const void *pointer) {
    const auto &host = state().host;
    const auto address = uintptr_t(pointer);
    const auto it = host.upper_bound(address);
    return it != host.begin() && address < std::prev(it)->first + std::prev(it)->second;
}

bool isPinned(const void *pointer) {
    const Lock lock(state().mutex);
    return pinned(pointer);
}

infiniStatus_t copyTask(const char *function, void *dst, const void *src, size_t size, infinirtMemcpyKind_t kind,
                        infinirtStream_t stream, Task &task) {
    static const char *const names[] = {"copies.h2h", "copies.h2d", "copies.d2h", "copies.d2d"};
    const int device = currentDevice();
    const bool from_device = kind == INFINIRT_MEMCPY_D2H || kind == INFINIRT_MEMCPY_D2D;
    const bool to_device = kind == INFINIRT_MEMCPY_H2D || kind == INFINIRT_MEMCPY_D2D;
    if (kind < INFINIRT_MEMCPY_H2H || kind > INFINIRT_MEMCPY_D2D) {
        return INFINI_STATUS_BAD_PARAM;
    }
    if (size == 0) {
        task.run = [] { return INFINI_STATUS_SUCCESS; };
        return INFINI_STATUS_SUCCESS;
    }
    if (device < 0) {
        return violation("%s: the calling thread has set no %s device", function, typeName(deviceType()));
    }
    const auto resolve = [&](const void *pointer, bool on_device, const char *what) -> char * {
        if (on_device) {
            return backing(device, pointer, size, what);
        }
        if (pointer == nullptr || deviceOf(pointer) >= 0) {
            violation("%s: %s is %s, not host memory", function, what, pointer == nullptr ? "null" : "device memory");
            return nullptr;
        }
        return static_cast<char *>(const_cast<void *>(pointer));
    };
    const char *const from = resolve(src, from_device, "the source");
    char *const to = resolve(dst, to_device, "the destination");
    if (from == nullptr || to == nullptr) {
        return INFINI_STATUS_INTERNAL_ERROR;
    }
    if (kind == INFINIRT_MEMCPY_D2D && from < to + size && to < from + size) {
        return violation("%s: source and destination overlap", function);
    }
    const bool recorded = capturing(stream);
    if (recorded && ((!from_device && !isPinned(src)) || (!to_device && !isPinned(dst)))) {
        return forbiddenWhileCapturing("a copy from or to pageable memory, which a graph would repeat,")
                   ? INFINI_STATUS_INTERNAL_ERROR
                   : INFINI_STATUS_SUCCESS;
    }
    const uint64_t before = from_device ? 0 : fingerprint(from, size);
    if (!from_device && before == 0) {
        return violation("%s: the source cannot be read", function);
    }
    if (!to_device && !recorded) {
        std::memset(to, 0xff, size);  // read too early, it is NaN
    }
    task.name = function;
    const auto range = [&](const void *p) { return Range{uintptr_t(p), uintptr_t(p) + size}; };
    task.uses = {range(src), range(dst)};
    task.run = [=] {
        if (!from_device && !recorded && fingerprint(from, size) != before) {
            return violation("%s: the host changed the source before the stream had read it", function);
        }
        std::memcpy(to, from, size);
        return INFINI_STATUS_SUCCESS;
    };
    const Lock lock(state().mutex);
    ++state().counters[names[kind]];
    state().counters["copies.pageable"] += (!from_device && !pinned(src)) || (!to_device && !pinned(dst)) ? 1 : 0;
    return INFINI_STATUS_SUCCESS;
}

}  // namespace
}  // namespace fake

extern "C" {

infiniStatus_t infinirtMemcpyAsync(void *dst, const void *src, size_t size, infinirtMemcpyKind_t kind,
                                   infinirtStream_t stream) {
    FAKE_ENTER()
    FAKE_FAIL("copy")
    fake::Task task;
    const infiniStatus_t status = fake::copyTask(__func__, dst, src, size, kind, stream, task);
    return status != INFINI_STATUS_SUCCESS ? status : fake::enqueue(stream, std::move(task), __func__);
}

infiniStatus_t infinirtMemcpy(void *dst, const void *src, size_t size, infinirtMemcpyKind_t kind) {
    FAKE_ENTER()
    FAKE_NOT_CAPTURING()
    FAKE_FAIL("copy")
    fake::Task task;
    const infiniStatus_t status = fake::copyTask(__func__, dst, src, size, kind, nullptr, task);
    if (status != INFINI_STATUS_SUCCESS) {
        return status;
    }
    fake::Lock lock(fake::state().mutex);
    fake::Stream *const stream = fake::useStream(nullptr, __func__);
    if (stream == nullptr) {
        return INFINI_STATUS_INTERNAL_ERROR;
    }
    fake::enqueueLocked(stream, std::move(task));
    return fake::waitFor(lock, stream, stream->enqueued);
}

}  // extern "C"
