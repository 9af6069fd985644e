"""How the next token is chosen, in numpy float64: the rules of the header's Qwen3SamplingParams.

Steps in order: logit bias, allowed tokens, repetition, presence and frequency penalties,
temperature, top_k, top_p, min_p, one draw. Ties go to the lower token id. Penalties are vLLM's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def adjusted_logits(
    logits: npt.NDArray[np.floating],
    bias: Mapping[int, float] | None = None,
    allowed: Iterable[int] | None = None,
    history: Sequence[int] = (),
    ngenerated: int = 0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
) -> Array:
    """Applies bias, mask and penalties: the distribution that log-probabilities are of.

    Args:
        logits: the model's ``[dvoc]``.
        bias: token -> what is added to its logit.
        allowed: the tokens that may be chosen; None: all.
        history: prompt and generated tokens.
        ngenerated: how many of history, at its end, were generated.
        repetition_penalty: divides positive and multiplies negative logits of all of history.
        presence_penalty: subtracted once from each generated token.
        frequency_penalty: subtracted from a generated token as often as it occurs.

    Returns:
        The adjusted logits ``[dvoc]``.
    """
    adjusted = logits.astype(np.float64)
    for token, value in (bias or {}).items():
        adjusted[token] += value
    if allowed is not None:
        banned = np.ones(len(adjusted), dtype=bool)
        banned[list(allowed)] = False
        adjusted[banned] = -np.inf
    for token in set(history):
        if adjusted[token] > 0:
            adjusted[token] /= repetition_penalty
        else:
            adjusted[token] *= repetition_penalty
    for token, count in Counter(history[len(history) - ngenerated :]).items():
        adjusted[token] -= presence_penalty + count * frequency_penalty
    return adjusted


def log_softmax(x: Array) -> Array:
    """Natural log-probabilities over the last axis."""
    top = x.max(axis=-1, keepdims=True)
    return np.asarray(x - top - np.log(np.exp(x - top).sum(axis=-1, keepdims=True)))


def ranking(x: Array) -> npt.NDArray[np.intp]:
    """Token ids from the likeliest on; the lower id of equal ones first."""
    return np.argsort(-x, kind="stable")


def probabilities(
    adjusted: Array, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Array:
    """Returns the probability of each token to be drawn ``[dvoc]``; zero if it cannot be.

    Each step works on what the steps before it left, as a distribution that sums to one.

    Args:
        adjusted: the result of :func:`adjusted_logits`.
        temperature: 0 chooses the likeliest.
        top_k: keep the k likeliest; 0: all.
        top_p: keep the likeliest whose probabilities reach top_p.
        min_p: drop tokens below min_p times the likeliest.
    """
    order = ranking(adjusted)
    result = np.zeros(len(adjusted))
    if temperature == 0:
        result[order[0]] = 1.0
        return result
    order = order[: top_k or None]
    p = np.exp(log_softmax(adjusted[order] / temperature))
    before = np.cumsum(p) - p  # of likelier tokens: the one that reaches top_p is kept
    p = np.where((before < top_p) & (p >= min_p * p[0]), p, 0.0)
    result[order] = p / p.sum()
    return result
