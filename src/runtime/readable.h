// Reads the caller's memory, which may be a mapped file.
#pragma once

#include <cstddef>

namespace q3 {

// Whether the end of [data, data + bytes) can be read. It cannot when it maps a file that was cut short meanwhile;
// touching it would then end the process. Files are cut at their end, so where the end is there, all of it is. On
// kernels before 5.14 the answer is always true. The file may be cut a moment after the answer.
bool isReadable(const void *data, size_t bytes) noexcept;

// Copies [data, data + bytes) to `target`. Returns false, with anything in `target`, when not all of it can be read,
// even if its file is cut short during the copy: the kernel copies, and returns an error where the CPU would raise
// SIGBUS. In sandboxes that forbid this call it checks with isReadable first and then copies.
bool copyReadable(void *target, const void *data, size_t bytes) noexcept;

// The same for `count` pieces of `bytes` each, which begin `stride` bytes apart; in `target` they follow each other.
bool copyReadable(void *target, const void *data, size_t bytes, size_t stride, size_t count) noexcept;

// Throws IO_ERROR: a tensor is not readable.
[[noreturn]] void failUnreadable(const char *tensor);

}  // namespace q3
