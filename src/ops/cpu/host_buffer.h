// Zeroed, aligned host memory that throws OUT_OF_MEMORY with the number of bytes asked for.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>

namespace q3::cpu {

class Buffer {
public:
    Buffer() = default;
    explicit Buffer(size_t bytes);
    ~Buffer();
    Buffer(Buffer &&other) noexcept
        : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)),
          slab_(std::move(other.slab_)) {}
    Buffer &operator=(Buffer &&other) noexcept {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
        std::swap(slab_, other.slab_);
        return *this;
    }
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;

    void *data() const { return data_; }
    template <typename T> T *as() const { return static_cast<T *>(data_); }
    size_t bytes() const { return bytes_; }

private:
    friend class Arena;
    void *data_ = nullptr;
    size_t bytes_ = 0;
    std::shared_ptr<Buffer> slab_;  // what data_ lies in, if it is not a mapping of its own
};

// Cuts buffers from slabs, one after the other, so that small ones lie in huge pages too. A slab lives as long as its
// buffers. Not thread-safe.
class Arena {
public:
    Buffer allocate(size_t bytes);

private:
    std::shared_ptr<Buffer> slab_;
    size_t used_ = 0;
};

}  // namespace q3::cpu
