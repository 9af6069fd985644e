// Errors inside the library are exceptions of one type; guard() (src/api) turns them into a status at the C boundary.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "infinicore_infer/models/qwen3.h"

namespace q3 {

class Error : public std::runtime_error {
public:
    Error(int32_t status, const std::string &message) : std::runtime_error(message), status_(status) {}
    int32_t status() const noexcept { return status_; }

private:
    int32_t status_;
};

// printf-style constructor of an Error's text, thrown at once.
[[noreturn]] void fail(int32_t status, const char *format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace q3
