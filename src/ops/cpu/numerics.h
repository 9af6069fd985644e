// Which kernel tables give the same bits.
#pragma once

#include <string>

#include "ops/cpu/kernels/kernels.h"

namespace q3::cpu {

// A name that tables share whose results are the same to the bit: that of the plainest one here that this CPU can run,
// and a hash of what the kernels make of given numbers. Sums inside a row are added in the order of the vectors, so
// they differ between widths, while all else is the same by contract (kernels.h). The hash makes that no promise that
// somebody must remember to keep.
std::string numericsOf(const KernelTable &kernels);

}  // namespace q3::cpu
