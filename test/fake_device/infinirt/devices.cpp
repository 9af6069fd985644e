#include "state.h"

extern "C" {

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

}  // extern "C"
