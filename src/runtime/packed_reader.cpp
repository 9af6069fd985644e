// Reads packed files, all of them verified, or leaves blobs where they are.
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <vector>

#include "runtime/packed_file.h"
#include "runtime/packed_format.h"

namespace q3 {

PackedReader::PackedReader(const char *path) : file_(std::make_shared<SharedFile>(path)) {
    if (file_->fd() < 0) {
        const bool absent = errno == ENOENT || errno == ENOTDIR;
        throw PackedFileError(absent ? PackedFileError::kAbsent : PackedFileError::kUnreadable, errno);
    }
    struct stat facts{};
    if (uninterrupted([&] { return fstat(file_->fd(), &facts); }) != 0) {
        throw PackedFileError(PackedFileError::kUnreadable, errno);
    }
    if (!S_ISREG(facts.st_mode)) {
        throw PackedFileError(PackedFileError::kCorrupt);
    }
    file_bytes_ = static_cast<uint64_t>(facts.st_size);
    Header header{};
    readAt(&header, sizeof header, 0);
    if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) {
        throw PackedFileError(PackedFileError::kCorrupt);
    }
    if (header.version != kVersion) {
        throw PackedFileError(PackedFileError::kStale);
    }
    if (header.header_hash != headerHash(header) || header.file_bytes != file_bytes_) {
        throw PackedFileError(PackedFileError::kCorrupt);
    }
    const uint64_t tail = file_bytes_ - std::min(file_bytes_, header.index_offset);
    if (header.identity_bytes > tail || header.index_words != (tail - header.identity_bytes) / sizeof(uint64_t)) {
        throw PackedFileError(PackedFileError::kCorrupt);
    }
    identity_.resize(header.identity_bytes);
    index_.resize(header.index_words);
    readAt(identity_.data(), identity_.size(), header.index_offset);
    readAt(index_.data(), index_.size() * sizeof(uint64_t), header.index_offset + identity_.size());
    if (header.index_hash != indexHash(identity_, index_)) {
        throw PackedFileError(PackedFileError::kCorrupt);
    }
    checkIndex(header.index_offset);
}

PackedReader::PackedReader(const char *path, const std::string &identity, uint32_t section) : PackedReader(path) {
    if (identity_ != identity) {
        throw PackedFileError(PackedFileError::kStale);
    }
    enter(section);
}

void PackedReader::readAt(void *data, size_t bytes, uint64_t offset) const {
    if (const int error = file_->read(data, bytes, offset); error == SharedFile::kCut) {
        throw PackedFileError(PackedFileError::kCorrupt);
    } else if (error != 0) {
        throw PackedFileError(PackedFileError::kUnreadable, error);
    }
}

// Checks that blobs follow each other, each with its hashes, up to the end of the data. Then the file really has what
// its index says, and nobody allocates memory for more.
void PackedReader::checkIndex(uint64_t end) const {
    uint64_t free = kHeaderBytes;
    for (size_t at = 0; at < index_.size();) {
        if (index_.size() - at < 2) {
            throw PackedFileError(PackedFileError::kCorrupt);
        }
        const uint64_t offset = index_[at];
        const uint64_t bytes = index_[at + 1];
        at += 2;
        if (offset == kSection) {
            continue;
        }
        if (offset < free || offset > end || bytes > end - offset || chunksOf(bytes) > index_.size() - at) {
            throw PackedFileError(PackedFileError::kCorrupt);
        }
        free = offset + bytes;
        at += chunksOf(bytes);
    }
}

// Moves to the first blob of a section.
void PackedReader::enter(uint32_t section) {
    for (uint32_t passed = 0; passed < section;) {
        if (next_ + 2 > index_.size()) {
            throw PackedFileError(PackedFileError::kCorrupt);
        }
        if (index_[next_] == kSection) {
            ++passed;
            next_ += 2;
        } else {
            next_ += 2 + chunksOf(index_[next_ + 1]);
        }
    }
}

size_t PackedReader::nextBytes() const {
    if (next_ + 2 > index_.size() || index_[next_] == kSection) {
        throw PackedFileError(PackedFileError::kCorrupt);
    }
    return index_[next_ + 1];
}

bool PackedReader::holds(uint64_t blobs, size_t bytes) const {
    size_t at = next_;
    for (; at < index_.size() && index_[at] != kSection; at += 2 + chunksOf(bytes)) {
        if (index_[at + 1] != bytes || blobs-- == 0) {
            return false;
        }
    }
    return blobs == 0;
}

// Passes the next blob, verified, and returns its offset. data: where it goes, or null.
uint64_t PackedReader::take(size_t bytes, char *data, ThreadPool &pool) {
    if (nextBytes() != bytes) {
        throw PackedFileError(PackedFileError::kCorrupt);
    }
    const uint64_t offset = index_[next_];
    const uint64_t *hashes = index_.data() + next_ + 2;
    const uint64_t chunks = chunksOf(bytes);
    next_ += 2 + chunks;
    if (next_ > index_.size()) {
        throw PackedFileError(PackedFileError::kCorrupt);
    }
    // Four chunks fill a huge page, which two threads that first touch it would both clear.
    const uint32_t grain = chunks < 16 ? 1 : 4;
    constexpr int kGood = 0;
    constexpr int kDamaged = SharedFile::kCut;
    std::atomic<int> state{kGood};  // kGood, kDamaged or an errno
    std::vector<char> passed(data == nullptr && chunks > 0 ? pool.size() * kChunk : 0);
    pool.parallelFor(static_cast<uint32_t>(chunks), grain, [&](uint32_t begin, uint32_t end, uint32_t thread) {
        for (uint32_t i = begin; i < end && state.load() == kGood; ++i) {
            const size_t start = size_t{i} * kChunk;
            const size_t size = std::min(kChunk, bytes - start);
            char *target = data != nullptr ? data + start : passed.data() + thread * kChunk;
            if (const int error = file_->read(target, size, offset + start); error != 0) {
                state.store(error);
            } else if (hashBytes(target, size) != hashes[i]) {
                state.store(kDamaged);
            }
        }
    });
    if (state.load() == kDamaged) {
        throw PackedFileError(PackedFileError::kCorrupt);
    }
    if (state.load() != kGood) {
        throw PackedFileError(PackedFileError::kUnreadable, state.load());
    }
    return offset;
}

void PackedReader::read(void *data, size_t bytes, ThreadPool &pool) {
    take(bytes, static_cast<char *>(data), pool);
}

PackedBlob PackedReader::leave(size_t bytes, ThreadPool &pool) {
    return {file_, take(bytes, nullptr, pool), bytes};
}

void PackedReader::finish() const {
    if (next_ != index_.size() && index_[next_] != kSection) {
        throw PackedFileError(PackedFileError::kCorrupt);
    }
}

}  // namespace q3
