"""Thinking budgets: after so many tokens, the model is made to end its thinking and to answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from infinicore_infer.errors import FieldError
from infinicore_infer.generate.constraint import Constraint
from infinicore_infer.text.tokenizer import Qwen3Tokenizer


class ThinkingBudget:
    """Ends the thinking after a number of tokens, and leaves the rest to another constraint."""

    def __init__(
        self,
        inner: Constraint | None,
        *,
        budget: int,
        ending: list[int],
        think: int,
        think_end: int,
        opened: bool,
        dvoc: int,
    ) -> None:
        """Constrain one answer.

        Args:
            inner: What else limits the tokens.
            budget: Most tokens of thinking, the tags and the ending not counted.
            ending: What is written then; it contains ``think_end``.
            think: The token that begins thinking, where the prompt has not.
            think_end: The token that ends it.
            opened: Whether the prompt has begun it.
            dvoc: Size of the vocabulary.
        """
        self._inner = inner
        self._budget = budget
        self._ending = list(ending)
        self._think = think
        self._think_end = think_end
        self._dvoc = dvoc
        self._thinking = opened
        self._first = True
        self._used = 0
        self._left: list[int] = []
        self._force_if_spent()

    def _force_if_spent(self) -> None:
        if self._thinking and self._used >= self._budget and not self._left:
            self._left = list(self._ending)

    def mask(self) -> NDArray[np.uint32] | None:
        """Return the bit mask of allowed tokens, or ``None`` for all."""
        if not self._left:
            return None if self._inner is None else self._inner.mask()
        mask = np.zeros((self._dvoc + 31) // 32, np.uint32)
        mask[self._left[0] // 32] = np.uint32(1 << (self._left[0] % 32))
        return mask

    def accept(self, token: int) -> None:
        """Take the token that was chosen."""
        if self._left:
            self._left.pop(0)
        if token == self._think_end:
            self._thinking = False
        elif self._thinking:
            self._used += 1
            self._force_if_spent()
        elif self._first and token == self._think:
            self._thinking = True
            self._force_if_spent()
        self._first = False
        if self._inner is not None:
            self._inner.accept(token)


def limit_thinking(
    tokenizer: Qwen3Tokenizer,
    dvoc: int,
    budget: int,
    opened: bool,
    inner: Callable[[], Constraint] | None,
) -> Callable[[], Constraint]:
    """Return a function that makes constraints with a thinking budget.

    Args:
        tokenizer: The model's.
        dvoc: Size of its vocabulary.
        budget: Most tokens of thinking.
        opened: Whether the prompt has begun to think.
        inner: Makes what else limits the tokens.

    Raises:
        FieldError: The model does not think.
    """
    think, think_end = tokenizer.token_id("<think>"), tokenizer.token_id("</think>")
    if think is None or think_end is None or max(think, think_end) >= dvoc:
        raise FieldError("thinking_budget", "this model does not think")
    # As the model itself ends its thinking, so that what follows is in its habits.
    ending = [*tokenizer.encode("\n"), think_end]
    return lambda: ThinkingBudget(
        inner() if inner else None,
        budget=budget,
        ending=ending,
        think=think,
        think_end=think_end,
        opened=opened,
        dvoc=dvoc,
    )
