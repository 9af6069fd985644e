// Memory of the caller's that may be a mapped file.
#pragma once

#include <cstddef>

namespace q3 {

// Whether the end of [data, data + bytes) can be read, which is not so when it is a mapping of a file that was cut
// short meanwhile: touching it would end the process. A file is cut at its end, so all before is there as well. On
// kernels before 5.14: always true. It tells about now only: the file may be cut a moment later.
bool isReadable(const void *data, size_t bytes) noexcept;

// Copies [data, data + bytes), or returns false and leaves anything in `target` when not all of it can be read, also
// when its file is cut short meanwhile: the kernel copies, and returns an error where the CPU would raise SIGBUS. In
// sandboxes that forbid that it checks with isReadable first and then copies.
bool copyReadable(void *target, const void *data, size_t bytes) noexcept;

// Throws IO_ERROR: a tensor is not readable.
[[noreturn]] void failUnreadable(const char *tensor);

}  // namespace q3
