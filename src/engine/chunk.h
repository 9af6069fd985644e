// How a call is cut into steps of at most max_step_tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/batch.h"

namespace q3 {

// The tokens of one request that run in one step.
struct Piece {
    uint32_t request;
    uint32_t first;  // its first token, counted from the request's first
    uint32_t ntok;
    uint32_t row;  // its rows of the step are [row, row + ntok)
};

// What runs as one step: tokens [first_token, first_token + ntok) of the call.
struct Chunk {
    uint32_t first_token = 0;
    uint32_t ntok = 0;
    std::vector<Piece> pieces;
};

// Chunks follow the order of the tokens, and all but the last are full.
std::vector<Chunk> cutIntoChunks(const BatchArgs &args, uint32_t max_step_tokens);

}  // namespace q3
