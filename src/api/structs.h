// Structs that begin with struct_size and grow at the end: reading those of older and newer callers, and writing no
// more of them than the caller has. Nothing but struct_size is read before it is known to be sane.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>
#include <type_traits>

#include "infinicore_infer/models/qwen3.h"

namespace q3 {

inline constexpr size_t kLargestStruct = 4096;

// A struct's name, and its size when it was released first.
template <typename T> struct StructInfo;
template <> struct StructInfo<Qwen3ModelOptions> {
    static constexpr const char *kName = "Qwen3ModelOptions";
    static constexpr size_t kFirst = sizeof(size_t);
};
template <> struct StructInfo<Qwen3SamplingParams> {
    static constexpr const char *kName = "Qwen3SamplingParams";
    static constexpr size_t kFirst = offsetof(Qwen3SamplingParams, seed);
};
template <> struct StructInfo<Qwen3Tensor> {
    static constexpr const char *kName = "Qwen3Tensor";
    static constexpr size_t kFirst = 128;
};
template <> struct StructInfo<Qwen3SampleResult> {
    static constexpr const char *kName = "Qwen3SampleResult";
    static constexpr size_t kFirst = 40;
};
template <> struct StructInfo<Qwen3Stats> {
    static constexpr const char *kName = "Qwen3Stats";
    static constexpr size_t kFirst = 64;
};

// Throws ABI_MISMATCH unless `size` is one that a T may have. argument: "params[0]".
void checkStructSize(size_t size, size_t first, size_t ours, const char *type, const std::string &argument);
[[noreturn]] void failUnknownMembers(size_t size, size_t ours, const char *type, const std::string &argument);
[[noreturn]] void failOtherSize(size_t size, const std::string &argument, size_t first_size,
                                const std::string &first_argument);

template <typename T> size_t structSizeOf(const T *source, const std::string &argument) {
    using Info = StructInfo<T>;
    static_assert(sizeof(T) % alignof(size_t) == 0 && Info::kFirst % alignof(size_t) == 0 && Info::kFirst <= sizeof(T),
                  "sizes are multiples of 8");
    checkStructSize(source->struct_size, Info::kFirst, sizeof(T), Info::kName, argument);
    return source->struct_size;
}

// Copies what a caller passes in into `out`, whose content stands for members that an older caller lacks. Throws
// ABI_MISMATCH, also when a newer caller sets a member that this library does not know.
template <typename T> void readStruct(const T *source, const std::string &argument, T &out) {
    const size_t size = structSizeOf(source, argument);
    const auto *bytes = reinterpret_cast<const unsigned char *>(source);
    if (size > sizeof(T) && std::any_of(bytes + sizeof(T), bytes + size, [](unsigned char b) { return b != 0; })) {
        failUnknownMembers(size, sizeof(T), StructInfo<T>::kName, argument);
    }
    std::memcpy(static_cast<void *>(&out), source, std::min(size, sizeof(T)));
    out.struct_size = sizeof(T);
}

// Writes a struct, all but its struct_size, into a caller's of a size that was checked.
template <typename T> void writeStruct(const T &source, T *target) {
    const size_t size = target->struct_size;
    auto *bytes = reinterpret_cast<unsigned char *>(target);
    std::memcpy(bytes + sizeof(size_t), reinterpret_cast<const unsigned char *>(&source) + sizeof(size_t),
                std::min(size, sizeof(T)) - sizeof(size_t));
    if (size > sizeof(T)) {
        std::memset(bytes + sizeof(T), 0, size - sizeof(T));
    }
}

// A caller's array, whose elements lie struct_size of the first one apart. T may be const.
template <typename T> class StructArray {
public:
    StructArray(T *first, const char *name) : first_(first), name_(name), stride_(structSizeOf(first, argument(0))) {}

    std::string argument(size_t index) const { return name_ + ("[" + std::to_string(index) + "]"); }

    // Throws ABI_MISMATCH if the element's size is not the first one's.
    T *at(size_t index) const {
        using Byte = std::conditional_t<std::is_const_v<T>, const unsigned char, unsigned char>;
        T *element = reinterpret_cast<T *>(reinterpret_cast<Byte *>(first_) + index * stride_);
        if (element->struct_size != stride_) {
            failOtherSize(element->struct_size, argument(index), stride_, argument(0));
        }
        return element;
    }

private:
    T *first_;
    const char *name_;
    size_t stride_;
};

}  // namespace q3
