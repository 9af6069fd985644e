#include "runtime/thread_text.h"

#include <cstdlib>

namespace q3 {

ThreadText::ThreadText(size_t bytes) noexcept : bytes_(bytes), made_(pthread_key_create(&key_, std::free) == 0) {}

ThreadText::~ThreadText() {
    if (made_) {
        pthread_key_delete(key_);
    }
}

const char *ThreadText::existing() const noexcept {
    return made_ ? static_cast<const char *>(pthread_getspecific(key_)) : nullptr;
}

char *ThreadText::buffer() const noexcept {
    if (!made_) {
        return nullptr;
    }
    auto *text = static_cast<char *>(pthread_getspecific(key_));
    if (text == nullptr) {
        text = static_cast<char *>(std::calloc(1, bytes_));
        if (text == nullptr || pthread_setspecific(key_, text) != 0) {
            std::free(text);
            return nullptr;
        }
    }
    return text;
}

}  // namespace q3
