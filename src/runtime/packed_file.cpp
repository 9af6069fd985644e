#include "runtime/packed_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <utility>

#include "runtime/error.h"
#include "runtime/packed_format.h"

namespace q3 {

namespace {

// A temporary file's name is that of the file, kTemporary, and kRandomBytes letters and digits.
constexpr char kTemporary[] = ".tmp";
constexpr size_t kTemporaryBytes = sizeof kTemporary - 1;
constexpr size_t kRandomBytes = 3;

// The path of temporary files of `path` without the random part. A name that would become too long loses its beginning
// and not its end, because cache files are found by the end of their names.
std::string temporaryPrefix(const std::string &path) {
    constexpr size_t kAdded = kTemporaryBytes + kRandomBytes;
    const size_t folder = path.find_last_of('/') + 1;  // 0 without a slash
    std::string name = path.substr(folder);
    const size_t longest = std::min<size_t>(NAME_MAX, PATH_MAX - 1 - std::min<size_t>(folder, PATH_MAX - 1 - kAdded));
    if (name.size() + kAdded > longest && name.size() <= NAME_MAX) {
        size_t cut = std::min(name.size(), name.size() + kAdded - longest);
        while (cut < name.size() && (static_cast<unsigned char>(name[cut]) & 0xc0U) == 0x80) {
            ++cut;  // so that no UTF-8 character is cut in two
        }
        name.erase(0, cut);
    }
    return path.substr(0, folder) + name + kTemporary;
}

// Letters and digits that differ at every call, on every thread and in every process; for names, not for secrets.
std::string randomPart() {
    static std::atomic<uint64_t> calls{0};
    constexpr char kCharacters[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    const uint64_t facts[] = {static_cast<uint64_t>(now.tv_sec), static_cast<uint64_t>(now.tv_nsec),
                              static_cast<uint64_t>(getpid()), calls.fetch_add(1)};
    uint64_t hash = hashBytes(facts, sizeof facts);
    std::string text;
    for (size_t i = 0; i < kRandomBytes; ++i) {
        text += kCharacters[hash % (sizeof kCharacters - 1)];
        hash /= sizeof kCharacters - 1;
    }
    return text;
}

bool lock(int fd, int operation) noexcept {
    return uninterrupted([&] { return flock(fd, operation); }) == 0;
}

void discard(int fd, const std::string &temporary) noexcept {
    if (fd >= 0) {
        unlink(temporary.c_str());
        close(fd);
    }
}

// Whether a file begins as this class writes it, or has just been made.
bool isOurs(int fd) noexcept {
    char magic[sizeof kMagic];
    const ssize_t got = pread(fd, magic, sizeof magic, 0);
    return got == 0 || (got == sizeof magic && (std::memcmp(magic, kUnfinished, sizeof magic) == 0 ||
                                                std::memcmp(magic, kMagic, sizeof magic) == 0));
}

// Removes one temporary file if its writer is dead, which shows in that nobody holds its lock.
void removeIfAbandoned(int folder, const char *name) noexcept {
    const int fd = openat(folder, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
    if (fd < 0) {
        return;
    }
    struct stat opened{};
    struct stat named{};
    if (fstat(fd, &opened) == 0 && S_ISREG(opened.st_mode) && isOurs(fd) && lock(fd, LOCK_EX | LOCK_NB) &&
        fstatat(folder, name, &named, AT_SYMLINK_NOFOLLOW) == 0 && opened.st_dev == named.st_dev &&
        opened.st_ino == named.st_ino) {
        unlinkat(folder, name, 0);
    }
    close(fd);
}

// Removes what killed writers have left of temporary files of a prefix. This only tidies up, so failures are ignored.
void removeAbandoned(const std::string &path_prefix) {
    const size_t folder_bytes = path_prefix.find_last_of('/') + 1;
    const std::string prefix = path_prefix.substr(folder_bytes);
    const std::string folder = folder_bytes == 0 ? "." : path_prefix.substr(0, folder_bytes);
    DIR *entries = opendir(folder.c_str());
    if (entries == nullptr) {
        return;
    }
    while (const dirent *entry = readdir(entries)) {
        const size_t bytes = std::strlen(entry->d_name);
        if (bytes == prefix.size() + kRandomBytes && std::memcmp(entry->d_name, prefix.data(), prefix.size()) == 0) {
            removeIfAbandoned(dirfd(entries), entry->d_name);
        }
    }
    closedir(entries);
}

// Blocks SIGXFSZ in this thread for a scope, and discards the signal if it came: writing beyond the limit on file sizes
// (ulimit -f) shall be an error of the call, not the end of the process.
class NoFileSizeSignal {
public:
    NoFileSizeSignal() noexcept {
        sigemptyset(&signal_);
        sigaddset(&signal_, SIGXFSZ);
        sigset_t pending;
        pending_before_ = sigpending(&pending) == 0 && sigismember(&pending, SIGXFSZ) == 1;
        pthread_sigmask(SIG_BLOCK, &signal_, &saved_);
    }
    ~NoFileSizeSignal() {
        const int error_number = errno;
        const timespec at_once{};
        while (!pending_before_ && sigtimedwait(&signal_, nullptr, &at_once) < 0 && errno == EINTR) {
        }
        pthread_sigmask(SIG_SETMASK, &saved_, nullptr);
        errno = error_number;
    }
    NoFileSizeSignal(const NoFileSizeSignal &) = delete;
    NoFileSizeSignal &operator=(const NoFileSizeSignal &) = delete;

private:
    sigset_t signal_, saved_;
    bool pending_before_;
};

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
    : path_(std::move(path)), identity_(std::move(identity)), offset_(kHeaderBytes) {
    chunk_.reserve(kChunk);
    const std::string prefix = temporaryPrefix(path_);
    removeAbandoned(prefix);
    try {
        create(prefix);
        write(kUnfinished, sizeof kUnfinished, 0);
    } catch (...) {
        discard(fd_, temporary_);
        throw;
    }
}

PackedFileWriter::~PackedFileWriter() {
    discard(fd_, temporary_);
}

// Creates and locks the temporary file. A process that tidies up after killed writers may find the file before it is
// locked and remove it; then another one is created.
void PackedFileWriter::create(const std::string &prefix) {
    constexpr int kTries = 1000;
    for (int tries = 0; tries < kTries; ++tries) {
        temporary_ = prefix + randomPart();
        fd_ = open(temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd_ < 0 && (errno == EINTR || errno == EEXIST)) {
            continue;
        }
        if (fd_ < 0) {
            break;
        }
        lock(fd_, LOCK_EX);  // without locks in the file system, a killed writer's file stays
        struct stat facts{};
        if (fstat(fd_, &facts) != 0 || facts.st_nlink > 0) {
            return;
        }
        close(std::exchange(fd_, -1));
    }
    failWith("create");
}

void PackedFileWriter::failWith(const char *what) const {
    const int error_number = errno;
    fail(QWEN3_STATUS_IO_ERROR, "could not %s the file %s: %s", what, temporary_.c_str(),
         systemReason(error_number).c_str());
}

void PackedFileWriter::write(const void *data, size_t bytes, uint64_t offset) {
    const NoFileSizeSignal no_signal;
    const auto *p = static_cast<const char *>(data);
    while (bytes > 0) {
        const ssize_t written = uninterrupted([&] { return pwrite(fd_, p, bytes, static_cast<off_t>(offset)); });
        if (written <= 0) {
            errno = written == 0 ? ENOSPC : errno;
            failWith("write");
        }
        p += written;
        offset += static_cast<uint64_t>(written);
        bytes -= static_cast<size_t>(written);
    }
}

void PackedFileWriter::flush() {
    if (uninterrupted([&] { return fsync(fd_); }) != 0) {
        failWith("flush");
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
    flush();
    if (uninterrupted([&] { return rename(temporary_.c_str(), path_.c_str()); }) != 0) {
        failWith("rename");
    }
    close(std::exchange(fd_, -1));
}

}  // namespace q3
