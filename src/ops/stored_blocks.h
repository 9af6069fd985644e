// Blocks of GGUF files, as ggml defines them.
#pragma once

#include "ops/stored.h"

namespace q3 {

// Decodes one block of blockShape(dtype): codes[elements], pieces[elements / kPiece].
void unpackBlock(DType dtype, const uint8_t *block, int16_t *codes, CodePiece *pieces);

}  // namespace q3
