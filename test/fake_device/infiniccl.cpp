// The collectives of InfiniCore 0.1.0 between fake devices: an all-reduce runs when the streams of all ranks have come
// to it.
#include "infiniccl.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>

#include "core.h"
#include "numerics.h"

namespace {

constexpr auto kPatience = std::chrono::seconds(10);  // for the other ranks

struct Group {
    std::mutex mutex;
    std::condition_variable changed;
    int size = 0, arrived = 0, left = 0;
    uint64_t round = 0;
    bool broken = false;                    // for good: its ranks do different things
    bool failed = false;                    // this round, on some rank and so on all
    std::vector<std::vector<float>> parts;  // of each rank, added in their order: the same bits every time
};

}  // namespace

struct InfinicclComm {
    std::shared_ptr<Group> group;
    int device, rank;
    bool cut = false;  // failure "link"
};

// One rank's part, on its stream's thread. fails: the rank has an error; it comes, so that the others end with one too.
static infiniStatus_t reduce(Group &group, int rank, const char *send, char *receive, size_t count, infiniDtype_t dtype,
                             infinicclReduceOp_t op, bool fails) {
    std::unique_lock<std::mutex> lock(group.mutex);
    const auto wait = [&](auto ready) {
        const auto end = std::chrono::steady_clock::now() + kPatience;
        while (!group.broken && !ready() && !fake::lost() && std::chrono::steady_clock::now() < end) {
            group.changed.wait_for(lock, std::chrono::milliseconds(10));
        }
        group.broken |= !ready();
        return !group.broken;
    };
    const auto broken = [](const char *what) {
        return fake::lost() ? INFINI_STATUS_INTERNAL_ERROR : fake::violation("infinicclAllReduce: %s", what);
    };
    if (!wait([&] { return group.left == 0; })) {  // the previous round is over
        return broken("not all ranks left the previous call");
    }
    if (group.arrived == 0) {
        group.parts.assign(size_t(group.size), {});
        group.failed = false;
    }
    group.failed |= fails;
    for (const std::vector<float> &part : group.parts) {
        if (!part.empty() && part.size() != count) {
            group.broken = true;
            return fake::violation("infinicclAllReduce: ranks disagree on the number of elements");
        }
    }
    std::vector<float> &part = group.parts[size_t(rank)];
    part.resize(count);
    for (size_t i = 0; i < count; ++i) {
        part[i] = fake::load(dtype, send, ptrdiff_t(i));
    }
    const uint64_t round = group.round;
    if (++group.arrived == group.size) {
        group.arrived = 0;
        group.left = group.size;
        ++group.round;
        group.changed.notify_all();
    }
    if (!wait([&] { return group.round != round; })) {
        return broken("not all ranks called it");
    }
    const bool failed = group.failed;
    for (size_t i = 0; i < count && !failed; ++i) {
        float total = group.parts[0][i];
        for (size_t other = 1; other < group.parts.size(); ++other) {
            const float value = group.parts[other][i];
            if (op == INFINICCL_SUM || op == INFINICCL_AVG) {
                total += value;
            } else if (op == INFINICCL_PROD) {
                total *= value;
            } else {
                total = op == INFINICCL_MAX ? std::max(total, value) : std::min(total, value);
            }
        }
        fake::store(dtype, receive, ptrdiff_t(i), op == INFINICCL_AVG ? total / float(group.size) : total);
    }
    --group.left;
    group.changed.notify_all();
    return failed ? INFINI_STATUS_INTERNAL_ERROR : INFINI_STATUS_SUCCESS;
}

infiniStatus_t infinicclCommInitAll(infiniDevice_t device_type, infinicclComm_t *comms, int ndevice,
                                    const int *device_ids) {
    if (!fake::enter(__func__) || fake::injected("comm")) {
        return INFINI_STATUS_INTERNAL_ERROR;
    }
    if (device_type != fake::deviceType()) {
        return INFINI_STATUS_DEVICE_TYPE_NOT_SUPPORTED;
    }
    if (comms == nullptr || device_ids == nullptr) {
        return INFINI_STATUS_NULL_POINTER;
    }
    for (int i = 0; i < ndevice; ++i) {
        if (device_ids[i] < 0 || device_ids[i] >= fake::deviceCount() ||
            std::count(device_ids, device_ids + ndevice, device_ids[i]) != 1) {
            return INFINI_STATUS_INTERNAL_ERROR;
        }
    }
    const auto group = std::make_shared<Group>();
    group->size = ndevice;
    for (int i = 0; i < ndevice; ++i) {
        comms[i] = new InfinicclComm{group, device_ids[i], i};
        fake::born(fake::Kind::Comm, comms[i]);
    }
    return INFINI_STATUS_SUCCESS;
}

infiniStatus_t infinicclCommDestroy(infinicclComm_t comm) {
    fake::enter(__func__);
    if (comm == nullptr) {
        return INFINI_STATUS_SUCCESS;
    }
    if (!fake::alive(fake::Kind::Comm, comm)) {
        return fake::violation("%s: no such communicator", __func__);
    }
    fake::checkUnused(comm, __func__);
    fake::died(fake::Kind::Comm, comm);
    delete comm;
    return INFINI_STATUS_SUCCESS;
}

infiniStatus_t infinicclAllReduce(void *sendbuf, void *recvbuf, size_t count, infiniDtype_t dtype,
                                  infinicclReduceOp_t op, infinicclComm_t comm, infinirtStream_t stream) {
    if (!fake::enter(__func__) || fake::injected("launch")) {
        return INFINI_STATUS_INTERNAL_ERROR;
    }
    if (comm == nullptr) {
        return INFINI_STATUS_NULL_POINTER;
    }
    if (!fake::alive(fake::Kind::Comm, comm)) {
        return fake::violation("%s: no such communicator", __func__);
    }
    if (fake::currentDevice() != comm->device) {
        return fake::violation("%s: communicator of device %d used while device %d is current", __func__, comm->device,
                               fake::currentDevice());
    }
    comm->cut |= fake::injected("link");
    if (comm->cut) {
        return INFINI_STATUS_INTERNAL_ERROR;
    }
    if (!fake::isFloat(dtype)) {
        return INFINI_STATUS_BAD_TENSOR_DTYPE;
    }
    const size_t bytes = count * fake::elementSize(dtype);
    const char *const send = fake::backing(comm->device, sendbuf, bytes, "infinicclAllReduce, input");
    char *const receive = fake::backing(comm->device, recvbuf, bytes, "infinicclAllReduce, output");
    if (send == nullptr || receive == nullptr) {
        return INFINI_STATUS_INTERNAL_ERROR;
    }
    fake::Task task;
    task.name = __func__;
    task.descriptor = comm;
    task.uses = {{uintptr_t(sendbuf), uintptr_t(sendbuf) + bytes}, {uintptr_t(recvbuf), uintptr_t(recvbuf) + bytes}};
    const auto part = [=, group = comm->group, rank = comm->rank](bool fails) {
        return reduce(*group, rank, send, receive, count, dtype, op, fails);
    };
    task.run = [part] { return part(false); };
    task.skipped = [part] { part(true); };
    const infiniStatus_t status = fake::enqueue(stream, std::move(task), __func__);
    if (status == INFINI_STATUS_SUCCESS) {
        fake::startNow(stream);  // other ranks wait for this one, whoever asks first
    }
    return status;
}
