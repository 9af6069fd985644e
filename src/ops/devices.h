// Names of the devices, and how to install InfiniCore for them.
#pragma once

#include <string>

#include "infinicore_infer/models/qwen3.h"

namespace q3 {

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

// The switch of the installer for that device; null when the InfiniCore that it installs cannot have it.
inline const char *installSwitch(int device) {
    switch (device) {
    case QWEN3_DEVICE_NVIDIA:
        return " --nv-gpu";
    case QWEN3_DEVICE_CAMBRICON:
        return " --cambricon-mlu";
    case QWEN3_DEVICE_ASCEND:
        return " --ascend-npu";
    case QWEN3_DEVICE_METAX:
        return " --metax-gpu";
    case QWEN3_DEVICE_MOORE:
        return " --moore-gpu";
    case QWEN3_DEVICE_ILUVATAR:
        return " --iluvatar-gpu";
    case QWEN3_DEVICE_KUNLUN:
        return " --kunlun-xpu";
    case QWEN3_DEVICE_HYGON:
        return " --sugon-dcu";
    case QWEN3_DEVICE_QY:
    case QWEN3_DEVICE_ALI:
        return nullptr;
    default:
        return "";
    }
}

// What to run to install InfiniCore with that device; `more` are further switches.
inline std::string installHint(int device, const std::string &more = "") {
    const char *const name = installSwitch(device);
    if (name == nullptr) {
        return std::string("`python scripts/install.py --") + deviceName(device) +
               (device == QWEN3_DEVICE_ALI ? "-ppu" : "-gpu") + " --ccl=y` in a checkout of a newer InfiniCore";
    }
    return std::string("`qwen3-install-infinicore") + name + more +
           "` (in a checkout `python scripts/install_infinicore.py" + name + more + "`)";
}

}  // namespace q3
