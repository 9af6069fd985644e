"""Turning a client's text into tokens: what cannot fit is refused before it is encoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
