#include "runtime/packed_blob.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "runtime/error.h"
#include "runtime/packed_format.h"

namespace q3 {

SharedFile::SharedFile(const char *path)
    : path_(path),
      // O_NONBLOCK: a pipe in its place must not block for ever.
      fd_(uninterrupted([&] { return open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); })) {}

SharedFile::~SharedFile() {
    if (fd_ >= 0) {
        close(fd_);
    }
}

int SharedFile::read(void *data, size_t bytes, uint64_t offset) const noexcept {
    auto *p = static_cast<char *>(data);
    while (bytes > 0) {
        const ssize_t got = uninterrupted([&] { return pread(fd_, p, bytes, static_cast<off_t>(offset)); });
        if (got <= 0) {
            return got == 0 ? kCut : errno;
        }
        p += got;
        offset += static_cast<uint64_t>(got);
        bytes -= static_cast<size_t>(got);
    }
    return 0;
}

void PackedBlob::fetch(size_t bytes, uint64_t offset) const noexcept {
    char first;
    const iovec part{&first, 1};
    const auto at = static_cast<off_t>(offset_ + offset);
    if (preadv2(file_->fd(), &part, 1, at, RWF_NOWAIT) != 1) {
        posix_fadvise(file_->fd(), at, static_cast<off_t>(bytes), POSIX_FADV_WILLNEED);
    }
}

void PackedBlob::failToRead(int error) const {
    fail(QWEN3_STATUS_IO_ERROR, "experts cannot be read from %s: %s", file_->path().c_str(),
         error == SharedFile::kCut ? "the file was cut short" : systemReason(error).c_str());
}

}  // namespace q3
