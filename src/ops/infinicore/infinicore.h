// What the backend's files know of the InfiniCore they were compiled with.
#pragma once

namespace q3::infinicore {

// "0.1.0", or "newer-than-0.1.0" when its headers declare operators that 0.1.0 does not have.
const char *version();

}  // namespace q3::infinicore
