// Names of the devices and how to install InfiniCore for them. Needs no InfiniCore header: stub.cpp uses it too.
#pragma once

#include "infinicore_infer/models/qwen3.h"

namespace q3::infinicore {

inline const char *deviceName(int device) {
    switch (device) {
    case QWEN3_DEVICE_CPU:
        return "cpu";
    case QWEN3_DEVICE_NVIDIA:
        return "nvidia";
    case QWEN3_DEVICE_CAMBRICON:
        return "cambricon";
    case QWEN3_DEVICE_ASCEND:
        return "ascend";
    case QWEN3_DEVICE_METAX:
        return "metax";
    case QWEN3_DEVICE_MOORE:
        return "moore";
    case QWEN3_DEVICE_ILUVATAR:
        return "iluvatar";
    case QWEN3_DEVICE_KUNLUN:
        return "kunlun";
    case QWEN3_DEVICE_HYGON:
        return "hygon";
    case QWEN3_DEVICE_QY:
        return "qy";
    case QWEN3_DEVICE_ALI:
        return "ali";
    default:
        return "unknown";
    }
}

// The command that installs InfiniCore with that device.
inline const char *installCommand(int device) {
    switch (device) {
    case QWEN3_DEVICE_NVIDIA:
        return "python scripts/install_infinicore.py --nv-gpu";
    case QWEN3_DEVICE_CAMBRICON:
        return "python scripts/install_infinicore.py --cambricon-mlu";
    case QWEN3_DEVICE_ASCEND:
        return "python scripts/install_infinicore.py --ascend-npu";
    case QWEN3_DEVICE_METAX:
        return "python scripts/install_infinicore.py --metax-gpu";
    case QWEN3_DEVICE_MOORE:
        return "python scripts/install_infinicore.py --moore-gpu";
    case QWEN3_DEVICE_ILUVATAR:
        return "python scripts/install_infinicore.py --iluvatar-gpu";
    case QWEN3_DEVICE_KUNLUN:
        return "python scripts/install_infinicore.py --kunlun-xpu";
    case QWEN3_DEVICE_HYGON:
        return "python scripts/install_infinicore.py --sugon-dcu";
    case QWEN3_DEVICE_QY:
        return "python scripts/install.py --qy-gpu --ccl=y in a checkout of a newer InfiniCore";
    case QWEN3_DEVICE_ALI:
        return "python scripts/install.py --ali-ppu --ccl=y in a checkout of a newer InfiniCore";
    default:
        return "python scripts/install_infinicore.py";
    }
}

}  // namespace q3::infinicore
