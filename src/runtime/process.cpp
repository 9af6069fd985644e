#include "runtime/process.h"

#include "runtime/error.h"

namespace q3 {

void HomeProcess::require() const {
    if (left()) {
        fail(QWEN3_STATUS_DEVICE_NOT_INITIALIZED,
             "the model was created by process %d, and this is process %d, made by fork(), which copies no threads: "
             "create models after fork(), or start processes by exec (Python: the start method \"spawn\")",
             static_cast<int>(id_), static_cast<int>(getpid()));
    }
}

}  // namespace q3
