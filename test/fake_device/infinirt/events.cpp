#include "state.h"

#include <algorithm>

extern "C" {

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

}  // extern "C"
