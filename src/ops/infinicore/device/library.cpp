#include "ops/infinicore/device/library.h"

#include <dlfcn.h>

#include <climits>
#include <cstdlib>
#include <mutex>
#include <string>
#include <utility>

#include "ops/devices.h"
#include "ops/infinicore/device/functions.h"
#include "runtime/error.h"

namespace q3::infinicore {

// NOLINTNEXTLINE(bugprone-macro-parentheses): a name that is defined takes none
#define Q3_DEFINE(library, function) decltype(&::function) function = nullptr;
Q3_INFINICORE_FUNCTIONS(Q3_DEFINE)
Q3_NEWER_FUNCTIONS(Q3_DEFINE)
#undef Q3_DEFINE
// NOLINTNEXTLINE(bugprone-macro-parentheses): neither a name nor a list of parameters takes any
#define Q3_DEFINE(function, parameters) infiniStatus_t(*function) parameters = nullptr;
Q3_GRAPH_FUNCTIONS(Q3_DEFINE)
#undef Q3_DEFINE

namespace {

int (*omp_max_threads)() = nullptr;
void (*omp_set_threads)(int) = nullptr;

std::mutex mutex;
bool loaded = false;
std::string folder_of_libraries;

struct Handles {
    void *infinirt = nullptr;
    void *infiniop = nullptr;
    void *infiniccl = nullptr;
};

void close(Handles &handles) {
    for (void **handle : {&handles.infiniccl, &handles.infiniop, &handles.infinirt}) {
        if (*handle != nullptr) {
            dlclose(std::exchange(*handle, nullptr));
        }
    }
}

std::string realPath(const std::string &path) {
    char resolved[PATH_MAX];
    return realpath(path.c_str(), resolved) == nullptr ? path : resolved;
}

std::string folderOf(void *handle) {
    char folder[PATH_MAX];
    return dlinfo(handle, RTLD_DI_ORIGIN, folder) == 0 ? realPath(folder) : "";
}

// Whether the three libraries are of one InfiniCore. A failed attempt may have left another one's library in the
// process, which the loader then finds by its name.
bool belongTogether(const Handles &handles) {
    const std::string folder = folderOf(handles.infinirt);
    void *const used = dlsym(handles.infiniop, "infinirtInit");  // of the run time that the operators use
    return folderOf(handles.infiniop) == folder && folderOf(handles.infiniccl) == folder &&
           (used == nullptr || used == dlsym(handles.infinirt, "infinirtInit"));
}

void *openOne(const std::string &path, std::string &why) {
    void *const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        const char *const text = dlerror();  // names the file
        why = text == nullptr ? path + ": unknown reason" : text;
    }
    return handle;
}

// libinfiniop may use OpenMP without naming its run-time library; then that library has to be there for all.
void *openOperators(const std::string &path, std::string &why) {
    void *const handle = openOne(path, why);
    const bool openmp = why.find("GOMP_") != std::string::npos || why.find("omp_") != std::string::npos;
    if (handle == nullptr && openmp && dlopen("libgomp.so.1", RTLD_NOW | RTLD_GLOBAL) != nullptr) {
        return openOne(path, why);
    }
    return handle;
}

// Opens the three libraries of `folder`, or by name alone when it is empty. false: `tried` says why not.
bool open(const std::string &folder, Handles &handles, std::string &tried) {
    const std::string prefix = folder.empty() ? "" : folder + "/";
    std::string why;
    handles.infinirt = openOne(prefix + "libinfinirt.so", why);
    handles.infiniop = handles.infinirt == nullptr ? nullptr : openOperators(prefix + "libinfiniop.so", why);
    handles.infiniccl = handles.infiniop == nullptr ? nullptr : openOne(prefix + "libinfiniccl.so", why);
    if (handles.infiniccl != nullptr && !belongTogether(handles)) {
        why = "the files of " + folderOf(handles.infinirt) + " and " + folderOf(handles.infiniop) +
              " got mixed: start the program again";
    } else if (handles.infiniccl != nullptr) {
        return true;
    }
    tried += (tried.empty() ? "" : "; ") + why;
    close(handles);
    return false;
}

bool openWithin(const std::string &root, Handles &handles, std::string &tried) {
    const std::string folder = realPath(root + "/lib");
    if (open(folder, handles, tried)) {
        return true;
    }
    // Libraries without a run path find each other by name only, which is right when these names lead to the same
    // folder.
    std::string ignored;
    if (open("", handles, ignored)) {
        if (folderOf(handles.infinirt) == folder) {
            return true;
        }
        close(handles);
    }
    return false;
}

bool find(Handles &handles, std::string &tried) {
    if (const char *root = std::getenv("INFINI_ROOT"); root != nullptr && *root != '\0') {
        tried = std::string("INFINI_ROOT=") + root;
        return openWithin(root, handles, tried);
    }
    if (open("", handles, tried)) {
        return true;
    }
    const char *home = std::getenv("HOME");
    return home != nullptr && *home != '\0' && openWithin(std::string(home) + "/.infini", handles, tried);
}

void *lookUp(void *handle, const char *function) {
    void *const of_process = dlsym(RTLD_DEFAULT, function);
    return of_process != nullptr ? of_process : dlsym(handle, function);
}

template <class Function> bool set(Function &function, void *handle, const char *name) {
    void *const address = lookUp(handle, name);
    function = reinterpret_cast<Function>(address);  // POSIX promises that dlsym's result may be cast so
    return address != nullptr;
}

[[noreturn]] void failLoading(int32_t device, const std::string &why) {
    throw Error(QWEN3_STATUS_DEVICE_TYPE_NOT_SUPPORTED,
                std::string("device ") + deviceName(device) + " needs InfiniCore, which does not load: " + why +
                    ": run " + installHint(device) + ", or set INFINI_ROOT to the folder that holds its lib");
}

}  // namespace

void loadInfinicore(int32_t device) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (loaded) {
        return;
    }
    Handles handles;
    std::string tried;
    if (!find(handles, tried)) {
        failLoading(device, tried);
    }
    const std::string folder = folderOf(handles.infinirt);
    std::string missing;
#define Q3_SET(library, function)                                                                                      \
    if (!set(function, handles.library, #function)) {                                                                  \
        missing += std::string(missing.empty() ? "" : ", ") + #function;                                               \
    }
    Q3_INFINICORE_FUNCTIONS(Q3_SET)
#undef Q3_SET
    if (!missing.empty()) {
        close(handles);
        failLoading(device, folder + " is no InfiniCore that this library knows: it lacks " + missing);
    }
#define Q3_SET(library, function) set(function, handles.library, #function);
    Q3_NEWER_FUNCTIONS(Q3_SET)
#undef Q3_SET
#define Q3_SET(function, parameters) set(function, handles.infinirt, #function);
    Q3_GRAPH_FUNCTIONS(Q3_SET)
#undef Q3_SET
    set(omp_max_threads, handles.infiniop, "omp_get_max_threads");
    set(omp_set_threads, handles.infiniop, "omp_set_num_threads");
    folder_of_libraries = folder;
    loaded = true;
}

const char *infinicoreFolder() {
    const std::lock_guard<std::mutex> lock(mutex);
    return folder_of_libraries.c_str();
}

int maxThreads() {
    return omp_max_threads == nullptr ? 1 : omp_max_threads();
}

void setThreads(int threads) {
    if (omp_set_threads != nullptr) {
        omp_set_threads(threads);
    }
}

}  // namespace q3::infinicore
