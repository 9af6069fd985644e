// Saves packed weights and reads them back: the content of the buffers in pack.h, in a fixed order.
#pragma once

#include "ops/cpu/pack/pack.h"
#include "runtime/packed_file.h"

namespace q3::cpu {

void saveLinear(const PackedLinear &linear, PackedWriter &out);  // also tables
void saveVector(const CpuVector &vector, PackedWriter &out);

// These throw PackedFileError.
std::unique_ptr<CpuLinear> loadPanels(const LinearSource &shape, WeightFormat format, PackedReader &in,
                                      ThreadPool &pool, Arena *arena);
std::unique_ptr<CpuVector> loadFloats(const NormSource &shape, PackedReader &in, ThreadPool &pool);
std::unique_ptr<CpuTable> loadTable(const LinearSource &shape, bool borrow, PackedReader &in, ThreadPool &pool);

}  // namespace q3::cpu
