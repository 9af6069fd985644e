// Finds and loads the module that holds the InfiniCore backend.
#pragma once

#include <string>

#include "ops/module/seam.h"

namespace q3::module {

// The file beside this library, unless INFINICORE_INFER_MODULE names another one. Stays loaded for the life of the
// process; a call that fails may be repeated. Throws DEVICE_TYPE_NOT_SUPPORTED with the reason and what to do: no such
// file, a file that does not load, one of another version. `device` only goes into the text.
const Table &loadModule(int32_t device);

// "none" when the file is not there, "not-loaded" before a model has asked for it, then the InfiniCore it was compiled
// with, "0.1.0".
std::string infinicoreVersion();

}  // namespace q3::module
