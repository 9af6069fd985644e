"""Scores given tokens: how likely a model finds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infinicore_infer.generate.results import TokenLogprobs
from infinicore_infer.generate.sequence import GenerationSequence
from infinicore_infer.native.model import KVCache, NativeModel, StepRequest

# Logits of a step are [tokens, dvoc] float32: 64 tokens of a 151,936-token vocabulary are 39 MB.
_STEP_TOKENS = 64


@dataclass(frozen=True, slots=True)
class PerplexityResult:
    """How well a model predicts given tokens.

    Attributes:
        nll: Sum of negative natural log-likelihoods of the scored tokens.
        tokens: How many tokens were scored: all but the first of each window.
    """

    nll: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(nll / tokens)."""
        return math.exp(self.nll / self.tokens)

    def __float__(self) -> float:
        return self.perplexity


def negative_log_likelihood(model: NativeModel, tokens: Sequence[int]) -> float:
    """Return -sum(ln p) of all tokens but the first, each given those before it.

    Raises:
        Qwen3Error: The library failed.
    """
    nll = 0.0
    with model.create_kv_cache() as cache:
        # The last token predicts nothing that is known.
        for begin in range(0, len(tokens) - 1, _STEP_TOKENS):
            chunk = tokens[begin : min(begin + _STEP_TOKENS, len(tokens) - 1)]
            # float64: thousands of terms are summed, and differences of results matter.
            logits = model.forward([StepRequest(cache, chunk, begin)]).astype(np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            targets = np.asarray(tokens[begin + 1 : begin + 1 + len(chunk)])
            chosen = logits[np.arange(len(chunk)), targets]
            nll += float((np.log(np.exp(logits).sum(axis=1)) - chosen).sum())
    return nll


def perplexity(
    model: NativeModel, sequences: Sequence[Sequence[int]], window: int
) -> PerplexityResult:
    """Score token sequences, cut into windows that are scored separately, without overlap.

    Raises:
        ValueError: No window has two tokens.
        Qwen3Error: The library failed.
    """
    nll, count = 0.0, 0
    for tokens in sequences:
        for begin in range(0, len(tokens), window):
            part = tokens[begin : begin + window]
            nll += negative_log_likelihood(model, part)
            count += len(part) - 1
    if count == 0:
        raise ValueError("perplexity needs at least two tokens")
    return PerplexityResult(nll, count)


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
        rank = int((row >= row[token]).sum())
        result.append(TokenLogprobs(token, float(row[token]), best, rank))
    return result


def score_prompt(model: NativeModel, sequence: GenerationSequence) -> None:
    """Compute a part of a prompt, and the log-probabilities of the tokens that it predicts.

    Args:
        model: The model.
        sequence: Started, with ``scoring`` set.

    Raises:
        Qwen3Error: The library failed.
    """
    assert sequence.cache is not None and sequence.prompt_logprobs is not None
    begin = sequence.position
    # The prompt's last token predicts the answer, not the prompt: a step computes it.
    end = min(begin + _STEP_TOKENS, sequence.result.prompt_tokens - 1)
    tokens = sequence.all_tokens[begin : end + 1]
    top = sequence.prompt_logprobs
    sequence.advance_scores(score_chunk(model, sequence.cache, tokens, begin, top))
