#include "ops/cpu/host_buffer.h"

#include <sys/mman.h>

#include <algorithm>

#include "runtime/error.h"

namespace q3::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kPage = 4096;

}  // namespace

// mmap gives zeroed pages that cost nothing until touched. Large buffers ask for huge pages: a decode step streams the
// weights once, and with 4 KiB pages it also streams their page tables.
HostBuffer::HostBuffer(size_t bytes) {
    if (bytes == 0) {
        return;
    }
    const bool huge = bytes >= 2 * kHugePage;
    // Whole pages of 4 KiB only: rounding every tensor up to 2 MiB would waste a tenth of a small quantised model.
    const size_t size = huge ? (bytes + kPage - 1) / kPage * kPage : bytes;
    const size_t slack = huge ? kHugePage : 0;
    void *mapped = mmap(nullptr, size + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) {
        fail(QWEN3_STATUS_OUT_OF_MEMORY, "out of memory: could not allocate %zu bytes", bytes);
    }
    auto *start = static_cast<char *>(mapped);
    if (huge) {  // trim to a 2 MiB boundary
        const size_t head = (kHugePage - reinterpret_cast<size_t>(start) % kHugePage) % kHugePage;
        if (head > 0) {
            munmap(start, head);
        }
        if (slack > head) {
            munmap(start + head + size, slack - head);
        }
        start += head;
        madvise(start, size, MADV_HUGEPAGE);  // a hint: refusal changes nothing but speed
    }
    data_ = start;
    bytes_ = size;
}

HostBuffer::~HostBuffer() {
    if (data_ != nullptr && slab_ == nullptr) {
        munmap(data_, bytes_);
    }
}

HostBuffer Arena::allocate(size_t bytes) {
    constexpr size_t kSlab = 32 * kHugePage;  // what is not touched of it takes no memory
    if (bytes == 0 || bytes > kSlab / 4) {
        return HostBuffer(bytes);
    }
    if (slab_ == nullptr || bytes > slab_->bytes() - used_) {
        slab_ = std::make_shared<HostBuffer>(kSlab);
        used_ = 0;
    }
    HostBuffer result;
    result.data_ = slab_->as<char>() + used_;
    result.bytes_ = bytes;
    result.slab_ = slab_;
    used_ += std::min(slab_->bytes() - used_, (bytes + kPage - 1) / kPage * kPage);
    return result;
}

}  // namespace q3::cpu
