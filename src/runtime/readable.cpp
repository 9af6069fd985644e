#include "runtime/readable.h"

#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>

#include "runtime/error.h"

namespace q3 {

bool isReadable(const void *data, size_t bytes) noexcept {
#if defined(MADV_POPULATE_READ)
    if (bytes == 0) {
        return true;
    }
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const char *end = static_cast<const char *>(data) + bytes - 1;
    const char *last = end - reinterpret_cast<uintptr_t>(end) % page;
    // Anything but EFAULT says that the kernel or this kind of mapping cannot do it, not that reading would fail.
    return madvise(const_cast<char *>(last), page, MADV_POPULATE_READ) == 0 || errno != EFAULT;
#else
    (void)data;
    (void)bytes;
    return true;
#endif
}

bool copyReadable(void *target, const void *data, size_t bytes) noexcept {
    return copyReadable(target, data, bytes, bytes, 1);
}

bool copyReadable(void *target, const void *data, size_t bytes, size_t stride, size_t count) noexcept {
    static std::atomic<bool> forbidden{false};
    if (stride == bytes) {
        bytes *= count;
        count = 1;
    }
    auto *to = static_cast<char *>(target);
    const auto *from = static_cast<const char *>(data);
    size_t skipped = 0;  // bytes of the next piece that are there already
    while (bytes > 0 && count > 0 && !forbidden.load(std::memory_order_relaxed)) {
        constexpr size_t kTogether = 256;
        iovec remote[kTogether];
        const size_t npieces = std::min(count, kTogether);
        for (size_t i = 0; i < npieces; ++i) {
            remote[i] = {const_cast<char *>(from) + i * stride, bytes};
        }
        remote[0] = {const_cast<char *>(from) + skipped, bytes - skipped};
        const iovec local{to + skipped, npieces * bytes - skipped};
        const ssize_t copied = process_vm_readv(getpid(), &local, 1, remote, npieces, 0);
        if (copied > 0) {
            skipped += static_cast<size_t>(copied);
            const size_t whole = skipped / bytes;
            skipped %= bytes;
            to += whole * bytes;
            from += whole * stride;
            count -= whole;
        } else if (copied < 0 && (errno == EPERM || errno == ENOSYS || errno == EACCES)) {
            forbidden.store(true, std::memory_order_relaxed);
        } else if (copied == 0 || errno != EINTR) {
            return false;
        }
    }
    if (bytes == 0 || count == 0) {
        return true;
    }
    if (!isReadable(from, (count - 1) * stride + bytes)) {
        return false;
    }
    for (; count > 0; --count, from += stride, to += bytes) {
        std::memcpy(to, from, bytes);
    }
    return true;
}

void failUnreadable(const char *tensor) {
    fail(QWEN3_STATUS_IO_ERROR, "%s cannot be read: its file was cut short, or the disk fails", tensor);
}

}  // namespace q3
