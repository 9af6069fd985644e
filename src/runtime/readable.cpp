#include "runtime/readable.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

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

void failUnreadable(const char *tensor) {
    fail(QWEN3_STATUS_IO_ERROR, "%s cannot be read: its file was cut short, or the disk fails", tensor);
}

}  // namespace q3
