// Packs codes of quantised checkpoints as they are, into the formats that hold them without loss (AffineInfo).
#pragma once

#include <functional>

#include "ops/cpu/formats.h"
#include "ops/cpu/pack/panel_reader.h"
#include "ops/weights.h"

namespace q3::cpu {

// The format that a matrix is kept in when nothing else is asked for. Reads no data: dtypes, layout and alignment
// decide. kF32 for codes that no format of codes holds.
WeightFormat formatAsGiven(const HostMatrix &matrix);
// The same of a layer as one; kAg where its parts' formats of codes differ.
WeightFormat formatAsGiven(const LinearSource &source);

// Calls use(source) with small layers that are kept in each format of codes, for fingerprints.
void forCodedSamples(const std::function<void(const LinearSource &)> &use);

// Packs columns [0, k) of 16 rows, read as codes, into a panel, which must be zeroed.
void packAffinePanel(PanelReader &reader, const PanelReader::Rows &rows, WeightFormat format, uint32_t k, char *panel);

// The same for f8.
void packF8Panel(PanelReader &reader, const PanelReader::Rows &rows, WeightFormat format, uint32_t k, char *panel);

}  // namespace q3::cpu
