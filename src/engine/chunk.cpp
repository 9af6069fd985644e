#include "engine/chunk.h"

#include <algorithm>

namespace q3 {

std::vector<Chunk> cutIntoChunks(const BatchArgs &args, uint32_t max_step_tokens) {
    std::vector<Chunk> chunks;
    uint32_t request = 0;
    uint32_t done = 0;  // tokens of `request` that are in chunks already
    for (uint32_t first = 0; first < args.ntok; first += chunks.back().ntok) {
        Chunk chunk;
        chunk.first_token = first;
        while (request < args.nreq && chunk.ntok < max_step_tokens) {
            const uint32_t left = args.req_lens[request] - done;
            const uint32_t take = std::min(left, max_step_tokens - chunk.ntok);
            chunk.pieces.push_back({request, done, take, chunk.ntok});
            chunk.ntok += take;
            done += take;
            if (take == left) {
                ++request;
                done = 0;
            }
        }
        chunks.push_back(std::move(chunk));
    }
    return chunks;
}

}  // namespace q3
