#include "runtime/error.h"

#include <locale.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace q3 {
namespace {

// The C locale, made when the library is loaded. That takes no memory with the C libraries of Linux.
const locale_t kPlain = newlocale(LC_ALL_MASK, "C", nullptr);

// The C locale for this thread and a scope.
class PlainLocale {
public:
    PlainLocale() noexcept : saved_(kPlain == nullptr ? nullptr : uselocale(kPlain)) {}
    ~PlainLocale() {
        if (saved_ != nullptr) {
            uselocale(saved_);
        }
    }
    PlainLocale(const PlainLocale &) = delete;
    PlainLocale &operator=(const PlainLocale &) = delete;

private:
    locale_t saved_;
};

}  // namespace

void formatText(char *text, size_t size, const char *format, ...) noexcept {
    const PlainLocale plain;
    va_list args;
    va_start(args, format);
    std::vsnprintf(text, size, format, args);
    va_end(args);
}

std::string systemReason(int error_number) {
    const PlainLocale plain;
    char text[128];
    return strerror_r(error_number, text, sizeof text);
}

void fail(int32_t status, const char *format, ...) {
    char text[512];
    {
        const PlainLocale plain;
        va_list args;
        va_start(args, format);
        std::vsnprintf(text, sizeof text, format, args);
        va_end(args);
    }
    throw Error(status, text);
}

}  // namespace q3
