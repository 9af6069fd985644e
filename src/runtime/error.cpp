#include "runtime/error.h"

#include <cstdarg>
#include <cstdio>

namespace q3 {

void fail(int32_t status, const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    std::vsnprintf(text, sizeof text, format, args);
    va_end(args);
    throw Error(status, text);
}

}  // namespace q3
