// A file of packed weights: a sequence of blobs, each checksummed in chunks, under an identity text. Native byte order.
//
//   Header (kHeaderBytes) | blobs, each at a multiple of 64 | index: identity, then offset, size and chunk hashes of
//   every blob. Header and index carry hashes of themselves, so no byte that is used goes unchecked.
//
// Blobs are in sections, one for each rank of a model, which are read side by side. In the index, every section but
// the first begins with kSection in place of an offset, followed by the section's number.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "runtime/packed_blob.h"
#include "runtime/thread_pool.h"

namespace q3 {

// A 64-bit hash of our own, as fast as memory. Changing one 8-byte word always changes it; changing several words
// leaves it equal only by chance. It guards against accidents, not against forgers.
uint64_t hashBytes(const void *data, size_t bytes) noexcept;

// Takes blobs in order.
class PackedWriter {
public:
    virtual ~PackedWriter() = default;
    // The next blob; its content follows in any number of appends.
    virtual void begin(size_t bytes) = 0;
    virtual void append(const void *data, size_t bytes) = 0;
    void blob(const void *data, size_t bytes) {
        begin(bytes);
        append(data, bytes);
    }
};

// Hashes what it is given: the fingerprint of a layout.
class HashWriter final : public PackedWriter {
public:
    void begin(size_t bytes) override { mix(bytes); }
    void append(const void *data, size_t bytes) override { mix(hashBytes(data, bytes)); }
    uint64_t hash() const { return hash_; }

private:
    void mix(uint64_t value) {
        const uint64_t both[2] = {hash_, value};
        hash_ = hashBytes(both, sizeof both);
    }
    uint64_t hash_ = 0;
};

// Writes a temporary file beside path; commit() makes it appear there at once, complete. Without commit() nothing
// stays. The temporary file is locked (flock) for as long as its writer lives; what killed writers of the same path
// have left is removed by the next one. Throws IO_ERROR with the system's reason.
class PackedFileWriter final : public PackedWriter {
public:
    PackedFileWriter(std::string path, std::string identity);
    ~PackedFileWriter() override;
    PackedFileWriter(const PackedFileWriter &) = delete;
    PackedFileWriter &operator=(const PackedFileWriter &) = delete;

    void begin(size_t bytes) override;
    void append(const void *data, size_t bytes) override;
    void nextSection();  // what follows is in another section
    void commit();

private:
    void create(const std::string &prefix);
    void write(const void *data, size_t bytes, uint64_t offset);
    void flush();
    void flushChunk();
    [[noreturn]] void failWith(const char *what) const;

    std::string path_, temporary_, identity_;
    int fd_ = -1;
    uint64_t offset_;              // end of what is written
    std::vector<uint64_t> index_;  // offset, size, hashes of every blob
    uint64_t section_ = 0;
    std::vector<char> chunk_;  // the blob's bytes that are not yet written
};

// Why a file cannot be used; never crosses the C boundary.
class PackedFileError final : public std::exception {
public:
    enum Reason { kAbsent, kUnreadable, kStale, kCorrupt };
    explicit PackedFileError(Reason reason, int system_error = 0) : reason_(reason), system_error_(system_error) {}
    Reason reason() const { return reason_; }
    int systemError() const { return system_error_; }  // why it cannot be opened or read, as errno has it; or 0

private:
    Reason reason_;
    int system_error_;
};

// Hands out the blobs of a section in order. Throws PackedFileError: kAbsent (there is none), kUnreadable (the
// system fails to open or read it, which says nothing about the file), kStale (another version of the format, or
// another identity) or kCorrupt (truncated, changed, not such a file, or a blob of an unexpected size).
class PackedReader {
public:
    explicit PackedReader(const char *path);  // accepts any identity
    PackedReader(const char *path, const std::string &identity, uint32_t section = 0);

    const std::string &identity() const { return identity_; }
    size_t nextBytes() const;  // size of the next blob, no more than the file has
    // Whether exactly `blobs` more blobs of `bytes` each follow in this section.
    bool holds(uint64_t blobs, size_t bytes) const;
    // Reads the next blob, which must have that size, and verifies it. Works in parallel, because
    // most of the time goes into clearing the target's pages.
    void read(void *data, size_t bytes, ThreadPool &pool);
    // Verifies the next blob, which must have that size, and leaves it in the file.
    PackedBlob leave(size_t bytes, ThreadPool &pool);
    void finish() const;  // throws kCorrupt if blobs of the section are left

private:
    void readAt(void *data, size_t bytes, uint64_t offset) const;
    void checkIndex(uint64_t end) const;
    void enter(uint32_t section);
    uint64_t take(size_t bytes, char *data, ThreadPool &pool);

    std::shared_ptr<const SharedFile> file_;
    uint64_t file_bytes_ = 0;
    std::string identity_;
    std::vector<uint64_t> index_;
    size_t next_ = 0;  // of index_
};

}  // namespace q3
