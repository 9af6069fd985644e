"""Log-probabilities of given tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from infinicore_infer.generate.sequence import GenerationSequence, TokenLogprobs
from infinicore_infer.native.model import KVCache, NativeModel, StepRequest, StepResult

# Tokens per step while scoring a prompt: each brings a row of logits as long as the vocabulary.
_SCORE_TOKENS = 64


def score_chunk(
    model: NativeModel, cache: KVCache, tokens: Sequence[int], position: int, top: int
) -> list[TokenLogprobs]:
    """Compute all tokens but the last and return the log-probabilities of all but the first.

    Args:
        model: The model.
        cache: The cache of the sequence.
        tokens: At least two.
        position: Position of the first one.
        top: How many likeliest tokens to report with each.

    Raises:
        Qwen3Error: The library failed.
    """
    logits = model.forward([StepRequest(cache, tokens[:-1], position)]).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    result = []
    for row, token in zip(logits, tokens[1:], strict=True):
        best: list[tuple[int, float]] = []
        if top:
            # Ties go to the lower id, as in the library.
            candidates = np.argpartition(-row, min(top, row.size - 1))[: top + 1]
            order = sorted(candidates.tolist(), key=lambda token: (-row[token], token))[:top]
            best = [(token, float(row[token])) for token in order]
        result.append(TokenLogprobs(token, float(row[token]), best))
    return result


def score_prompt(model: NativeModel, sequence: GenerationSequence) -> list[StepResult]:
    """Compute the log-probabilities of the next tokens of a prompt; return nothing.

    Raises:
        Qwen3Error: The library failed.
    """
    count = min(sequence.remaining - 1, _SCORE_TOKENS)
    assert sequence.cache is not None and sequence.prompt_logprobs is not None
    begin = sequence.position
    tokens = sequence.all_tokens[begin : begin + count + 1]
    scores = score_chunk(model, sequence.cache, tokens, begin, sequence.prompt_logprobs)
    # After a preemption, the first ones are known already.
    sequence.prompt_scores += scores[max(len(sequence.prompt_scores) - begin, 0) :]
    sequence.position += count
    return []
