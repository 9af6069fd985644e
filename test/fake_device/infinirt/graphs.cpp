// Graphs, with the rules of CUDA: while a stream records, nothing waits, allocates, or copies from memory that the
// repetition would find changed; what a graph uses has the same addresses, and is there, whenever it is launched.
#include "state.h"

#if FAKE_NEWER

#include <iterator>
#include <utility>

namespace fake {
namespace {

struct Exec {
    std::shared_ptr<Capture> content;
};

// Why the graph's memory or descriptors are not what they were when it was recorded, or nothing.
std::string missingLocked(const Capture &content) {
    State &s = state();
    for (const Task &task : content.tasks) {
        for (const Range &range : task.uses) {
            const auto within = [&](const auto &map, const auto &sizeOf) {
                const auto it = map.upper_bound(range.begin);
                return it != map.begin() && range.end <= std::prev(it)->first + sizeOf(std::prev(it)->second);
            };
            if (!within(s.allocations, [](const Allocation &a) { return a.size; }) &&
                !within(s.host, [](size_t size) { return size; })) {
                return task.name + " uses memory that was freed";
            }
        }
        if (task.descriptor != nullptr) {
            const auto it = s.objects.find(task.descriptor);
            if (it == s.objects.end() || it->second != Kind::Descriptor) {
                return task.name + " uses a descriptor that was destroyed";
            }
        }
    }
    return "";
}

}  // namespace
}  // namespace fake

extern "C" {

infiniStatus_t infinirtStreamBeginCapture(infinirtStream_t handle, infinirtStreamCaptureMode_t) {
    FAKE_ENTER()
    FAKE_FAIL("capture")
    const fake::Lock lock(fake::state().mutex);
    if (handle == nullptr) {
        return fake::violationLocked("infinirtStreamBeginCapture: the default stream cannot record");
    }
    fake::Stream *const stream = fake::useStream(handle, __func__);
    if (stream == nullptr) {
        return INFINI_STATUS_INTERNAL_ERROR;
    }
    if (stream->capture) {
        return fake::violationLocked("infinirtStreamBeginCapture: the stream records already");
    }
    stream->capture = std::make_shared<fake::Capture>();
    stream->capture->device = stream->device;
    return INFINI_STATUS_SUCCESS;
}

infiniStatus_t infinirtStreamEndCapture(infinirtStream_t handle, infinirtGraph_t *graph_ptr) {
    const bool ok = fake::enter(__func__);
    std::shared_ptr<fake::Capture> capture;
    {
        const fake::Lock lock(fake::state().mutex);
        fake::Stream *const stream = fake::useStream(handle, __func__);
        if (stream == nullptr || !stream->capture) {
            return fake::violationLocked("infinirtStreamEndCapture: the stream does not record");
        }
        capture = std::exchange(stream->capture, nullptr);
    }
    *graph_ptr = nullptr;
    if (!ok || capture->broken) {
        return INFINI_STATUS_INTERNAL_ERROR;
    }
    auto *const graph = new fake::Exec{capture};
    fake::born(fake::Kind::Graph, graph);
    fake::count("graphs.captured", 1);
    *graph_ptr = graph;
    return INFINI_STATUS_SUCCESS;
}

infiniStatus_t infinirtGraphInstantiate(infinirtGraphExec_t *exec_ptr, infinirtGraph_t graph, infinirtGraphNode_t *,
                                        char *, size_t) {
    FAKE_ENTER()
    FAKE_NOT_CAPTURING()
    FAKE_FAIL("instantiate")
    if (!fake::alive(fake::Kind::Graph, graph)) {
        return fake::violation("%s: no such graph", __func__);
    }
    auto *const exec = new fake::Exec(*static_cast<fake::Exec *>(graph));
    fake::born(fake::Kind::GraphExec, exec);
    *exec_ptr = exec;
    return INFINI_STATUS_SUCCESS;
}

infiniStatus_t infinirtGraphDestroy(infinirtGraph_t graph) {
    const bool ok = fake::enter(__func__);
    if (!fake::alive(fake::Kind::Graph, graph)) {
        return fake::violation("%s: no such graph", __func__);
    }
    fake::died(fake::Kind::Graph, graph);
    delete static_cast<fake::Exec *>(graph);
    return ok ? INFINI_STATUS_SUCCESS : INFINI_STATUS_INTERNAL_ERROR;
}

infiniStatus_t infinirtGraphExecDestroy(infinirtGraphExec_t exec) {
    const bool ok = fake::enter(__func__);
    if (!fake::alive(fake::Kind::GraphExec, exec)) {
        return fake::violation("%s: no such graph", __func__);
    }
    fake::checkUnused(exec, __func__);
    fake::died(fake::Kind::GraphExec, exec);
    delete static_cast<fake::Exec *>(exec);
    return ok ? INFINI_STATUS_SUCCESS : INFINI_STATUS_INTERNAL_ERROR;
}

infiniStatus_t infinirtGraphLuanch(infinirtGraphExec_t handle, infinirtStream_t stream) {
    FAKE_ENTER()
    FAKE_FAIL("launch")
    if (!fake::alive(fake::Kind::GraphExec, handle)) {
        return fake::violation("%s: no such graph", __func__);
    }
    const std::shared_ptr<fake::Capture> content = static_cast<fake::Exec *>(handle)->content;
    {
        const fake::Lock lock(fake::state().mutex);
        const std::string missing = fake::missingLocked(*content);
        if (!missing.empty()) {
            return fake::violationLocked("infinirtGraphLuanch: " + missing);
        }
        if (content->device != fake::currentDevice()) {
            return fake::violationLocked("infinirtGraphLuanch: a graph of another device");
        }
        ++fake::state().counters["graphs.launched"];
        fake::state().counters["graphs.nodes"] += int64_t(content->tasks.size());
    }
    fake::Task task;
    task.name = __func__;
    task.descriptor = handle;
    for (const fake::Task &node : content->tasks) {
        task.uses.insert(task.uses.end(), node.uses.begin(), node.uses.end());
    }
    task.run = [content] {
        infiniStatus_t status = INFINI_STATUS_SUCCESS;
        for (const fake::Task &node : content->tasks) {
            status = status == INFINI_STATUS_SUCCESS ? node.run() : status;
        }
        return status;
    };
    return fake::enqueue(stream, std::move(task), __func__);
}

}  // extern "C"

#endif
