// Which kernel tables give the same bits.
#pragma once

#include <string>

#include "ops/cpu/kernels/kernels.h"

namespace q3::cpu {

// Returns a text that is the same for tables whose results are the same to the bit: the name of the plainest such table
// that this CPU can run, and a hash of what the kernels compute from given numbers. Sums inside a row are added vector
// by vector, so they differ between vector widths; all else is the same by contract (kernels.h). The hash differs when
// a kernel breaks that contract.
std::string numericsOf(const KernelTable &kernels);

}  // namespace q3::cpu
