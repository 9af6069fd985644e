#include "runtime/packed_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "runtime/error.h"

namespace q3 {
namespace {

constexpr size_t kChunk = size_t{512} << 10;  // bytes per hash: verified while it is still in a cache
constexpr size_t kHeaderBytes = 4096;
constexpr size_t kAlign = 64;
constexpr uint32_t kVersion = 3;
constexpr uint64_t kSection = ~uint64_t{0};  // in the index, where a blob has its offset
constexpr char kMagic[8] = {'Q', '3', 'P', 'A', 'C', 'K', 'E', 'D'};

struct Header {
    char magic[8];
    uint32_t version;
    uint32_t unused;
    uint64_t identity_bytes;
    uint64_t index_offset;  // of the identity; the index follows it
    uint64_t index_words;
    uint64_t index_hash;  // of identity and index, one after the other
    uint64_t file_bytes;
    uint64_t header_hash;  // of all the above
};

uint64_t headerHash(const Header &header) {
    return hashBytes(&header, offsetof(Header, header_hash));
}

uint64_t indexHash(const std::string &identity, const std::vector<uint64_t> &index) {
    const uint64_t both[2] = {hashBytes(identity.data(), identity.size()),
                              hashBytes(index.data(), index.size() * sizeof(uint64_t))};
    return hashBytes(both, sizeof both);
}

uint64_t chunksOf(uint64_t bytes) {
    return (bytes + kChunk - 1) / kChunk;
}

}  // namespace

// Eight independent lanes hide the multiplier's latency. Each step is a bijection of its lane for a given word, and so
// is the end for a given set of other lanes: a single changed word cannot cancel out.
uint64_t hashBytes(const void *data, size_t bytes) noexcept {
    constexpr uint64_t kOdd = 0x9e3779b97f4a7c15U;
    constexpr size_t kLanes = 8;
    constexpr size_t kBlock = kLanes * sizeof(uint64_t);
    uint64_t lanes[kLanes];
    for (size_t i = 0; i < kLanes; ++i) {
        lanes[i] = kOdd * (2 * i + 1);
    }
    const auto mix = [&](const char *block) {
        for (size_t i = 0; i < kLanes; ++i) {
            uint64_t word;
            std::memcpy(&word, block + i * sizeof word, sizeof word);
            const uint64_t product = (lanes[i] ^ word) * kOdd;
            lanes[i] = product << 29 | product >> 35;
        }
    };
    const auto *p = static_cast<const char *>(data);
    size_t left = bytes;
    for (; left >= kBlock; left -= kBlock, p += kBlock) {
        mix(p);
    }
    if (left > 0) {
        char last[kBlock] = {};
        std::memcpy(last, p, left);
        mix(last);
    }
    uint64_t hash = bytes;
    for (const uint64_t lane : lanes) {
        hash = (hash ^ lane) * kOdd;
        hash ^= hash >> 32;
    }
    return hash;
}

// ---------------------------------------------------------------- writing

PackedFileWriter::PackedFileWriter(std::string path, std::string identity)
    : path_(std::move(path)), temporary_(path_ + ".XXXXXX"), identity_(std::move(identity)), offset_(kHeaderBytes) {
    chunk_.reserve(kChunk);
    fd_ = mkostemp(temporary_.data(), O_CLOEXEC);
    if (fd_ < 0) {
        failWith("create");
    }
}

PackedFileWriter::~PackedFileWriter() {
    if (fd_ >= 0) {
        close(fd_);
        unlink(temporary_.c_str());
    }
}

void PackedFileWriter::failWith(const char *what) const {
    char reason[128];
    fail(QWEN3_STATUS_IO_ERROR, "could not %s the file %s: %s", what, temporary_.c_str(),
         strerror_r(errno, reason, sizeof reason));
}

void PackedFileWriter::write(const void *data, size_t bytes, uint64_t offset) {
    const auto *p = static_cast<const char *>(data);
    while (bytes > 0) {
        const ssize_t written = pwrite(fd_, p, bytes, static_cast<off_t>(offset));
        if (written < 0 && errno == EINTR) {
            continue;
        }
        if (written <= 0) {
            errno = written == 0 ? ENOSPC : errno;
            failWith("write");
        }
        p += written;
        offset += static_cast<uint64_t>(written);
        bytes -= static_cast<size_t>(written);
    }
}

void PackedFileWriter::flushChunk() {
    if (!chunk_.empty()) {
        index_.push_back(hashBytes(chunk_.data(), chunk_.size()));
        write(chunk_.data(), chunk_.size(), offset_);
        offset_ += chunk_.size();
        chunk_.clear();
    }
}

void PackedFileWriter::begin(size_t bytes) {
    flushChunk();
    offset_ = (offset_ + kAlign - 1) / kAlign * kAlign;
    index_.push_back(offset_);
    index_.push_back(bytes);
}

void PackedFileWriter::nextSection() {
    flushChunk();
    index_.push_back(kSection);
    index_.push_back(++section_);
}

void PackedFileWriter::append(const void *data, size_t bytes) {
    const auto *p = static_cast<const char *>(data);
    while (bytes > 0) {
        const size_t taken = std::min(bytes, kChunk - chunk_.size());
        chunk_.insert(chunk_.end(), p, p + taken);
        p += taken;
        bytes -= taken;
        if (chunk_.size() == kChunk) {
            flushChunk();
        }
    }
}

void PackedFileWriter::commit() {
    flushChunk();
    Header header{};
    std::memcpy(header.magic, kMagic, sizeof kMagic);
    header.version = kVersion;
    header.identity_bytes = identity_.size();
    header.index_offset = offset_;
    header.index_words = index_.size();
    header.index_hash = indexHash(identity_, index_);
    header.file_bytes = offset_ + identity_.size() + index_.size() * sizeof(uint64_t);
    header.header_hash = headerHash(header);
    write(identity_.data(), identity_.size(), offset_);
    write(index_.data(), index_.size() * sizeof(uint64_t), offset_ + identity_.size());
    write(&header, sizeof header, 0);
    if (fsync(fd_) != 0) {
        failWith("flush");
    }
    if (rename(temporary_.c_str(), path_.c_str()) != 0) {
        failWith("rename");
    }
    close(fd_);
    fd_ = -1;
}

// ---------------------------------------------------------------- reading

PackedReader::PackedReader(const char *path)
    // O_NONBLOCK: a pipe in its place must not block for ever.
    : fd_(open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    if (fd_ < 0) {
        throw PackedFileError(PackedFileError::kAbsent, errno);
    }
    try {
        struct stat facts{};
        if (fstat(fd_, &facts) != 0 || !S_ISREG(facts.st_mode)) {
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
    } catch (...) {
        close(fd_);
        throw;
    }
}

PackedReader::PackedReader(const char *path, const std::string &identity, uint32_t section) : PackedReader(path) {
    if (identity_ != identity) {
        throw PackedFileError(PackedFileError::kStale);
    }
    enter(section);
}

PackedReader::~PackedReader() {
    close(fd_);
}

void PackedReader::readAt(void *data, size_t bytes, uint64_t offset) const {
    auto *p = static_cast<char *>(data);
    while (bytes > 0) {
        const ssize_t got = pread(fd_, p, bytes, static_cast<off_t>(offset));
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            throw PackedFileError(PackedFileError::kCorrupt);
        }
        p += got;
        offset += static_cast<uint64_t>(got);
        bytes -= static_cast<size_t>(got);
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

void PackedReader::read(void *data, size_t bytes, ThreadPool &pool) {
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
    // Four chunks fill a huge page: two threads that touch one first both clear it.
    const uint32_t grain = chunks < 16 ? 1 : 4;
    std::atomic<bool> good{true};
    pool.parallelFor(static_cast<uint32_t>(chunks), grain, [&](uint32_t begin, uint32_t end, uint32_t) {
        for (uint32_t i = begin; i < end && good.load(); ++i) {
            const size_t start = size_t{i} * kChunk;
            const size_t size = std::min(kChunk, bytes - start);
            char *target = static_cast<char *>(data) + start;
            try {
                readAt(target, size, offset + start);
                if (hashBytes(target, size) != hashes[i]) {
                    good.store(false);
                }
            } catch (const PackedFileError &) {
                good.store(false);
            }
        }
    });
    if (!good.load()) {
        throw PackedFileError(PackedFileError::kCorrupt);
    }
}

void PackedReader::finish() const {
    if (next_ != index_.size() && index_[next_] != kSection) {
        throw PackedFileError(PackedFileError::kCorrupt);
    }
}

}  // namespace q3
