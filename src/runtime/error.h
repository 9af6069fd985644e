// Errors inside the library are exceptions of one type; guard() (src/api) turns them into a status at the C boundary.
#pragma once

#include <cstddef>
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

// Like snprintf, but ignores the locale: numbers are written with a decimal point in every program.
void formatText(char *text, size_t size, const char *format, ...) noexcept __attribute__((format(printf, 3, 4)));

// What the system's error number means, in English whatever the program's locale.
std::string systemReason(int error_number);

// Throws an Error with a text that is formatted as formatText does it.
[[noreturn]] void fail(int32_t status, const char *format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace q3
