// Settings, bookkeeping and injected failures.
#include "state.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>

namespace fake {
namespace {

constexpr const char *kTypeNames[] = {"cpu",   "nvidia", "cambricon", "ascend", "metax", "moore", "iluvatar", "kunlun",
#if FAKE_NEWER
                                      "hygon", "qy",     "ali"
#else
                                      "sugon"
#endif
};

constexpr const char *kKindNames[] = {"live.stream", "live.event", "live.handle", "live.descriptor",
                                      "live.tensor", "live.comm",  "live.graph",  "live.exec"};

const char *environment(const char *name, const char *fallback) {
    const char *value = std::getenv(name);
    return value != nullptr ? value : fallback;
}

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

}  // namespace

// Never destroyed: streams' threads run until the process is gone.
State &state() {
    static State *const instance = new State;
    return *instance;
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

thread_local ThreadDevice t_device;
thread_local bool t_after_failure = false;

const char *typeName(infiniDevice_t type) {
    return kTypeNames[std::min<size_t>(type, sizeof kTypeNames / sizeof *kTypeNames - 1)];
}

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

static void loseDevices() {
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

void count(const char *name, int64_t n) {
    const Lock lock(state().mutex);
    state().counters[name] += n;
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

}  // namespace fake
