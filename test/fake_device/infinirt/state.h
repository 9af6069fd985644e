// What the files of the fake libinfinirt.so share. See ../core.h for what the other libraries may use.
#pragma once

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "../core.h"

namespace fake {

constexpr size_t kArenaBytes = size_t(1) << 36;  // addresses of one device; never used twice

struct Allocation {
    size_t size;
    int device;
    char *data;
};

struct Stream;

// What a stream is recording, and what a graph is made of. A broken rule spoils a recording.
struct Capture {
    std::vector<Task> tasks;
    int device = 0;
    bool broken = false;
};

struct Device {
    char *arena = nullptr;  // no access: the host cannot touch it
    size_t arena_used = 0;
    size_t bytes = 0, peak = 0;
    Stream *default_stream = nullptr;
};

// Everything below is guarded by State::mutex, except what a running task does.
struct Stream {
    explicit Stream(int device_) : device(device_) {}
    int device;
    std::deque<std::shared_ptr<Task>> queue;  // the front one stays while it runs
    uint64_t enqueued = 0, done = 0;
    uint64_t wanted = 0;  // tasks that somebody waits for
    bool stop = false;
    infiniStatus_t error = INFINI_STATUS_SUCCESS;  // of a task, until a synchronisation reports it
    std::shared_ptr<Capture> capture;              // while it records
};

struct Event {
    int device;
    Stream *stream = nullptr;
    uint64_t mark = 0;  // reached when stream->done is
};

struct State {
    std::mutex mutex;
    std::condition_variable changed;
    infiniDevice_t type = INFINI_DEVICE_NVIDIA;
    size_t memory = 0;
    enum { Lazy, Eager, Jitter } mode = Lazy;
    std::vector<Device> devices;
    std::map<uintptr_t, Allocation> allocations;  // device memory by address
    std::map<uintptr_t, size_t> host;             // pinned host memory
    std::unordered_map<const void *, Kind> objects;
    std::unordered_set<Stream *> streams;
    std::map<std::string, int64_t> counters, live, failures;
    std::deque<std::string> violations;
    std::string calls;
    std::map<std::string, int> quirks;
    bool lost = false;
    int64_t host_bytes = 0;

    State();
};

State &state();

using Lock = std::unique_lock<std::mutex>;

struct ThreadDevice {
    infiniDevice_t type = INFINI_DEVICE_CPU;
    int id = 0;
};
extern thread_local ThreadDevice t_device;
// A task that runs on what an earlier one failed to write, such as indices, breaks no rule.
extern thread_local bool t_after_failure;

const char *typeName(infiniDevice_t type);
// The device whose memory this address is, or -1 for host memory.
int deviceOf(const void *pointer);

// ------------------------------------------------------------------ with State::mutex locked

infiniStatus_t violationLocked(const std::string &text);
// A violation, and the end of the recording, if a stream of the calling thread's device records.
bool forbiddenWhileCapturingLocked(const char *what);
bool forbiddenWhileCapturing(const char *what);
// Failures may be of one device only.
bool injectedLocked(const char *kind, int device);
bool injectedLocked(const char *kind);

Stream *newStream(int device);
// The stream of the calling thread's device, or null after recording a violation.
Stream *useStream(infinirtStream_t handle, const char *what);
// Waits until `mark` tasks of the stream have run, and takes the stream's error.
infiniStatus_t waitFor(Lock &lock, Stream *stream, uint64_t mark);
// As a call of the user: it may be the one that is to fail, though only after waiting.
infiniStatus_t synchronize(Lock &lock, Stream *stream, uint64_t mark);
infiniStatus_t enqueueLocked(Stream *stream, Task task);

}  // namespace fake

// ------------------------------------------------------------------ how the C API's functions begin

#define FAKE_ENTER()                                                                                                   \
    if (!fake::enter(__func__)) {                                                                                      \
        return INFINI_STATUS_INTERNAL_ERROR;                                                                           \
    }
#define FAKE_FAIL(kind)                                                                                                \
    if (fake::injected(kind)) {                                                                                        \
        return INFINI_STATUS_INTERNAL_ERROR;                                                                           \
    }
// For calls that wait, or that allocate: CUDA refuses them while a stream of the thread records.
#define FAKE_NOT_CAPTURING()                                                                                           \
    if (fake::forbiddenWhileCapturing(__func__)) {                                                                     \
        return INFINI_STATUS_INTERNAL_ERROR;                                                                           \
    }
#define FAKE_DEVICE()                                                                                                  \
    const int device = fake::currentDevice();                                                                          \
    (void)device;                                                                                                      \
    if (device < 0) {                                                                                                  \
        return fake::violation("%s: the calling thread has set no %s device", __func__,                                \
                               fake::typeName(fake::deviceType()));                                                    \
    }
