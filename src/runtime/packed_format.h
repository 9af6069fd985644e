// What the writer and the reader of packed files share: the bytes that are no blobs.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/packed_file.h"

namespace q3 {

inline constexpr size_t kChunk = size_t{512} << 10;  // bytes per hash: verified while it is still in a cache
inline constexpr size_t kHeaderBytes = 4096;
inline constexpr size_t kAlign = 64;
inline constexpr uint32_t kVersion = 3;
inline constexpr uint64_t kSection = ~uint64_t{0};  // stands in the index in place of a blob's offset
inline constexpr char kMagic[8] = {'Q', '3', 'P', 'A', 'C', 'K', 'E', 'D'};
inline constexpr char kUnfinished[8] = {'Q', '3', 'P', 'A', 'C', 'K', '.', '.'};  // the magic until all else is written

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

inline uint64_t headerHash(const Header &header) {
    return hashBytes(&header, offsetof(Header, header_hash));
}

inline uint64_t indexHash(const std::string &identity, const std::vector<uint64_t> &index) {
    const uint64_t both[2] = {hashBytes(identity.data(), identity.size()),
                              hashBytes(index.data(), index.size() * sizeof(uint64_t))};
    return hashBytes(both, sizeof both);
}

inline uint64_t chunksOf(uint64_t bytes) {
    return bytes / kChunk + (bytes % kChunk == 0 ? 0 : 1);
}

// The result of a system call, made again when a signal handler interrupted it.
template <typename Call> auto uninterrupted(const Call &call) {
    auto result = call();
    while (result < 0 && errno == EINTR) {
        result = call();
    }
    return result;
}

}  // namespace q3
