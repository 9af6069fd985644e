// The runtime of the fake accelerator: libinfinirt's C API and the control API.
#include "core.h"

#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#include "fake_infini_control.h"

namespace fake {
namespace {

constexpr size_t kArenaBytes = size_t(1) << 36;  // addresses of one device; never used twice
constexpr size_t kPage = 4096;
constexpr const char *kTypeNames[] = {"cpu",   "nvidia", "cambricon", "ascend", "metax", "moore", "iluvatar", "kunlun",
#if FAKE_NEWER
                                      "hygon", "qy",     "ali"
#else
                                      "sugon"
#endif
};
constexpr const char *kFailures[] = {"malloc",     "malloc_host", "copy", "launch", "sync",   "stream",
                                     "set_device", "count",       "init", "handle", "tensor", "descriptor",
                                     "workspace",  "execute",     "lost", "comm",   "link"};
constexpr const char *kKindNames[] = {"live.stream",     "live.event",  "live.handle",
                                      "live.descriptor", "live.tensor", "live.comm"};

const char *environment(const char *name, const char *fallback) {
    const char *value = std::getenv(name);
    return value != nullptr ? value : fallback;
}

struct Allocation {
    size_t size;
    int device;
    char *data;
};

struct Stream;

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

// Never destroyed: streams' threads run until the process is gone.
State &state() {
    static State *const instance = new State;
    return *instance;
}

using Lock = std::unique_lock<std::mutex>;

// Splits "a:1,b" and hands out name and number (`fallback` if there is none).
void forEachSetting(const char *text, int64_t fallback, const std::function<void(const std::string &, int64_t)> &use) {
    for (std::string rest = text; !rest.empty();) {
        const size_t end = std::min(rest.find(','), rest.size());
        const std::string item = rest.substr(0, end);
        rest.erase(0, end + 1);
        const size_t colon = std::min(item.find(':'), item.size());
        if (!item.empty()) {
            use(item.substr(0, colon), colon < item.size() ? std::atoll(item.c_str() + colon + 1) : fallback);
        }
    }
}

// What the kernels of InfiniCore 0.1.0 get wrong or lack, by device type. Of newer versions none is taken for granted.
const char *defaultQuirks(infiniDevice_t type) {
    if (FAKE_NEWER != 0) {
        return "";
    }
    switch (type) {
    case INFINI_DEVICE_NVIDIA:
    case INFINI_DEVICE_METAX:
    case INFINI_DEVICE_ILUVATAR:
        return "softmax_block:512,rearrange_dims:3,rearrange_vectors";
    case INFINI_DEVICE_ASCEND:
        return "no_rope_neox,no_add";
    case INFINI_DEVICE_CAMBRICON:
    case INFINI_DEVICE_KUNLUN:
        return "no_rope_neox";
    case INFINI_DEVICE_MOORE:
        return "no_add,softmax_block:512,rearrange_dims:3,rearrange_vectors";
    default:
        return "";
    }
}

State::State() {
    const std::string name = environment("FAKE_INFINI_DEVICE", "nvidia");
    for (int i = 0; i < int(sizeof kTypeNames / sizeof *kTypeNames); ++i) {
        if (name == kTypeNames[i]) {
            type = static_cast<infiniDevice_t>(i);
        }
    }
    devices.resize(size_t(std::atoi(environment("FAKE_INFINI_COUNT", "1"))));
    memory = size_t(std::atoll(environment("FAKE_INFINI_MEMORY", "4294967296")));
    const std::string when = environment("FAKE_INFINI_STREAM", "lazy");
    mode = when == "eager" ? Eager : when == "jitter" ? Jitter : Lazy;
    forEachSetting(environment("FAKE_INFINI_QUIRKS", defaultQuirks(type)), 1,
                   [this](const std::string &key, int64_t value) { quirks[key] = int(value); });
    forEachSetting(environment("FAKE_INFINI_FAIL", ""), 1,
                   [this](const std::string &key, int64_t value) { failures[key] = value; });
    for (Device &device : devices) {
        void *arena = mmap(nullptr, kArenaBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (arena == MAP_FAILED) {
            std::perror("fake_infini: mmap");
            std::abort();
        }
        device.arena = static_cast<char *>(arena);
    }
}

struct ThreadDevice {
    infiniDevice_t type = INFINI_DEVICE_CPU;
    int id = 0;
};
thread_local ThreadDevice t_device;

// The device whose memory this address is, or -1 for host memory.
int deviceOf(const void *pointer) {
    const State &s = state();
    for (size_t i = 0; i < s.devices.size(); ++i) {
        const char *const arena = s.devices[i].arena, *const p = static_cast<const char *>(pointer);
        if (p >= arena && p < arena + kArenaBytes) {
            return int(i);
        }
    }
    return -1;
}

infiniStatus_t violationLocked(const std::string &text) {
    State &s = state();
    if (s.violations.size() < 1000) {
        s.violations.push_back(text);
        std::fprintf(stderr, "fake_infini: %s\n", text.c_str());
    }
    ++s.counters["violations"];
    return INFINI_STATUS_INTERNAL_ERROR;
}

// Failures may be of one device only.
bool injectedLocked(const char *kind, int device) {
    State &s = state();
    bool hit = false;
    for (const std::string &name : {std::string(kind), std::string(kind) + "@" + std::to_string(device)}) {
        const auto it = s.failures.find(name);
        hit |= it != s.failures.end() && it->second > 0 && --it->second == 0;
    }
    s.counters["hits"] += hit ? 1 : 0;
    return hit;
}

bool injectedLocked(const char *kind) {
    return injectedLocked(kind, currentDevice());
}

void loseDevices() {
    State &s = state();
    s.lost = true;
    for (Stream *stream : s.streams) {  // a running task stays, its thread removes it
        const bool busy = !stream->queue.empty();
        stream->done += stream->queue.size() - busy;
        stream->queue.resize(busy ? 1 : 0);
        stream->error = INFINI_STATUS_INTERNAL_ERROR;
    }
    s.changed.notify_all();
}

// A task that runs on what an earlier one failed to write, such as indices, breaks no rule.
thread_local bool t_after_failure = false;

void runStream(Stream *stream) {
    State &s = state();
    Lock lock(s.mutex);
    for (;;) {
        s.changed.wait(lock, [&] {
            return stream->stop ||
                   (!stream->queue.empty() && (s.mode != State::Lazy || s.lost || stream->done < stream->wanted));
        });
        if (stream->queue.empty()) {
            s.streams.erase(stream);
            delete stream;
            return;
        }
        const std::shared_ptr<Task> task = stream->queue.front();
        infiniStatus_t status = INFINI_STATUS_SUCCESS;
        ++s.counters["executed"];
        if (s.lost || injectedLocked("execute", stream->device)) {
            status = INFINI_STATUS_INTERNAL_ERROR;
            if (task->skipped) {
                lock.unlock();
                task->skipped();
                lock.lock();
            }
        } else {
            lock.unlock();
            if (s.mode == State::Jitter) {
                std::this_thread::sleep_for(std::chrono::microseconds(std::rand() % 100));
            }
            t_after_failure = stream->error != INFINI_STATUS_SUCCESS;
            status = task->run();
            t_after_failure = false;
            lock.lock();
        }
        if (stream->error == INFINI_STATUS_SUCCESS) {
            stream->error = status;
        }
        stream->queue.pop_front();
        ++stream->done;
        s.changed.notify_all();
    }
}

Stream *newStream(int device) {
    auto *const stream = new Stream(device);
    state().streams.insert(stream);
    std::thread(runStream, stream).detach();
    return stream;
}

// The stream of the calling thread's device, or null after recording a violation.
Stream *useStream(infinirtStream_t handle, const char *what) {
    State &s = state();
    const int device = currentDevice();
    if (device < 0) {
        violationLocked(std::string(what) + ": the calling thread's current device is " +
                        kTypeNames[std::min<size_t>(t_device.type, 8)] + ":" + std::to_string(t_device.id));
        return nullptr;
    }
    if (handle == nullptr) {
        Stream *&stream = s.devices[size_t(device)].default_stream;
        return stream != nullptr ? stream : stream = newStream(device);
    }
    const auto it = s.objects.find(handle);
    if (it == s.objects.end() || it->second != Kind::Stream) {
        violationLocked(std::string(what) + ": no such stream");
        return nullptr;
    }
    auto *const stream = static_cast<Stream *>(handle);
    if (stream->device != device) {
        violationLocked(std::string(what) + ": stream of device " + std::to_string(stream->device) +
                        " used while device " + std::to_string(device) + " is current");
        return nullptr;
    }
    return stream;
}

// Waits until `mark` tasks of the stream have run, and takes the stream's error.
infiniStatus_t waitFor(Lock &lock, Stream *stream, uint64_t mark) {
    State &s = state();
    stream->wanted = std::max(stream->wanted, mark);
    s.changed.notify_all();
    s.changed.wait(lock, [&] { return stream->done >= mark; });
    const infiniStatus_t error = stream->error;
    stream->error = INFINI_STATUS_SUCCESS;
    return s.lost ? INFINI_STATUS_INTERNAL_ERROR : error;
}

// As a call of the user: it may be the one that is to fail, though only after waiting.
infiniStatus_t synchronize(Lock &lock, Stream *stream, uint64_t mark) {
    const infiniStatus_t status = waitFor(lock, stream, mark);
    return injectedLocked("sync") ? INFINI_STATUS_INTERNAL_ERROR : status;
}

infiniStatus_t enqueueLocked(Stream *stream, Task task) {
    stream->queue.push_back(std::make_shared<Task>(std::move(task)));
    ++stream->enqueued;
    state().changed.notify_all();
    return INFINI_STATUS_SUCCESS;
}

// Freeing memory that a stream has yet to use is an error; the tasks are run first so that they still find it.
void checkMemoryUnused(Lock &lock, uintptr_t begin, uintptr_t end, const char *what) {
    State &s = state();
    for (bool again = !s.lost; again;) {  // a lost device does nothing any more
        again = false;
        for (Stream *stream : s.streams) {
            for (const auto &task : stream->queue) {
                const bool uses = std::any_of(task->uses.begin(), task->uses.end(), [&](const Range &range) {
                    return range.begin < end && begin < range.end;
                });
                if (uses) {
                    violationLocked(std::string(what) + ": memory is freed before " + task->name + " has used it");
                    const infiniStatus_t error = waitFor(lock, stream, stream->enqueued);
                    stream->error = error;
                    again = true;
                    break;
                }
            }
            if (again) {
                break;
            }
        }
    }
}

// A fingerprint of host memory, or 0 when it cannot be read.
uint64_t fingerprint(const void *data, size_t size) {
    std::vector<char> copy(size);
    const iovec local{copy.data(), size}, remote{const_cast<void *>(data), size};
    if (process_vm_readv(getpid(), &local, 1, &remote, 1, 0) != ssize_t(size)) {
        return 0;
    }
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i + 8 <= size; i += 8) {
        uint64_t word;
        std::memcpy(&word, &copy[i], 8);
        hash = (hash ^ word) * 1099511628211u;
        hash ^= hash >> 29;
    }
    for (size_t i = size & ~size_t(7); i < size; ++i) {
        hash = (hash ^ uint8_t(copy[i])) * 1099511628211u;
    }
    return hash | 1;
}

infiniStatus_t copyTask(const char *function, void *dst, const void *src, size_t size, infinirtMemcpyKind_t kind,
                        Task &task) {
    static const char *const names[] = {"copies.h2h", "copies.h2d", "copies.d2h", "copies.d2d"};
    const int device = currentDevice();
    const bool from_device = kind == INFINIRT_MEMCPY_D2H || kind == INFINIRT_MEMCPY_D2D;
    const bool to_device = kind == INFINIRT_MEMCPY_H2D || kind == INFINIRT_MEMCPY_D2D;
    if (kind < INFINIRT_MEMCPY_H2H || kind > INFINIRT_MEMCPY_D2D) {
        return INFINI_STATUS_BAD_PARAM;
    }
    if (size == 0) {
        task.run = [] { return INFINI_STATUS_SUCCESS; };
        return INFINI_STATUS_SUCCESS;
    }
    if (device < 0) {
        return violation("%s: the calling thread has set no %s device", function, kTypeNames[deviceType()]);
    }
    const auto resolve = [&](const void *pointer, bool on_device, const char *what) -> char * {
        if (on_device) {
            return backing(device, pointer, size, what);
        }
        if (pointer == nullptr || deviceOf(pointer) >= 0) {
            violation("%s: %s is %s, not host memory", function, what, pointer == nullptr ? "null" : "device memory");
            return nullptr;
        }
        return static_cast<char *>(const_cast<void *>(pointer));
    };
    const char *const from = resolve(src, from_device, "the source");
    char *const to = resolve(dst, to_device, "the destination");
    if (from == nullptr || to == nullptr) {
        return INFINI_STATUS_INTERNAL_ERROR;
    }
    if (kind == INFINIRT_MEMCPY_D2D && from < to + size && to < from + size) {
        return violation("%s: source and destination overlap", function);
    }
    const uint64_t before = from_device ? 0 : fingerprint(from, size);
    if (!from_device && before == 0) {
        return violation("%s: the source cannot be read", function);
    }
    if (!to_device) {
        std::memset(to, 0xff, size);  // read too early, it is NaN
    }
    task.name = function;
    const auto range = [&](const void *p) { return Range{uintptr_t(p), uintptr_t(p) + size}; };
    task.uses = {range(src), range(dst)};
    task.run = [=] {
        if (!from_device && fingerprint(from, size) != before) {
            return violation("%s: the host changed the source before the stream had read it", function);
        }
        std::memcpy(to, from, size);
        return INFINI_STATUS_SUCCESS;
    };
    const Lock lock(state().mutex);
    ++state().counters[names[kind]];
    return INFINI_STATUS_SUCCESS;
}

}  // namespace

// ------------------------------------------------------------------ shared with the other libraries

bool enter(const char *function) {
    State &s = state();
    const Lock lock(s.mutex);
    ++s.counters[std::string("calls.") + function];
    if (s.calls.size() < (size_t(1) << 24)) {
        s.calls.append(function).push_back('\n');
    }
    if (!s.lost && injectedLocked("lost")) {
        loseDevices();
    }
    return !s.lost;
}

bool lost() {
    const Lock lock(state().mutex);
    return state().lost;
}

bool injected(const char *kind) {
    const Lock lock(state().mutex);
    return injectedLocked(kind);
}

infiniStatus_t violation(const char *format, ...) {
    if (t_after_failure) {
        return INFINI_STATUS_INTERNAL_ERROR;
    }
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    const Lock lock(state().mutex);
    return violationLocked(text);
}

int quirk(const char *name) {
    const auto it = state().quirks.find(name);
    return it == state().quirks.end() ? 0 : it->second;
}

void born(Kind kind, const void *object) {
    const Lock lock(state().mutex);
    state().objects[object] = kind;
    ++state().live[kKindNames[int(kind)]];
}

bool alive(Kind kind, const void *object) {
    const Lock lock(state().mutex);
    const auto it = state().objects.find(object);
    return it != state().objects.end() && it->second == kind;
}

void died(Kind kind, const void *object) {
    const Lock lock(state().mutex);
    state().objects.erase(object);
    --state().live[kKindNames[int(kind)]];
}

int currentDevice() {
    return t_device.type == state().type && t_device.id >= 0 && t_device.id < deviceCount() ? t_device.id : -1;
}

infiniDevice_t deviceType() {
    return state().type;
}

int deviceCount() {
    return int(state().devices.size());
}

char *backing(int device, const void *pointer, size_t bytes, const char *what) {
    State &s = state();
    const Lock lock(s.mutex);
    const int owner = deviceOf(pointer);
    const auto address = uintptr_t(pointer);
    char text[200];
    if (owner != device) {
        std::snprintf(text, sizeof text, "%s: %p is %s, not memory of device %d", what, pointer,
                      pointer == nullptr ? "null"
                      : owner < 0        ? "host memory"
                                         : "memory of another device",
                      device);
        violationLocked(text);
        return nullptr;
    }
    auto it = s.allocations.upper_bound(address);
    if (it != s.allocations.begin() && address < std::prev(it)->first + std::prev(it)->second.size) {
        --it;
        if (bytes <= it->first + it->second.size - address) {
            return it->second.data + (address - it->first);
        }
        std::snprintf(text, sizeof text, "%s: %zu bytes at offset %zu of an allocation of %zu", what, bytes,
                      size_t(address - it->first), it->second.size);
    } else {
        std::snprintf(text, sizeof text, "%s: %p is not allocated", what, pointer);
    }
    violationLocked(text);
    return nullptr;
}

infiniStatus_t enqueue(infinirtStream_t handle, Task task, const char *what) {
    const Lock lock(state().mutex);
    Stream *const stream = useStream(handle, what);
    return stream == nullptr ? INFINI_STATUS_INTERNAL_ERROR : enqueueLocked(stream, std::move(task));
}

void startNow(infinirtStream_t handle) {
    const Lock lock(state().mutex);
    if (Stream *const stream = useStream(handle, "startNow")) {
        stream->wanted = stream->enqueued;
        state().changed.notify_all();
    }
}

void checkUnused(const void *descriptor, const char *what) {
    State &s = state();
    Lock lock(s.mutex);
    for (Stream *stream : s.streams) {
        for (const auto &task : stream->queue) {
            if (task->descriptor == descriptor && !s.lost) {
                violationLocked(std::string(what) + ": destroyed before the stream has run it");
                const infiniStatus_t error = waitFor(lock, stream, stream->enqueued);
                stream->error = error;
                return;
            }
        }
    }
}

}  // namespace fake

