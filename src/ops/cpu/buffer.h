// Zeroed, aligned host memory that throws OUT_OF_MEMORY with the number of bytes asked for.
#pragma once

#include <cstddef>
#include <utility>

namespace q3::cpu {

class Buffer {
public:
    Buffer() = default;
    explicit Buffer(size_t bytes);
    ~Buffer();
    Buffer(Buffer &&other) noexcept
        : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
    Buffer &operator=(Buffer &&other) noexcept {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
        return *this;
    }
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;

    void *data() const { return data_; }
    template <typename T> T *as() const { return static_cast<T *>(data_); }
    size_t bytes() const { return bytes_; }

private:
    void *data_ = nullptr;
    size_t bytes_ = 0;
};

}  // namespace q3::cpu
