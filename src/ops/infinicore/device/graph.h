// Launches that the device repeats as one (CUDA graphs), where the run time of a newer InfiniCore has them.
#pragma once

#include <functional>
#include <memory>

#include "ops/infinicore/device/device.h"

namespace q3::infinicore {

bool graphsKnown();  // the installed InfiniCore has the functions; whether they work is seen at the first capture

// Repeats launches with the addresses they had: the memory and descriptors that they use must live as long.
class Graph {
public:
    // Runs `launches` while the stream records instead of computing. Null when the device refuses, or when one of the
    // launches throws; then nothing has been computed either, and the stream is as before. Needs a DeviceScope.
    static std::unique_ptr<Graph> capture(std::shared_ptr<Device> device, const std::function<void()> &launches);
    ~Graph();  // waits for the stream
    Graph(const Graph &) = delete;
    Graph &operator=(const Graph &) = delete;

    void launch() const;  // needs a DeviceScope

private:
    Graph(std::shared_ptr<Device> device, void *exec) : device_(std::move(device)), exec_(exec) {}
    std::shared_ptr<Device> device_;
    void *exec_;
};

}  // namespace q3::infinicore
