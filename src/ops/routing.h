// Which experts the rows of a step go through: the same on every backend, in host memory and in float32.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/types.h"

namespace q3 {

// A row's way through one of its experts is a slot. Slots are sorted by expert, those of one expert by row.
class Routing {
public:
    // For steps of up to config.max_step_tokens rows of a model with experts. Nothing allocates afterwards.
    explicit Routing(const ModelConfig &config);

    // Chooses the experts of one row by its logits [nexperts], which are overwritten: the likeliest ones
    // after a softmax, of equals those with the lower index. Any rows at the same time.
    void choose(uint32_t row, float *logits);
    // Sorts the slots of rows [0, rows), all of which have chosen.
    void sort(uint32_t rows);

    // The rows of one expert: slots [first, first + rows).
    struct Share {
        uint32_t expert, first, rows;
    };
    const std::vector<Share> &shares() const { return shares_; }  // in order of the experts; none without rows
    uint32_t slots() const { return slots_; }
    const uint32_t *rowOf() const { return row_of_.data(); }  // [slots]
    // Of a row's experts, the likeliest first: their slots and weights, [nused].
    const uint32_t *slotsOf(uint32_t row) const { return slot_of_.data() + size_t{row} * nused_; }
    const float *weightsOf(uint32_t row) const { return weights_.data() + size_t{row} * nused_; }
    uint32_t nused() const { return nused_; }
    uint32_t nexperts() const { return nexperts_; }

private:
    uint32_t nexperts_, nused_;
    bool norm_;
    uint32_t slots_ = 0;
    std::vector<uint32_t> experts_;  // [rows][nused]
    std::vector<float> weights_;     // [rows][nused]
    std::vector<uint32_t> slot_of_;  // [rows][nused]
    std::vector<uint32_t> row_of_;   // [slots]
    std::vector<uint32_t> counts_;   // [nexperts]
    std::vector<Share> shares_;
};

}  // namespace q3
