"""Which tokens may come besides what a constraint says: some only, no bad word, no early end."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from infinicore_infer.errors import FieldError, about
from infinicore_infer.text.tokenizer import Qwen3Tokenizer


def bad_word_tokens(tokenizer: Qwen3Tokenizer, words: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the token sequences that must not come: each word as it is, and after a space.

    Raises:
        FieldError: A word is empty, or no text.
    """
    result: dict[tuple[int, ...], None] = {}
    for i, word in enumerate(words):
        if not isinstance(word, str) or not word.strip():
            raise FieldError(f"bad_words[{i}]", f"must be a word, got {word!r:.60}")
        with about(f"bad_words[{i}]"):
            for prefix in ("", " "):
                result[tuple(tokenizer.encode(prefix + word.lstrip()))] = None
    return list(result)


class TokenRules:
    """Limits the tokens of one answer.

    Attributes:
        allowed: Mask of the only tokens that may come, [(dvoc + 31) / 32]; ``None``: all.
    """

    def __init__(
        self,
        dvoc: int,
        *,
        allowed: Sequence[int] | None = None,
        bad_words: Sequence[Sequence[int]] = (),
        min_tokens: int = 0,
        end_tokens: Collection[int] = (),
    ) -> None:
        """Limit one answer.

        Args:
            dvoc: Size of the vocabulary.
            allowed: The only tokens that may come; ``None``: all.
            bad_words: Token sequences of which the last one must not come after the others.
            min_tokens: How many tokens come before one of ``end_tokens`` may.
            end_tokens: Those that end the answer.

        Raises:
            FieldError: An allowed token is not in the vocabulary.
        """
        ids = np.asarray(allowed or (), np.int64)
        wrong = ids[(ids < 0) | (ids >= dvoc)]
        if wrong.size:
            problem = f"token {wrong[0]}: ids of this model are from 0 to {dvoc - 1}"
            raise FieldError("allowed_tokens", problem)
        self._words = (dvoc + 31) // 32
        self.allowed = None if allowed is None else self._mask_of(ids)
        self._bad_words = [tuple(word) for word in bad_words]
        self._min_tokens = min_tokens
        self._ends = [token for token in end_tokens if token < dvoc]

    def _mask_of(self, tokens: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint32]:
        bits = np.zeros(32 * self._words, np.uint8)
        bits[tokens] = 1
        return np.packbits(bits, bitorder="little").view(np.uint32)

    def changing(self, generated: int) -> bool:
        """Return whether the mask may be another one after the next token.

        Args:
            generated: How many tokens have come.
        """
        return bool(self._bad_words) or generated < self._min_tokens

    def _banned(self, tokens: Sequence[int]) -> list[int]:
        banned = list(self._ends) if len(tokens) < self._min_tokens else []
        for word in self._bad_words:
            before = len(word) - 1
            if before <= len(tokens) and tuple(tokens[len(tokens) - before :]) == word[:-1]:
                banned.append(word[-1])
        return banned

    def mask(
        self, inner: NDArray[np.uint32] | None, tokens: Sequence[int]
    ) -> NDArray[np.uint32] | None:
        """Return the mask of tokens that may come next; ``None``: all.

        Where nothing would be left, a form wins over the allowed tokens, and both over the bans:
        something has to come.

        Args:
            inner: Mask of what a constraint allows; ``None``: all. It is not changed.
            tokens: Those of the answer so far.
        """
        mask = inner
        if self.allowed is not None:
            both = self.allowed if inner is None else self.allowed & inner
            mask = both if both.any() else inner
        banned = self._banned(tokens)
        if not banned:
            return mask
        rest = np.full(self._words, 0xFFFFFFFF, np.uint32) if mask is None else mask.copy()
        rest &= ~self._mask_of(banned)
        return rest if rest.any() else mask
