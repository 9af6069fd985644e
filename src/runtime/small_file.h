// Files of /proc and /sys.
#pragma once

#include <string>

namespace q3 {

// The content of a file; "" when it cannot be read.
std::string readSmallFile(const std::string &path);

}  // namespace q3
