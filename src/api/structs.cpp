#include "api/structs.h"

#include "runtime/error.h"

namespace q3 {

void checkStructSize(size_t size, size_t first, size_t ours, const char *type, const std::string &argument) {
    if (size < first || size > kLargestStruct || size % alignof(size_t) != 0) {
        fail(QWEN3_STATUS_ABI_MISMATCH,
             "%s.struct_size is %zu, must be a multiple of %zu from %zu to %zu: a %s has %zu bytes in version %s",
             argument.c_str(), size, alignof(size_t), first, kLargestStruct, type, ours, QWEN3_VERSION_STRING);
    }
}

void failUnknownMembers(size_t size, size_t ours, const char *type, const std::string &argument) {
    fail(
        QWEN3_STATUS_ABI_MISMATCH,
        "%s.struct_size is %zu, and not all is zero beyond the %zu bytes of a %s that version %s of the library knows: "
        "it lacks what these members ask for",
        argument.c_str(), size, ours, type, QWEN3_VERSION_STRING);
}

void failOtherSize(size_t size, const std::string &argument, size_t first_size, const std::string &first_argument) {
    fail(QWEN3_STATUS_ABI_MISMATCH, "%s.struct_size is %zu, must be %zu as in %s", argument.c_str(), size, first_size,
         first_argument.c_str());
}

}  // namespace q3
