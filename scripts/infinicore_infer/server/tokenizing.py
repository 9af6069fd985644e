"""Turning a client's text into tokens: what cannot fit is refused before it is encoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from infinicore_infer.errors import FieldError, about
from infinicore_infer.text.tokenizer import Qwen3Tokenizer


@contextmanager
def tokenizing(field: str) -> Iterator[None]:
    """Let whatever goes wrong with a text be the field's fault.

    A panic of the tokenizer, which is written in Rust, comes as a ``BaseException``: some texts
    take more memory or steps than its regular expressions have.

    Raises:
        FieldError: In place of any other ``ValueError``, or of a panic.
    """
    try:
        with about(field):
            yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise FieldError(field, "the tokenizer cannot read this text") from None


# Of a prompt that is cut; what is far longer is refused before it is encoded.
_CUT_FROM = 8


@dataclass(frozen=True, slots=True)
class Truncation:
    """How a prompt that is too long is cut; vLLM's ``truncate_prompt_tokens``.

    Attributes:
        tokens: How many tokens stay at most; -1: as many as leave room for the answer.
        side: Where tokens go: ``"left"``, at the beginning, or ``"right"``.
        answer: Most tokens of the answer; ``None``: no limit.
    """

    tokens: int
    side: str = "left"
    answer: int | None = None

    def room(self, context: int) -> int:
        """Return how many tokens stay at most.

        Args:
            context: How many tokens the context holds.

        Raises:
            FieldError: They are more than that, or none.
        """
        name = "truncate_prompt_tokens"
        if self.tokens > context:
            raise FieldError(name, f"is {self.tokens}, but the context holds {context}", joint=" ")
        if self.tokens >= 0:
            return self.tokens
        answer = 1 if self.answer is None else self.answer
        if answer >= context:
            problem = f"is -1, but an answer of {answer} tokens leaves no room: "
            raise FieldError(name, f"{problem}the context holds {context}", joint=" ")
        return context - answer

    def readable(self, context: int) -> int:
        """Return how many tokens a text may have before it is cut; see :func:`refuse_long`."""
        return _CUT_FROM * context

    def cut(self, tokens: list[int], context: int) -> list[int]:
        """Return a prompt of no more tokens than are to stay."""
        room = self.room(context)
        return tokens[-room:] if self.side == "left" else tokens[:room]


def refuse_long(tokenizer: Qwen3Tokenizer, text: str, limit: int, field: str) -> None:
    """Refuse a text that cannot fit, which takes far less than to encode it.

    Args:
        tokenizer: The model's.
        text: The text.
        limit: Most tokens that it may have.
        field: What it is in, for errors.

    Raises:
        FieldError: It has more tokens for certain.
    """
    if not tokenizer.may_fit(text, limit):
        problem = f"the prompt has {len(text)} characters, the context holds {limit} tokens"
        raise FieldError(field, problem, code="context_length_exceeded")
