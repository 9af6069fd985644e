// Finds InfiniCore's libraries on this machine and loads them.
#pragma once

#include <cstdint>

namespace q3::infinicore {

// Sets the pointers of functions.h. The first call that succeeds decides for the life of the process; one that fails
// changes nothing and may be repeated. Looked for:
//   1. in INFINI_ROOT/lib, and nowhere else, when that variable is set;
//   2. where the dynamic loader looks: LD_LIBRARY_PATH, the InfiniCore of the build, the system's folders;
//   3. in ~/.infini/lib.
// Functions that the process has loaded for all, as LD_PRELOAD does, come before those of the libraries.
// Throws DEVICE_TYPE_NOT_SUPPORTED with what was tried, the loader's reasons, and what to do for that device.
void loadInfinicore(int32_t device);

const char *infinicoreFolder();  // where it was loaded from; empty before

}  // namespace q3::infinicore
