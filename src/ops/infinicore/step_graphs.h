// Decode steps as graphs: what a step launches from the embedding to the last residual sum depends on nothing but its
// number of rows and the width of its table of blocks, so it is recorded once and then repeated.
#pragma once

#include <map>
#include <memory>
#include <utility>

#include "ops/infinicore/device/graph.h"
#include "ops/infinicore/device/operators.h"

namespace q3::infinicore {

// The first step of a kind runs launch by launch, which makes descriptors and workspace and lets libraries load what
// they load lazily; its calls are kept. The second gives them to a graph, and it and all later ones launch that. A kind
// that the device refuses to record stays as it was. Needs a DeviceScope for every call but the destructor.
class StepGraphs {
public:
    StepGraphs(std::shared_ptr<Device> device, Operators &operators)
        : device_(std::move(device)), operators_(operators) {}

    // Begins a step whose arguments are on the device. True: all of it has been launched; else the caller launches it.
    bool begin(uint32_t rows, uint32_t width);
    void end();   // what was launched since begin() is the whole step
    void drop();  // it is not, or the step is of no kind that is repeated
    static constexpr size_t kMost = 64;

private:
    using Kind = std::pair<uint32_t, uint32_t>;
    struct Entry {
        Operators::Calls calls;
        std::unique_ptr<Graph> graph;
        bool refused = false;
    };
    bool capture(Entry &entry);

    std::shared_ptr<Device> device_;
    Operators &operators_;
    std::map<Kind, Entry> entries_;
    size_t generation_ = 0;
    Kind kind_;
    Operators::Calls recording_;
    bool recording_now_ = false;
};

}  // namespace q3::infinicore
