// Saves packed weights and reads them back: the content of the buffers in pack.h, in a fixed order.
#pragma once

#include "ops/cpu/pack/pack.h"
#include "runtime/packed_file.h"

namespace q3::cpu {

void saveLinear(const PackedLinear &linear, PackedWriter &out);  // also tables
void saveVector(const CpuVector &vector, PackedWriter &out);

// These throw PackedFileError. in_file: the panels stay there.
std::unique_ptr<CpuLinear> loadPanels(const LinearSource &shape, WeightFormat format, PackedReader &in,
                                      ThreadPool &pool, Arena *arena, bool in_file);
std::unique_ptr<CpuVector> loadFloats(const NormSource &shape, PackedReader &in, ThreadPool &pool);
std::unique_ptr<CpuTable> loadTable(const LinearSource &shape, bool borrow, PackedReader &in, ThreadPool &pool);

// Reads panels [first, first + count) of a layer whose panels stay in a file. Returns 0, or what PackedBlob::read does;
// then the panels are zeros.
int readPanels(const CpuLinear &linear, uint32_t first, uint32_t count, char *panels) noexcept;

}  // namespace q3::cpu
