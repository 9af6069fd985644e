#include "ops/infinicore/step_graphs.h"

#include "runtime/error.h"

namespace q3::infinicore {

bool StepGraphs::begin(uint32_t rows, uint32_t width) {
    drop();
    // Graphs have the addresses of the workspace and of descriptors' memory in them.
    if (operators_.generation() != generation_ || entries_.size() > kMost) {
        entries_.clear();
        generation_ = operators_.generation();
    }
    kind_ = {rows, width};
    Entry &entry = entries_[kind_];
    if (entry.graph == nullptr && !entry.refused && !entry.calls.empty()) {
        entry.refused = !capture(entry);
    }
    if (entry.graph != nullptr) {
        try {
            entry.graph->launch();
        } catch (const Error &) {
            entries_.erase(kind_);
            throw;
        }
        return true;
    }
    if (!entry.refused) {
        recording_now_ = true;
        operators_.record(&recording_);
    }
    return false;
}

bool StepGraphs::capture(Entry &entry) {
    entry.graph = Graph::capture(device_, [&entry] {
        for (const auto &call : entry.calls) {
            call();
        }
    });
    entry.calls.clear();
    if (operators_.generation() != generation_) {
        entry.graph.reset();
    }
    return entry.graph != nullptr;
}

void StepGraphs::end() {
    if (!recording_now_) {
        return;
    }
    Entry &entry = entries_[kind_];
    entry.refused = operators_.recordedElementwise();
    if (!entry.refused && operators_.generation() == generation_) {
        entry.calls = std::move(recording_);
    }
    drop();
}

void StepGraphs::drop() {
    if (recording_now_) {
        operators_.record(nullptr);
        recording_.clear();
        recording_now_ = false;
    }
}

}  // namespace q3::infinicore
