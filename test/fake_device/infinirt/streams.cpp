// Streams: tasks in order, on a thread of each.
#include "state.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <thread>

namespace fake {

static void runStream(Stream *stream) {
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

Stream *useStream(infinirtStream_t handle, const char *what) {
    State &s = state();
    const int device = currentDevice();
    if (device < 0) {
        violationLocked(std::string(what) + ": the calling thread's current device is " + typeName(t_device.type) +
                        ":" + std::to_string(t_device.id));
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

infiniStatus_t waitFor(Lock &lock, Stream *stream, uint64_t mark) {
    State &s = state();
    stream->wanted = std::max(stream->wanted, mark);
    s.changed.notify_all();
    s.changed.wait(lock, [&] { return stream->done >= mark; });
    const infiniStatus_t error = stream->error;
    stream->error = INFINI_STATUS_SUCCESS;
    return s.lost ? INFINI_STATUS_INTERNAL_ERROR : error;
}

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

infiniStatus_t enqueue(infinirtStream_t handle, Task task, const char *what) {
    const Lock lock(state().mutex);
    Stream *const stream = useStream(handle, what);
    if (stream != nullptr && stream->capture) {
        stream->capture->tasks.push_back(std::move(task));
        return INFINI_STATUS_SUCCESS;
    }
    return stream == nullptr ? INFINI_STATUS_INTERNAL_ERROR : enqueueLocked(stream, std::move(task));
}

bool capturing(infinirtStream_t handle) {
    const Lock lock(state().mutex);
    const Stream *const stream = useStream(handle, "capturing");
    return stream != nullptr && stream->capture != nullptr;
}

bool forbiddenWhileCapturingLocked(const char *what) {
    for (Stream *stream : state().streams) {
        if (stream->capture && stream->device == currentDevice()) {
            stream->capture->broken = true;
            violationLocked(std::string(what) + " while a stream of the device records a graph");
            return true;
        }
    }
    return false;
}

void forbidCapture(const char *what) {
    forbiddenWhileCapturing(what);
}

bool forbiddenWhileCapturing(const char *what) {
    const Lock lock(state().mutex);
    return forbiddenWhileCapturingLocked(what);
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

extern "C" {

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
    FAKE_NOT_CAPTURING()
    fake::Lock lock(fake::state().mutex);
    fake::Stream *const stream = fake::useStream(handle, __func__);
    return stream == nullptr ? INFINI_STATUS_INTERNAL_ERROR : fake::synchronize(lock, stream, stream->enqueued);
}

}  // extern "C"
