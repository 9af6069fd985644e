#include "runtime/small_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

namespace q3 {

std::string readSmallFile(const std::string &path) {
    int fd = -1;
    do {
        fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    } while (fd < 0 && errno == EINTR);
    if (fd < 0) {
        return "";
    }
    std::string text;
    try {
        char buffer[4096];
        ssize_t got = 0;
        while ((got = read(fd, buffer, sizeof buffer)) > 0 || (got < 0 && errno == EINTR)) {
            text.append(buffer, got > 0 ? static_cast<size_t>(got) : 0);
        }
    } catch (...) {
        close(fd);
        throw;
    }
    close(fd);
    return text;
}

}  // namespace q3
