#include "ops/module/loader.h"

#include <dlfcn.h>
#include <unistd.h>

#include <climits>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "ops/devices.h"
#include "runtime/error.h"

namespace q3::module {
namespace {

constexpr char kFile[] = "libinfinicore_infer_infini.so";

std::mutex mutex;
const Table *loaded = nullptr;

// The module's file in the folder of another file.
std::string sibling(const std::string &file) {
    const size_t slash = file.rfind('/');
    return (slash == std::string::npos ? "./" : file.substr(0, slash + 1)) + kFile;
}

std::string path() {
    if (const char *named = std::getenv("INFINICORE_INFER_MODULE"); named != nullptr && *named != '\0') {
        return named;
    }
    Dl_info info{};
    if (dladdr(&mutex, &info) == 0 || info.dli_fname == nullptr) {
        return kFile;
    }
    std::string beside = sibling(info.dli_fname);
    char resolved[PATH_MAX];  // when the library was loaded through a link from another folder
    if (access(beside.c_str(), F_OK) != 0 && realpath(info.dli_fname, resolved) != nullptr) {
        return sibling(resolved);
    }
    return beside;
}

[[noreturn]] void failModule(int32_t device, const std::string &why, const std::string &what_to_do) {
    throw Error(QWEN3_STATUS_DEVICE_TYPE_NOT_SUPPORTED,
                std::string("device ") + deviceName(device) + " needs InfiniCore: " + why + ": " + what_to_do);
}

const Table *tableOf(const std::string &file, int32_t device) {
    const std::string again = "reinstall this library, or build both with `xmake build infinicore_infer`";
    void *const handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        const char *const text = dlerror();
        failModule(device, std::string("its module does not load: ") + (text == nullptr ? "unknown reason" : text),
                   again);
    }
    void *const address = dlsym(handle, kEntry);
    if (address == nullptr) {
        dlclose(handle);
        failModule(device, file + " is no module of this library: it has no " + kEntry, again);
    }
    // POSIX promises that dlsym's result may be cast so.
    const Table *const table = reinterpret_cast<TableFunction>(address)();
    if (table->struct_size != sizeof(Table) || table->layout != kLayout ||
        std::strcmp(table->version, QWEN3_VERSION_STRING) != 0) {
        const std::string version = table->version;
        dlclose(handle);
        failModule(device,
                   file + " is of version " + version +
                       (version == QWEN3_VERSION_STRING ? ", but of another build than this library"
                                                        : ", this library of " QWEN3_VERSION_STRING),
                   again);
    }
    return table;
}

}  // namespace

const Table &loadModule(int32_t device) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (loaded == nullptr) {
        const std::string file = path();
        if (access(file.c_str(), F_OK) != 0) {
            failModule(device, "its module " + file + " is not there",
                       "run " + installHint(device) + ", then build it with `xmake f --infinicore=y` and `xmake`");
        }
        loaded = tableOf(file, device);
    }
    return *loaded;
}

std::string infinicoreVersion() {
    const std::lock_guard<std::mutex> lock(mutex);
    if (loaded != nullptr) {
        return loaded->infinicore;
    }
    return access(path().c_str(), F_OK) == 0 ? "not-loaded" : "none";
}

}  // namespace q3::module
