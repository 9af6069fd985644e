#include "engine/chooser.h"

#include <algorithm>
#include <exception>

namespace q3 {

void Chooser::begin(const BatchArgs &args, const Qwen3SamplingParams *params) {
    args_ = args;
    params_ = params;
    choices_.resize(std::max<size_t>(choices_.size(), args.nreq));
    for (uint32_t r = 0; r < args.nreq; ++r) {
        Choice &choice = choices_[r];
        choice.top_tokens.resize(params[r].top_logprobs);
        choice.top_logprobs.resize(params[r].top_logprobs);
        choice.history.clear();
        choice.decided = params[r].skip != 0;
        choice.result = {};
        choice.result.top_tokens = choice.top_tokens.data();
        choice.result.top_logprobs = choice.top_logprobs.data();
    }
}

std::vector<Chooser::Candidate> Chooser::candidatesIn(const Chunk &chunk) const {
    std::vector<Candidate> candidates;
    for (const Piece &piece : chunk.pieces) {
        const auto ndraft = static_cast<uint32_t>(params_[piece.request].ndraft);
        const uint32_t last_given = args_.req_lens[piece.request] - 1 - ndraft;  // what follows it are drafts
        for (uint32_t index = std::max(piece.first, last_given); index < piece.first + piece.ntok; ++index) {
            candidates.push_back({piece.row + index - piece.first, index, piece.request});
        }
    }
    return candidates;
}

void Chooser::choose(const Chunk &chunk, const ReadLogits &read_logits) {
    const std::vector<Candidate> candidates = candidatesIn(chunk);
    for (size_t next = 0; next < candidates.size();) {
        Candidate batch[kLogitRows];
        uint32_t rows[kLogitRows];
        uint32_t count = 0;
        // Requests that an earlier batch decided need no more logits.
        for (; next < candidates.size() && count < kLogitRows; ++next) {
            if (!choices_[candidates[next].request].decided) {
                batch[count] = candidates[next];
                rows[count++] = candidates[next].row;
            }
        }
        if (count == 0) {
            break;
        }
        logits_.resize(std::max(logits_.size(), size_t{count} * dvoc_));
        read_logits(rows, count, logits_.data());
        chooseAll(batch, count, chunk);
    }
}

// Chooses after the rows whose logits have been read. Requests know nothing of each other, and a request's rows, which
// are neighbours, follow one another.
void Chooser::chooseAll(const Candidate *candidates, uint32_t count, const Chunk &chunk) {
    uint32_t first[kLogitRows + 1];  // candidate of each request
    std::exception_ptr errors[kLogitRows];
    uint32_t nreq = 0;
    for (uint32_t i = 0; i < count; ++i) {
        if (i == 0 || candidates[i].request != candidates[i - 1].request) {
            first[nreq++] = i;
        }
    }
    first[nreq] = count;
    for_each_(nreq, [&](uint32_t r, uint32_t thread) {
        try {
            for (uint32_t i = first[r]; i < first[r + 1]; ++i) {
                chooseAfter(candidates[i], chunk, logits_.data() + size_t{i} * dvoc_, samplers_[thread]);
            }
        } catch (...) {
            errors[r] = std::current_exception();
        }
    });
    for (const std::exception_ptr &error : errors) {  // the first request's, whichever thread was first
        if (error != nullptr) {
            std::rethrow_exception(error);
        }
    }
}

void Chooser::chooseAfter(const Candidate &candidate, const Chunk &chunk, float *logits, Sampler &sampler) {
    Choice &choice = choices_[candidate.request];
    if (choice.decided) {
        return;
    }
    Qwen3SamplingParams params = params_[candidate.request];
    if (choice.result.naccepted > 0) {
        params.history = choice.history.data();
        params.nhistory += choice.result.naccepted;
        params.ngenerated += choice.result.naccepted;
    }
    sampler.sample(logits, params, args_.req_pos[candidate.request] + candidate.index, choice.result);
    const bool last = candidate.index + 1 == args_.req_lens[candidate.request];
    choice.decided = last || args_.tokens[chunk.first_token + candidate.row + 1] != choice.result.token;
    if (!choice.decided) {  // the next token is a draft, and right
        if (choice.result.naccepted == 0) {
            choice.history.assign(params.history, params.history + params.nhistory);
        }
        choice.history.push_back(choice.result.token);
        ++choice.result.naccepted;
    }
}

void Chooser::finish(Qwen3SampleResult *results) const {
    for (uint32_t r = 0; r < args_.nreq; ++r) {
        const Choice &choice = choices_[r];
        results[r].token = choice.result.token;
        results[r].logprob = choice.result.logprob;
        results[r].ntop = choice.result.ntop;
        results[r].naccepted = choice.result.naccepted;
        std::copy_n(choice.top_tokens.begin(), choice.result.ntop, results[r].top_tokens);
        std::copy_n(choice.top_logprobs.begin(), choice.result.ntop, results[r].top_logprobs);
    }
}

uint32_t Chooser::rejected(uint32_t request) const {
    return static_cast<uint32_t>(params_[request].ndraft) - choices_[request].result.naccepted;
}

}  // namespace q3