// ------------------------------------------------------------------ control API

extern "C" {

FAKE_EXPORT int64_t fake_infini_get(const char *name) {
    fake::State &s = fake::state();
    const fake::Lock lock(s.mutex);
    const std::string key = name;
    int64_t total = 0;
    if (key == "live.device") {
        return int64_t(s.allocations.size());
    }
    if (key == "live.host") {
        return int64_t(s.host.size());
    }
    if (key == "bytes.host") {
        return s.host_bytes;
    }
    if (key == "bytes.device" || key == "peak.device") {
        for (const fake::Device &device : s.devices) {
            total += int64_t(key == "bytes.device" ? device.bytes : device.peak);
        }
        return total;
    }
    const auto &map = key.compare(0, 5, "live.") == 0 ? s.live : s.counters;
    const auto it = map.find(key);
    return it == map.end() ? 0 : it->second;
}

FAKE_EXPORT const char *fake_infini_violation(size_t index) {
    fake::State &s = fake::state();
    const fake::Lock lock(s.mutex);
    return index < s.violations.size() ? s.violations[index].c_str() : nullptr;
}

FAKE_EXPORT size_t fake_infini_calls(char *buffer, size_t size) {
    fake::State &s = fake::state();
    const fake::Lock lock(s.mutex);
    if (size > 0) {
        const size_t n = std::min(size - 1, s.calls.size());
        std::memcpy(buffer, s.calls.data(), n);
        buffer[n] = 0;
    }
    return s.calls.size();
}

FAKE_EXPORT void fake_infini_reset(void) {
    fake::State &s = fake::state();
    const fake::Lock lock(s.mutex);
    s.counters.clear();
    s.violations.clear();
    s.calls.clear();
    for (fake::Device &device : s.devices) {
        device.peak = device.bytes;
    }
}

FAKE_EXPORT int fake_infini_fail(const char *kind, int64_t n) {
    fake::State &s = fake::state();
    const fake::Lock lock(s.mutex);
    const std::string name = kind, base = name.substr(0, name.find('@'));
    if (std::find(std::begin(fake::kFailures), std::end(fake::kFailures), base) == std::end(fake::kFailures)) {
        return -1;
    }
    s.failures[name] = n;
    if (name == "lost" && n == 0) {
        s.lost = false;
        for (fake::Stream *stream : s.streams) {
            stream->error = INFINI_STATUS_SUCCESS;
        }
    }
    return 0;
}

// ------------------------------------------------------------------ devices

#define FAKE_ENTER()                                                                                                   \
    if (!fake::enter(__func__)) {                                                                                      \
        return INFINI_STATUS_INTERNAL_ERROR;                                                                           \
    }
#define FAKE_FAIL(kind)                                                                                                \
    if (fake::injected(kind)) {                                                                                        \
        return INFINI_STATUS_INTERNAL_ERROR;                                                                           \
    }
#define FAKE_DEVICE()                                                                                                  \
    const int device = fake::currentDevice();                                                                          \
    (void)device;                                                                                                      \
    if (device < 0) {                                                                                                  \
        return fake::violation("%s: the calling thread has set no %s device", __func__,                                \
                               fake::kTypeNames[fake::deviceType()]);                                                  \
    }

infiniStatus_t infinirtInit() {
    FAKE_ENTER()
    FAKE_FAIL("init")
    return INFINI_STATUS_SUCCESS;
}

infiniStatus_t infinirtGetAllDeviceCount(int *count_array) {
    FAKE_ENTER()
    if (count_array == nullptr) {
        return INFINI_STATUS_NULL_POINTER;
    }
    for (int i = 0; i < INFINI_DEVICE_TYPE_COUNT; ++i) {
        count_array[i] = i == fake::deviceType() ? fake::deviceCount() : 0;
    }
    return INFINI_STATUS_SUCCESS;
}

infiniStatus_t infinirtGetDeviceCount(infiniDevice_t type, int *count) {
    FAKE_ENTER()
    FAKE_FAIL("count")
    if (count == nullptr) {
        return INFINI_STATUS_NULL_POINTER;
    }
    if (type != fake::deviceType() && type != INFINI_DEVICE_CPU) {
        return INFINI_STATUS_DEVICE_TYPE_NOT_SUPPORTED;
    }
    *count = type == fake::deviceType() ? fake::deviceCount() : 0;  // no CPU device here
    return INFINI_STATUS_SUCCESS;
}

// As in 0.1.0, a call that fails changes the thread's device all the same.
infiniStatus_t infinirtSetDevice(infiniDevice_t type, int id) {
    const bool ok = fake::enter(__func__);
    fake::t_device = {type, id};
    if (type == INFINI_DEVICE_CPU && fake::deviceType() != INFINI_DEVICE_CPU) {
        return INFINI_STATUS_SUCCESS;
    }
    if (type != fake::deviceType()) {
        return INFINI_STATUS_DEVICE_TYPE_NOT_SUPPORTED;
    }
    if (!ok || fake::injected("set_device") || id < 0 || id >= fake::deviceCount()) {
        return INFINI_STATUS_INTERNAL_ERROR;
    }
    return INFINI_STATUS_SUCCESS;
}

infiniStatus_t infinirtGetDevice(infiniDevice_t *type, int *id) {
    if (type == nullptr && id == nullptr) {
        return INFINI_STATUS_NULL_POINTER;
    }
    if (type != nullptr) {
        *type = fake::t_device.type;
    }
    if (id != nullptr) {
        *id = fake::t_device.id;
    }
    return INFINI_STATUS_SUCCESS;
}

infiniStatus_t infinirtDeviceSynchronize() {
    FAKE_ENTER()
    FAKE_DEVICE()
    fake::State &s = fake::state();
    fake::Lock lock(s.mutex);
    infiniStatus_t result = INFINI_STATUS_SUCCESS;
    const std::vector<fake::Stream *> streams(s.streams.begin(), s.streams.end());
    for (fake::Stream *stream : streams) {
        if (s.streams.count(stream) != 0 && stream->device == device) {
            const infiniStatus_t status = fake::synchronize(lock, stream, stream->enqueued);
            result = result != INFINI_STATUS_SUCCESS ? result : status;
        }
    }
    return result;
}

// ------------------------------------------------------------------ streams and events

infiniStatus_t infinirtStreamCreate(infinirtStream_t *stream_ptr) {
    FAKE_ENTER()
    FAKE_FAIL("stream")
    FAKE_DEVICE()
    if (stream_ptr == nullptr) {
        return INFINI_STATUS_NULL_POINTER;
    }
    fake::Stream *stream;
    {
        const fake::Lock lock(fake::state().mutex);
        stream = fake::newStream(device);
    }
    fake::born(fake::Kind::Stream, stream);
    *stream_ptr = stream;
    return INFINI_STATUS_SUCCESS;
}

infiniStatus_t infinirtStreamDestroy(infinirtStream_t handle) {
    const bool ok = fake::enter(__func__);
    FAKE_DEVICE()
    fake::State &s = fake::state();
    {
        fake::Lock lock(s.mutex);
        fake::Stream *const stream = fake::useStream(handle, __func__);
        if (stream == nullptr || handle == nullptr) {
            return INFINI_STATUS_BAD_PARAM;
        }
        if (!stream->queue.empty() && !s.lost) {
            fake::violationLocked("infinirtStreamDestroy: " + std::to_string(stream->queue.size()) +
                                  " tasks have not run, the first is " + stream->queue.front()->name + " of device " +
                                  std::to_string(device));
            fake::waitFor(lock, stream, stream->enqueued);
        }
        s.objects.erase(handle);
        --s.live["live.stream"];
        stream->stop = true;
        s.changed.notify_all();
    }
    return ok ? INFINI_STATUS_SUCCESS : INFINI_STATUS_INTERNAL_ERROR;
}

infiniStatus_t infinirtStreamSynchronize(infinirtStream_t handle) {
    FAKE_ENTER()
    fake::Lock lock(fake::state().mutex);
    fake::Stream *const stream = fake::useStream(handle, __func__);
    return stream == nullptr ? INFINI_STATUS_INTERNAL_ERROR : fake::synchronize(lock, stream, stream->enqueued);
}

infiniStatus_t infinirtEventCreate(infinirtEvent_t *event_ptr) {
    FAKE_ENTER()
    FAKE_DEVICE()
    if (event_ptr == nullptr) {
        return INFINI_STATUS_NULL_POINTER;
    }
    auto *const event = new fake::Event{device};
    fake::born(fake::Kind::Event, event);
    *event_ptr = event;
    return INFINI_STATUS_SUCCESS;
}

infiniStatus_t infinirtEventRecord(infinirtEvent_t handle, infinirtStream_t stream_handle) {
    FAKE_ENTER()
    if (!fake::alive(fake::Kind::Event, handle)) {
        return fake::violation("%s: no such event", __func__);
    }
    const fake::Lock lock(fake::state().mutex);
    auto *const event = static_cast<fake::Event *>(handle);
    fake::Stream *const stream = fake::useStream(stream_handle, __func__);
    if (stream == nullptr || stream->device != event->device) {
        return INFINI_STATUS_INTERNAL_ERROR;
    }
    event->stream = stream;
    event->mark = stream->enqueued;
    return INFINI_STATUS_SUCCESS;
}

infiniStatus_t infinirtEventQuery(infinirtEvent_t handle, infinirtEventStatus_t *status) {
    FAKE_ENTER()
    if (status == nullptr) {
        return INFINI_STATUS_NULL_POINTER;
    }
    if (!fake::alive(fake::Kind::Event, handle)) {
        return fake::violation("%s: no such event", __func__);
    }
    fake::State &s = fake::state();
    const fake::Lock lock(s.mutex);
    const auto *const event = static_cast<fake::Event *>(handle);
    const bool complete =
        event->stream == nullptr || s.streams.count(event->stream) == 0 || event->stream->done >= event->mark;
    if (!complete) {  // whoever asks often enough sees it complete
        event->stream->wanted = std::max(event->stream->wanted, event->mark);
        s.changed.notify_all();
    }
    *status = complete ? INFINIRT_EVENT_COMPLETE : INFINIRT_EVENT_NOT_READY;
    return INFINI_STATUS_SUCCESS;
}

infiniStatus_t infinirtEventSynchronize(infinirtEvent_t handle) {
    FAKE_ENTER()
    if (!fake::alive(fake::Kind::Event, handle)) {
        return fake::violation("%s: no such event", __func__);
    }
    fake::State &s = fake::state();
    fake::Lock lock(s.mutex);
    const auto *const event = static_cast<fake::Event *>(handle);
    if (event->stream == nullptr || s.streams.count(event->stream) == 0) {
        return INFINI_STATUS_SUCCESS;
    }
    return fake::synchronize(lock, event->stream, event->mark);
}

infiniStatus_t infinirtEventDestroy(infinirtEvent_t handle) {
    fake::enter(__func__);
    if (!fake::alive(fake::Kind::Event, handle)) {
        return fake::violation("%s: no such event", __func__);
    }
    fake::died(fake::Kind::Event, handle);
    delete static_cast<fake::Event *>(handle);
    return INFINI_STATUS_SUCCESS;
}

infiniStatus_t infinirtStreamWaitEvent(infinirtStream_t handle, infinirtEvent_t event_handle) {
    FAKE_ENTER()
    if (!fake::alive(fake::Kind::Event, event_handle)) {
        return fake::violation("%s: no such event", __func__);
    }
    const fake::Event event = *static_cast<fake::Event *>(event_handle);
    fake::Task task;
    task.name = __func__;
    task.run = [event] {
        fake::State &s = fake::state();
        fake::Lock lock(s.mutex);
        if (event.stream == nullptr || s.streams.count(event.stream) == 0) {
            return INFINI_STATUS_SUCCESS;
        }
        event.stream->wanted = std::max(event.stream->wanted, event.mark);
        s.changed.notify_all();
        s.changed.wait(lock, [&] { return s.streams.count(event.stream) == 0 || event.stream->done >= event.mark; });
        return INFINI_STATUS_SUCCESS;
    };
    return fake::enqueue(handle, std::move(task), __func__);
}

// ------------------------------------------------------------------ memory

infiniStatus_t infinirtMalloc(void **p_ptr, size_t size) {
    FAKE_ENTER()
    FAKE_FAIL("malloc")
    FAKE_DEVICE()
    if (p_ptr == nullptr) {
        return INFINI_STATUS_NULL_POINTER;
    }
    if (size == 0) {
        *p_ptr = nullptr;
        return INFINI_STATUS_SUCCESS;
    }
    fake::State &s = fake::state();
    char *data;
    {
        const fake::Lock lock(s.mutex);
        fake::Device &d = s.devices[size_t(device)];
        // Whole pages and an unused one between allocations.
        const size_t span = (size + fake::kPage - 1) / fake::kPage * fake::kPage + fake::kPage;
        if (size > s.memory - std::min(s.memory, d.bytes) || span > fake::kArenaBytes - d.arena_used) {
            return INFINI_STATUS_INTERNAL_ERROR;  // what CUDA's out of memory becomes in 0.1.0
        }
        data = static_cast<char *>(std::aligned_alloc(256, (size + 255) / 256 * 256));  // as device memory is
        if (data == nullptr) {
            return INFINI_STATUS_INTERNAL_ERROR;
        }
        char *const pointer = d.arena + d.arena_used;
        d.arena_used += span;
        d.bytes += size;
        d.peak = std::max(d.peak, d.bytes);
        s.allocations[uintptr_t(pointer)] = {size, device, data};
        *p_ptr = pointer;
    }
    std::memset(data, 0xff, size);  // NaN in every float format
    return INFINI_STATUS_SUCCESS;
}

infiniStatus_t infinirtFree(void *ptr) {
    const bool ok = fake::enter(__func__);
    if (ptr == nullptr) {
        return INFINI_STATUS_SUCCESS;
    }
    FAKE_DEVICE()
    fake::State &s = fake::state();
    fake::Lock lock(s.mutex);
    auto it = s.allocations.find(uintptr_t(ptr));
    if (it == s.allocations.end() || it->second.device != device) {
        return fake::violationLocked("infinirtFree: not an allocation of device " + std::to_string(device));
    }
    fake::checkMemoryUnused(lock, it->first, it->first + it->second.size, __func__);
    it = s.allocations.find(uintptr_t(ptr));
    s.devices[size_t(device)].bytes -= it->second.size;
    std::free(it->second.data);
    s.allocations.erase(it);
    return ok ? INFINI_STATUS_SUCCESS : INFINI_STATUS_INTERNAL_ERROR;
}

infiniStatus_t infinirtMallocHost(void **p_ptr, size_t size) {
    FAKE_ENTER()
    FAKE_FAIL("malloc_host")
    FAKE_DEVICE()
    if (p_ptr == nullptr) {
        return INFINI_STATUS_NULL_POINTER;
    }
    char *const data = static_cast<char *>(std::malloc(std::max<size_t>(size, 1)));
    if (data == nullptr) {
        return INFINI_STATUS_INTERNAL_ERROR;
    }
    std::memset(data, 0xff, size);
    const fake::Lock lock(fake::state().mutex);
    fake::state().host[uintptr_t(data)] = size;
    fake::state().host_bytes += int64_t(size);
    *p_ptr = data;
    return INFINI_STATUS_SUCCESS;
}

infiniStatus_t infinirtFreeHost(void *ptr) {
    const bool ok = fake::enter(__func__);
    if (ptr == nullptr) {
        return INFINI_STATUS_SUCCESS;
    }
    FAKE_DEVICE()
    fake::State &s = fake::state();
    fake::Lock lock(s.mutex);
    const auto it = s.host.find(uintptr_t(ptr));
    if (it == s.host.end()) {
        return fake::violationLocked("infinirtFreeHost: not pinned host memory");
    }
    const uintptr_t begin = it->first, end = begin + it->second;
    s.host_bytes -= int64_t(it->second);
    s.host.erase(it);
    fake::checkMemoryUnused(lock, begin, end, __func__);
    std::free(ptr);
    return ok ? INFINI_STATUS_SUCCESS : INFINI_STATUS_INTERNAL_ERROR;
}

infiniStatus_t infinirtMemcpyAsync(void *dst, const void *src, size_t size, infinirtMemcpyKind_t kind,
                                   infinirtStream_t stream) {
    FAKE_ENTER()
    FAKE_FAIL("copy")
    fake::Task task;
    const infiniStatus_t status = fake::copyTask(__func__, dst, src, size, kind, task);
    return status != INFINI_STATUS_SUCCESS ? status : fake::enqueue(stream, std::move(task), __func__);
}

infiniStatus_t infinirtMemcpy(void *dst, const void *src, size_t size, infinirtMemcpyKind_t kind) {
    FAKE_ENTER()
    FAKE_FAIL("copy")
    fake::Task task;
    const infiniStatus_t status = fake::copyTask(__func__, dst, src, size, kind, task);
    if (status != INFINI_STATUS_SUCCESS) {
        return status;
    }
    fake::Lock lock(fake::state().mutex);
    fake::Stream *const stream = fake::useStream(nullptr, __func__);
    if (stream == nullptr) {
        return INFINI_STATUS_INTERNAL_ERROR;
    }
    fake::enqueueLocked(stream, std::move(task));
    return fake::waitFor(lock, stream, stream->enqueued);
}

infiniStatus_t infinirtMallocAsync(void **p_ptr, size_t size, infinirtStream_t) {
    return infinirtMalloc(p_ptr, size);
}

infiniStatus_t infinirtFreeAsync(void *ptr, infinirtStream_t stream) {
    const infiniStatus_t status = infinirtStreamSynchronize(stream);
    return status != INFINI_STATUS_SUCCESS ? status : infinirtFree(ptr);
}

}  // extern "C"
