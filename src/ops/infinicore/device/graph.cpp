#include "ops/infinicore/device/graph.h"

#include "ops/infinicore/device/check.h"
#include "runtime/error.h"

namespace q3::infinicore {
namespace {

// Calls of other threads, which have other streams, do not disturb.
constexpr int kThreadLocal = 1;

}  // namespace

bool graphsKnown() {
    return infinirtStreamBeginCapture != nullptr && infinirtStreamEndCapture != nullptr &&
           infinirtGraphInstantiate != nullptr && infinirtGraphDestroy != nullptr &&
           infinirtGraphExecDestroy != nullptr && infinirtGraphLuanch != nullptr;
}

std::unique_ptr<Graph> Graph::capture(std::shared_ptr<Device> device, const std::function<void()> &launches) {
    const infinirtStream_t stream = device->stream();
    if (infinirtStreamBeginCapture(stream, kThreadLocal) != INFINI_STATUS_SUCCESS) {
        return nullptr;
    }
    bool recorded = true;
    try {
        launches();
    } catch (const Error &) {  // what cannot be recorded is computed launch by launch, and fails there if it must
        recorded = false;
    }
    void *graph = nullptr;
    if (infinirtStreamEndCapture(stream, &graph) != INFINI_STATUS_SUCCESS || graph == nullptr) {
        return nullptr;
    }
    void *exec = nullptr;
    void *node = nullptr;
    char log[256] = "";
    if (recorded && infinirtGraphInstantiate(&exec, graph, &node, log, sizeof log) != INFINI_STATUS_SUCCESS) {
        exec = nullptr;
    }
    infinirtGraphDestroy(graph);
    return exec == nullptr ? nullptr : std::unique_ptr<Graph>(new Graph(std::move(device), exec));
}

Graph::~Graph() {
    if (device_->abandoned()) {
        return;
    }
    try {
        DeviceScope scope(*device_);
        device_->settle();
        infinirtGraphExecDestroy(exec_);
    } catch (...) {  // the device is gone, and its graphs with it
    }
}

void Graph::launch() const {
    INFINI_CHECK(infinirtGraphLuanch(exec_, device_->stream()));
}

}  // namespace q3::infinicore
