// The control API: fake_infini_control.h.
#include "../fake_infini_control.h"

#include <algorithm>
#include <cstring>

#include "state.h"

namespace {

constexpr const char *kFailures[] = {
    "malloc", "malloc_host", "copy",      "launch",  "sync", "stream", "set_device", "count",   "init",       "handle",
    "tensor", "descriptor",  "workspace", "execute", "lost", "comm",   "link",       "capture", "instantiate"};

}  // namespace

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
    if (std::find(std::begin(kFailures), std::end(kFailures), base) == std::end(kFailures)) {
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

}  // extern "C"
