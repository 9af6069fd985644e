// Memory of the caller's that may be a mapped file.
#pragma once

#include <cstddef>

namespace q3 {

// Whether the end of [data, data + bytes) can be read, which is not so when it is a mapping of a file that was cut
// short meanwhile: touching it would end the process. A file is cut at its end, so all before is there as well. On
// kernels before 5.14: always true.
bool isReadable(const void *data, size_t bytes) noexcept;

// Throws IO_ERROR: a tensor is not readable.
[[noreturn]] void failUnreadable(const char *tensor);

}  // namespace q3
