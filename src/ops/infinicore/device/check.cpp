#include "ops/infinicore/device/check.h"

#include <cstring>

#include "ops/devices.h"
#include "runtime/error.h"

namespace q3::infinicore {

namespace {

template <class Ours, class Theirs> constexpr bool same(Ours ours, Theirs theirs) {
    return static_cast<int>(ours) == static_cast<int>(theirs);
}

// Our enums travel to InfiniCore as numbers. Device 8 is SUGON in 0.1.0 and HYGON later.
static_assert(same(QWEN3_DEVICE_CPU, INFINI_DEVICE_CPU));
static_assert(same(QWEN3_DEVICE_NVIDIA, INFINI_DEVICE_NVIDIA));
static_assert(same(QWEN3_DEVICE_CAMBRICON, INFINI_DEVICE_CAMBRICON));
static_assert(same(QWEN3_DEVICE_ASCEND, INFINI_DEVICE_ASCEND));
static_assert(same(QWEN3_DEVICE_METAX, INFINI_DEVICE_METAX));
static_assert(same(QWEN3_DEVICE_MOORE, INFINI_DEVICE_MOORE));
static_assert(same(QWEN3_DEVICE_ILUVATAR, INFINI_DEVICE_ILUVATAR));
static_assert(same(QWEN3_DEVICE_KUNLUN, INFINI_DEVICE_KUNLUN));
static_assert(QWEN3_DEVICE_HYGON == static_cast<int>(INFINI_DEVICE_KUNLUN) + 1);
static_assert(QWEN3_DEVICE_HYGON < static_cast<int>(INFINI_DEVICE_TYPE_COUNT));
static_assert(same(QWEN3_DTYPE_F16, INFINI_DTYPE_F16));
static_assert(same(QWEN3_DTYPE_F32, INFINI_DTYPE_F32));
static_assert(same(QWEN3_DTYPE_BF16, INFINI_DTYPE_BF16));
static_assert(same(QWEN3_STATUS_SUCCESS, INFINI_STATUS_SUCCESS));
static_assert(same(QWEN3_STATUS_INTERNAL_ERROR, INFINI_STATUS_INTERNAL_ERROR));
static_assert(same(QWEN3_STATUS_NOT_IMPLEMENTED, INFINI_STATUS_NOT_IMPLEMENTED));
static_assert(same(QWEN3_STATUS_BAD_PARAM, INFINI_STATUS_BAD_PARAM));
static_assert(same(QWEN3_STATUS_NULL_POINTER, INFINI_STATUS_NULL_POINTER));
static_assert(same(QWEN3_STATUS_DEVICE_TYPE_NOT_SUPPORTED, INFINI_STATUS_DEVICE_TYPE_NOT_SUPPORTED));
static_assert(same(QWEN3_STATUS_DEVICE_NOT_FOUND, INFINI_STATUS_DEVICE_NOT_FOUND));
static_assert(same(QWEN3_STATUS_DEVICE_NOT_INITIALIZED, INFINI_STATUS_DEVICE_NOT_INITIALIZED));
static_assert(same(QWEN3_STATUS_DEVICE_ARCHITECTURE_NOT_SUPPORTED, INFINI_STATUS_DEVICE_ARCHITECTURE_NOT_SUPPORTED));
static_assert(same(QWEN3_STATUS_BAD_TENSOR_DTYPE, INFINI_STATUS_BAD_TENSOR_DTYPE));
static_assert(same(QWEN3_STATUS_BAD_TENSOR_SHAPE, INFINI_STATUS_BAD_TENSOR_SHAPE));
static_assert(same(QWEN3_STATUS_BAD_TENSOR_STRIDES, INFINI_STATUS_BAD_TENSOR_STRIDES));
static_assert(same(QWEN3_STATUS_INSUFFICIENT_WORKSPACE, INFINI_STATUS_INSUFFICIENT_WORKSPACE));

const char *statusText(int status) {
    switch (status) {
    case INFINI_STATUS_INTERNAL_ERROR:
        return "internal error";
    case INFINI_STATUS_NOT_IMPLEMENTED:
        return "not implemented";
    case INFINI_STATUS_BAD_PARAM:
        return "bad parameter";
    case INFINI_STATUS_NULL_POINTER:
        return "null pointer";
    case INFINI_STATUS_DEVICE_TYPE_NOT_SUPPORTED:
        return "device type not supported";
    case INFINI_STATUS_DEVICE_NOT_FOUND:
        return "device not found";
    case INFINI_STATUS_DEVICE_NOT_INITIALIZED:
        return "device not initialized";
    case INFINI_STATUS_DEVICE_ARCHITECTURE_NOT_SUPPORTED:
        return "device architecture not supported";
    case INFINI_STATUS_BAD_TENSOR_DTYPE:
        return "bad tensor dtype";
    case INFINI_STATUS_BAD_TENSOR_SHAPE:
        return "bad tensor shape";
    case INFINI_STATUS_BAD_TENSOR_STRIDES:
        return "bad tensor strides";
    case INFINI_STATUS_INSUFFICIENT_WORKSPACE:
        return "insufficient workspace";
    default:
        return "unknown status";
    }
}

}  // namespace

void failStatus(infiniStatus_t status, const char *call) {
    static constexpr char kWrapper[] = "callIfKnown(";  // around operators of newer versions: the name comes next
    if (std::strncmp(call, kWrapper, sizeof kWrapper - 1) == 0) {
        call += sizeof kWrapper - 1;
    }
    infiniDevice_t type = INFINI_DEVICE_CPU;
    int id = 0;
    infinirtGetDevice(&type, &id);  // reads thread-local variables; cannot fail with these arguments
    const bool known = status > INFINI_STATUS_SUCCESS && status <= INFINI_STATUS_INSUFFICIENT_WORKSPACE;
    fail(known ? static_cast<int32_t>(status) : QWEN3_STATUS_INTERNAL_ERROR,
         "InfiniCore's %.*s failed on %s:%d: %s (status %d)", static_cast<int>(std::strcspn(call, "(,")), call,
         deviceName(type), id, statusText(status), static_cast<int>(status));
}

}  // namespace q3::infinicore
