// Zeroed, aligned host memory that throws OUT_OF_MEMORY with the number of bytes asked for.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>

namespace q3::cpu {

class HostBuffer {
public:
    HostBuffer() = default;
    explicit HostBuffer(size_t bytes);
    ~HostBuffer();
    HostBuffer(HostBuffer &&other) noexcept
        : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)),
          slab_(std::move(other.slab_)) {}
    HostBuffer &operator=(HostBuffer &&other) noexcept {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
        std::swap(slab_, other.slab_);
        return *this;
    }
    HostBuffer(const HostBuffer &) = delete;
    HostBuffer &operator=(const HostBuffer &) = delete;

    void *data() const { return data_; }
    template <typename T> T *as() const { return static_cast<T *>(data_); }
    size_t bytes() const { return bytes_; }

private:
    friend class Arena;
    void *data_ = nullptr;
    size_t bytes_ = 0;
    std::shared_ptr<HostBuffer> slab_;  // what data_ lies in, if it is not a mapping of its own
};

// Cuts buffers from slabs, one after the other, so that small ones lie in huge pages too. A slab lives as long as its
// buffers. Not thread-safe.
class Arena {
public:
    HostBuffer allocate(size_t bytes);

private:
    std::shared_ptr<HostBuffer> slab_;
    size_t used_ = 0;
};

}  // namespace q3::cpu
