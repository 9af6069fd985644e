// What the fake libinfinirt.so, libinfiniop.so and libinfiniccl.so share: devices, memory, streams and bookkeeping.
// All of it lives in libinfinirt.so.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "infinirt.h"

// Which of InfiniCore's headers this is compiled with: those of 0.1.0, or the declarations in include/.
#if __has_include("infiniop/ops/paged_caching.h")
#define FAKE_NEWER 1
#else
#define FAKE_NEWER 0
#endif

#define FAKE_EXPORT __attribute__((visibility("default")))

namespace fake {

// ------------------------------------------------------------------ bookkeeping

// Counts and records a call; false: the device is lost and the call must fail.
FAKE_EXPORT bool enter(const char *function);
FAKE_EXPORT bool lost();
// Whether the call of this kind that is happening now is the one that was to fail.
FAKE_EXPORT bool injected(const char *kind);
// Records a broken rule. Returns the status that the call then fails with.
FAKE_EXPORT infiniStatus_t violation(const char *format, ...) __attribute__((format(printf, 1, 2)));
// Whether a way in which real devices misbehave is switched on; its number, or 1.
FAKE_EXPORT int quirk(const char *name);

enum class Kind { Stream, Event, Handle, Descriptor, Tensor, Comm, Graph, GraphExec };
FAKE_EXPORT void born(Kind kind, const void *object);
FAKE_EXPORT bool alive(Kind kind, const void *object);
FAKE_EXPORT void died(Kind kind, const void *object);

// ------------------------------------------------------------------ devices and memory

// The calling thread's device: 0, 1, ... of the fake type, or -1 when another type is current.
FAKE_EXPORT int currentDevice();
FAKE_EXPORT infiniDevice_t deviceType();
FAKE_EXPORT int deviceCount();

// The memory behind [pointer, pointer + bytes) of a device, or null after recording a violation.
FAKE_EXPORT char *backing(int device, const void *pointer, size_t bytes, const char *what);

// ------------------------------------------------------------------ streams

struct Range {
    uintptr_t begin, end;
};

struct Task {
    std::string name;
    std::function<infiniStatus_t()> run;
    std::vector<Range> uses;           // memory, host or device
    const void *descriptor = nullptr;  // must live until the task has run
    std::function<void()> skipped;     // called instead of run when the task fails without having run
};

// Runs the task later, on the stream's thread. `stream` null: the device's default stream. Fails with a recorded
// violation when the stream is not one of the calling thread's device.
FAKE_EXPORT infiniStatus_t enqueue(infinirtStream_t stream, Task task, const char *what);
// Whether that stream records a graph: tasks are then kept instead of run.
FAKE_EXPORT bool capturing(infinirtStream_t stream);
// Records a broken rule of recording, and spoils what the calling thread's device records.
FAKE_EXPORT void forbidCapture(const char *what);
// Counts something: "copies.hidden".
FAKE_EXPORT void count(const char *name, int64_t n);
// Does not wait for anybody to ask for the result.
FAKE_EXPORT void startNow(infinirtStream_t stream);
// A violation if a task that has not run yet uses the object.
FAKE_EXPORT void checkUnused(const void *descriptor, const char *what);

}  // namespace fake
