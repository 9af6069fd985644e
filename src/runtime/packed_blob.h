// A blob that stays in its packed file and is read in parts, when they are needed.
//
// Reads are copies that the kernel makes from its page cache. Mapping the file would spare them, but where a mapped
// file is cut short, or its disk fails, touching it ends the process; a read returns an error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace q3 {

// An open file that several owners share.
class SharedFile {
public:
    explicit SharedFile(const char *path);  // opens it for reading; without one fd() is -1, and errno says why
    ~SharedFile();
    SharedFile(const SharedFile &) = delete;
    SharedFile &operator=(const SharedFile &) = delete;
    int fd() const { return fd_; }
    const std::string &path() const { return path_; }
    // Reads [offset, offset + bytes). Returns 0, kCut where the file ends before that, or why not as errno has it.
    int read(void *data, size_t bytes, uint64_t offset) const noexcept;

    static constexpr int kCut = -1;

private:
    std::string path_;
    int fd_;
};

// Has been verified once. Threads may use it at the same time.
class PackedBlob {
public:
    PackedBlob(std::shared_ptr<const SharedFile> file, uint64_t offset, size_t bytes)
        : file_(std::move(file)), offset_(offset), bytes_(bytes) {}

    size_t bytes() const { return bytes_; }
    // Reads a part of the blob as SharedFile::read.
    int read(void *data, size_t bytes, uint64_t offset) const noexcept {
        return file_->read(data, bytes, offset_ + offset);
    }
    // Asks the system for a part that is not in its page cache, without waiting. Whether it is there is judged by where
    // it begins.
    void fetch(size_t bytes, uint64_t offset) const noexcept;
    // Throws IO_ERROR for what read returned.
    [[noreturn]] void failToRead(int error) const;

private:
    std::shared_ptr<const SharedFile> file_;
    uint64_t offset_;
    size_t bytes_;
};

}  // namespace q3
