"""Computes the last hidden state of many texts together, part by part.

A step takes from each text in turn as much as it has room for, so short texts share steps and long
ones are computed in pieces; what a text begins with may be computed once for many. The states of a
text do not depend on any of that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
from libinfinicore_infer import Qwen3OutOfKVError
from numpy.typing import NDArray

from infinicore_infer.native.model import KVCache, NativeModel, StepRequest

# Tokens of a call: several steps of the library, so that nearly all of them are full.
CALL_TOKENS = 2048


@dataclass(eq=False, slots=True)
class PooledText:
    """A text whose last hidden state is wanted.

    Attributes:
        tokens: Its token ids, at least one.
        prefix: What it and others begin with: a shorter text, computed once; ``None``: nothing.
        state: The last token's hidden state, float32 [d], once it is there.
        error: Why there is none; no more is computed then.
    """

    tokens: Sequence[int]
    prefix: PooledText | None = None
    state: NDArray[np.float32] | None = None
    error: Exception | None = None
    _cache: KVCache | None = field(default=None, repr=False)
    _position: int = field(default=0, repr=False)
    _users: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        """Let the prefix know who needs it."""
        if self.prefix is not None:
            self.prefix._users += 1

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to compute."""
        return self.error is not None or self._position == len(self.tokens)

    @property
    def computed(self) -> int:
        """How many of its tokens have been computed, or were with its prefix."""
        return self._position

    def next_part(self) -> PooledText:
        """Return the text that has to be computed next: this one, or first its prefix."""
        prefix = self.prefix
        return self if prefix is None or self._cache is not None or prefix.finished else prefix

    def request(self, model: NativeModel, count: int) -> StepRequest:
        """Return what the library is to compute of it: its next ``count`` tokens."""
        if self._cache is None:
            if self.prefix is not None and self.prefix._cache is not None:
                self._position = len(self.prefix.tokens)
                self._cache = model.duplicate_kv_cache(self.prefix._cache, self._position)
            else:
                self._cache = model.create_kv_cache()
        part = self.tokens[self._position : self._position + count]
        return StepRequest(self._cache, part, self._position)

    @property
    def remaining(self) -> int:
        """How many tokens are still to be computed; of a text that has not begun, all its own."""
        if self._cache is None and self.prefix is not None:
            return len(self.tokens) - len(self.prefix.tokens)
        return len(self.tokens) - self._position

    def advance(self, count: int, state: NDArray[np.float32] | None) -> None:
        """Note that tokens were computed, and the state after the last one."""
        self._position += count
        self.state = state

    def step_back(self) -> bool:
        """Forget what was computed, for others need the memory; return whether there was any."""
        held = self._cache is not None
        if self._cache is not None:
            self._cache.close()
        self._cache, self._position = None, 0
        return held

    def release(self) -> None:
        """Give memory back once nothing more is computed; safe to call twice."""
        if self._users == 0 and self._cache is not None:
            self._cache.close()
        prefix, self.prefix = self.prefix, None
        if prefix is not None:
            prefix._users -= 1
            prefix.release()


def pool_step(
    model: NativeModel, texts: Iterable[PooledText], budget: int = CALL_TOKENS
) -> list[PooledText]:
    """Compute parts of texts, the first ones first.

    Args:
        model: The model.
        texts: Those that are not finished, in the order in which they are to be. A text that others
            wait for while it is computed gets half of the budget at most.
        budget: Most tokens.

    Returns:
        The texts that are finished now; their memory has been given back.

    Raises:
        Qwen3Error: The library failed; the texts are as they were.
    """
    everybody = [text for text in texts if not text.finished]
    waiting = _first(everybody, budget)
    parts: dict[PooledText, int] = {}
    most = budget if len(waiting) == 1 else max(1, budget // 2)
    for text in waiting:
        part = text.next_part()
        left = budget - sum(parts.values())
        if part not in parts and left > 0:
            parts[part] = min(part.remaining, left, most)
    shares = list(parts.items())
    while shares:
        try:
            _compute(model, shares)
            break
        except Qwen3OutOfKVError as error:
            # Nothing has been computed. Fewer at a time need less; then the text that is nearest to
            # its end goes on alone, whoever is the first in the next step, and others step back.
            if len(shares) > 1:
                shares = shares[: len(shares) // 2]
                continue
            first = max(everybody, key=lambda text: text.computed).next_part()
            shares = [(first, min(first.remaining, budget))]
            holders = dict.fromkeys(each for text in everybody for each in (text.prefix, text))
            others = [text for text in holders if text not in (None, first, first.prefix)]
            if not any([text.step_back() for text in others if text is not None]):
                first.error = error
                break
    for text in everybody:
        if text.prefix is not None and text.prefix.error is not None:
            text.error = text.prefix.error
    done = [text for text in everybody if text.finished]
    for text in done:
        text.release()
    return done


def _first(texts: Iterable[PooledText], budget: int) -> list[PooledText]:
    """Return the texts that may take part in a step, at least two if there are two."""
    chosen, tokens = [], 0
    for text in texts:
        chosen.append(text)
        tokens += text.remaining
        if tokens >= 2 * budget and len(chosen) > 1:
            break
    return chosen


def _compute(model: NativeModel, shares: Sequence[tuple[PooledText, int]]) -> None:
    """Compute so many tokens of each text, and note the states of those that are whole then."""
    requests = [text.request(model, count) for text, count in shares]
    ends = [end - 1 for end in accumulate(count for _, count in shares)]
    whole = [text.remaining == count for text, count in shares]
    rows = [end for end, last in zip(ends, whole, strict=True) if last]
    states: Iterator[NDArray[np.float32]] = iter(())
    if rows:
        states = iter(model.embed(requests, rows))
    else:
        model.step(requests)
    for (text, count), last in zip(shares, whole, strict=True):
        text.advance(count, next(states).copy() if last else None)


def pool(model: NativeModel, texts: Sequence[PooledText]) -> NDArray[np.float32]:
    """Compute all texts in the caller's thread.

    Returns:
        Their last hidden states, float32 [texts, d].

    Raises:
        MemoryError: The KV memory cannot hold one of them.
        Qwen3Error: The library failed.
    """
    try:
        left = list(texts)
        while left:
            pool_step(model, left)
            left = [text for text in left if not text.finished]
            failed = next((text.error for text in texts if text.error is not None), None)
            if failed is not None:
                raise failed
        return np.stack([text.state for text in texts if text.state is not None])
    finally:
        for text in texts:
            text.release()
