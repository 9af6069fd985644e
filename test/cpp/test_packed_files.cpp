// Packed files whose counts, offsets and sizes lie under hashes that are right: the reader believes none of them.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "check.h"
#include "runtime/packed_file.h"
#include "runtime/packed_format.h"

namespace {

constexpr char kIdentity[] = "eight by";  // eight bytes: an index that begins a word early is one of whole words
using Blobs = std::vector<std::string>;

// A file in parts that may be changed one by one.
struct Parts {
    q3::Header header{};
    std::string data;  // between header and identity
    std::vector<uint64_t> index;
};

Blobs original() {
    return {std::string(100, 'a'), std::string(q3::kChunk + 5, 'b'), std::string(), std::string(7, 'c')};
}

void write(const std::string &path) {
    q3::PackedFileWriter writer(path, kIdentity);
    const Blobs blobs = original();
    for (size_t i = 0; i < blobs.size(); ++i) {
        if (i == 2) {
            writer.nextSection();
        }
        writer.blob(blobs[i].data(), blobs[i].size());
    }
    writer.commit();
}

Parts partsOf(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    const std::string all{std::istreambuf_iterator<char>(file), {}};
    Parts parts;
    std::memcpy(&parts.header, all.data(), sizeof parts.header);
    parts.data = all.substr(q3::kHeaderBytes, parts.header.index_offset - q3::kHeaderBytes);
    parts.index.resize(parts.header.index_words);
    std::memcpy(parts.index.data(), all.data() + parts.header.index_offset + parts.header.identity_bytes,
                parts.index.size() * sizeof(uint64_t));
    return parts;
}

// Writes parts with hashes of what they are; of the index, as the header says where it is.
void forge(const std::string &path, Parts parts) {
    std::string all(q3::kHeaderBytes, '\0');
    all += parts.data + kIdentity;
    all.append(reinterpret_cast<const char *>(parts.index.data()), parts.index.size() * sizeof(uint64_t));
    const q3::Header &h = parts.header;
    const uint64_t rest = all.size() - std::min<uint64_t>(all.size(), h.index_offset);
    if (h.identity_bytes <= rest && h.index_words <= (rest - h.identity_bytes) / sizeof(uint64_t)) {
        std::vector<uint64_t> index(h.index_words);
        all.copy(reinterpret_cast<char *>(index.data()), h.index_words * sizeof(uint64_t),
                 h.index_offset + h.identity_bytes);
        parts.header.index_hash = q3::indexHash(all.substr(h.index_offset, h.identity_bytes), index);
    }
    parts.header.header_hash = q3::headerHash(parts.header);
    // The blobs stay.
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    file.write(reinterpret_cast<const char *>(&parts.header), sizeof parts.header);
    const size_t tail = q3::kHeaderBytes + parts.data.size();
    file.seekp(static_cast<std::streamoff>(tail));
    file.write(all.data() + tail, static_cast<std::streamsize>(all.size() - tail));
    file.close();
    std::filesystem::resize_file(path, all.size());
}

// Everything that a file gives, in either way of taking a blob; nothing where it is refused.
std::optional<Blobs> contents(const std::string &path, bool leave, q3::ThreadPool &pool) {
    try {
        Blobs blobs;
        for (uint32_t section = 0; section < 2; ++section) {
            q3::PackedReader reader(path.c_str(), kIdentity, section);
            for (size_t n = 0; n < 2; ++n) {
                const size_t bytes = reader.nextBytes();
                CHECK(bytes <= 2 * q3::kChunk);  // or memory would be asked for that no file stands for
                std::string blob(bytes, '\0');
                if (leave) {
                    CHECK(reader.leave(bytes, pool).read(blob.data(), bytes, 0) == 0);
                } else {
                    reader.read(blob.data(), bytes, pool);
                }
                blobs.push_back(blob);
            }
            reader.finish();
        }
        return blobs;
    } catch (const q3::PackedFileError &error) {
        CHECK(error.reason() == q3::PackedFileError::kCorrupt || error.reason() == q3::PackedFileError::kStale);
        return std::nullopt;
    }
}

void testLies(const std::string &path) {
    write(path);
    q3::ThreadPool pool(2);
    const Parts good = partsOf(path);
    forge(path, good);
    CHECK(contents(path, false, pool) == original() && contents(path, true, pool) == original());
    const size_t nfields = 4;
    size_t read = 0;
    for (size_t place = 0; place < nfields + good.index.size(); ++place) {
        for (const uint64_t value :
             {uint64_t{0}, uint64_t{1}, uint64_t{8}, uint64_t{1} << 31, uint64_t{1} << 40, uint64_t{1} << 63,
              ~uint64_t{0}, ~uint64_t{0} - 7, uint64_t{1000000}, uint64_t{1000001}, uint64_t{1000008},
              uint64_t{1000064}, uint64_t{1000000} - 1, uint64_t{1000000} - 8, uint64_t{1000000} - 64}) {
            Parts bad = good;
            q3::Header &h = bad.header;
            uint64_t *const fields[nfields] = {&h.identity_bytes, &h.index_offset, &h.index_words, &h.file_bytes};
            uint64_t &word = place < nfields ? *fields[place] : bad.index[place - nfields];
            // About a million: that much more or less than what stands there.
            word = value - 999936 <= 128 ? word + value - 1000000 : value;
            forge(path, bad);
            for (const bool leave : {false, true}) {
                const std::optional<Blobs> found = contents(path, leave, pool);
                CHECK(!found || *found == original());
                read += found ? 1 : 0;
            }
        }
    }
    // Read are files where nothing changed, and numbers of a section, which nothing depends on.
    CHECK(read > 0 && read < 80);
    // Every length that lies about what is there, without a word too many.
    for (size_t words = 0; words < good.index.size(); ++words) {
        Parts bad = good;
        bad.index.resize(words);
        bad.header.index_words = words;
        bad.header.file_bytes -= (good.index.size() - words) * sizeof(uint64_t);
        forge(path, bad);
        CHECK(!contents(path, false, pool));
    }
}

}  // namespace

int main() {
    char folder[] = "/tmp/q3-packed-XXXXXX";
    const std::string path = std::string(mkdtemp(folder)) + "/file";
    testLies(path);
    unlink(path.c_str());
    rmdir(folder);
    return q3test::finish("packed files");
}
