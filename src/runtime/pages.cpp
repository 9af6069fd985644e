#include "runtime/pages.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#include "runtime/error.h"

namespace q3 {

bool isReadable(const void *data, size_t bytes) noexcept {
#if defined(MADV_POPULATE_READ)
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes - 1) / page * page;
    // Anything but EFAULT says that the kernel or this kind of mapping cannot do it, not that reading would fail.
    return bytes == 0 || madvise(reinterpret_cast<void *>(last), page, MADV_POPULATE_READ) == 0 || errno != EFAULT;
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
