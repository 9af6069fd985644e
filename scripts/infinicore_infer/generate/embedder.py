"""Texts to vectors: what is computed of a text, and what is made of its last hidden state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from infinicore_infer.errors import FieldError
from infinicore_infer.generate.pooling import PooledText, pool
from infinicore_infer.native.model import NativeModel, token_list
from infinicore_infer.text.instructions import instructed
from infinicore_infer.text.tokenizer import Qwen3Tokenizer

Side = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class Truncation:
    """How texts that are too long are shortened; the tokens that end every text stay.

    Attributes:
        tokens: Most tokens of a text.
        side: The end that is cut off.
    """

    tokens: int
    side: Side = "right"


class Embedder:
    """Makes vectors of texts with a model.

    Attributes:
        size: Components of a vector, before it is cut.
        limit: Most tokens of a text.
    """

    def __init__(
        self,
        model: NativeModel,
        tokenizer: Qwen3Tokenizer | None,
        *,
        size: int,
        limit: int,
        vocabulary: int,
        end_token: int | None = None,
    ) -> None:
        """Embed with a model.

        Args:
            model: The model.
            tokenizer: Its tokenizer; ``None``: there are only token ids.
            size: Its hidden size.
            limit: Its context length.
            vocabulary: Its vocabulary size.
            end_token: A token that ends every text, where the tokenizer adds none by itself.
        """
        self.size = size
        self.limit = limit
        self._model = model
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._end_token = end_token

    def tokens(
        self,
        texts: Sequence[str | Sequence[int]],
        truncation: Truncation | None = None,
        *,
        add_special: bool = True,
    ) -> list[list[int]]:
        """Return the token ids that are computed for texts.

        Args:
            texts: Texts, which get the tokens that the tokenizer's post-processor adds, or token
                ids, which are taken as they are.
            truncation: How those that are too long are cut; ``None``: they are refused.
            add_special: Whether the post-processor adds its tokens.

        Raises:
            FieldError: A text is empty or too long, or an id is not in the vocabulary; the field is
                ``input[i]``.
            TokenizerError: A text is no valid Unicode, or there is no tokenizer.
        """
        words = [text for text in texts if isinstance(text, str)]
        encoded = iter(self._encode(words, add_special) if words else [])
        limit = self.limit if truncation is None else min(self.limit, truncation.tokens)
        result = []
        for i, text in enumerate(texts):
            if isinstance(text, str):
                ids, own = next(encoded)
            else:
                try:
                    ids, own = list(token_list(text, self._vocabulary)), (0, 0)
                except ValueError as error:
                    raise FieldError(f"input[{i}]", str(error)) from None
            if not ids:
                raise FieldError(f"input[{i}]", "is empty")
            if len(ids) > limit:
                if truncation is None:
                    raise FieldError(
                        f"input[{i}]",
                        f"has {len(ids)} tokens, and at most {self.limit} fit the context",
                        joint=" ",
                        code="context_length_exceeded",
                    )
                ids = _cut(ids, own, limit, truncation.side)
            result.append(ids)
        return result

    def _encode(
        self, texts: Sequence[str], add_special: bool
    ) -> list[tuple[list[int], tuple[int, int]]]:
        """Return the ids of texts, and how many at both ends the post-processor added."""
        if self._tokenizer is None:
            raise ValueError("this model has no tokenizer.json, so only token ids can be embedded")
        result = self._tokenizer.encode_processed(texts, add_special)
        if self._end_token is not None and add_special:
            result = [
                (ids, own) if ids and ids[-1] == self._end_token else (
                    [*ids, self._end_token], (own[0], own[1] + 1)
                )
                for ids, own in result
            ]  # fmt: skip
        return result

    def vector(
        self, state: NDArray[np.float32], dimensions: int | None = None, normalize: bool = True
    ) -> NDArray[np.float32]:
        """Return the embedding that a last hidden state is: cut first, then scaled to length 1.

        Args:
            state: float32 [size].
            dimensions: How many of the first components are kept; ``None``: all.
            normalize: Whether it is scaled.

        Raises:
            FieldError: There are not so many components.
        """
        self.check_dimensions(dimensions)
        part = state[:dimensions].astype(np.float64)
        if normalize:
            # Of one row at a time: the sum's order does not depend on how many there are.
            part /= max(math.sqrt(float(np.square(part).sum())), 1e-12)
        return part.astype(np.float32)

    def check_dimensions(self, dimensions: int | None) -> None:
        """Check how many components are wanted.

        Raises:
            FieldError: There are not so many.
        """
        if dimensions is not None and not 1 <= dimensions <= self.size:
            raise FieldError(
                "dimensions", f"must be from 1 to this model's {self.size}, got {dimensions}"
            )

    def embed(
        self,
        texts: str | Sequence[str] | Sequence[Sequence[int]],
        dimensions: int | None = None,
        instruction: str | None = None,
        normalize: bool = True,
        truncate: bool = False,
    ) -> NDArray[np.float32]:
        """Embed texts; see :meth:`.Qwen3ForCausalLM.embed`."""
        self.check_dimensions(dimensions)
        one = isinstance(texts, str)
        items: Sequence[str | Sequence[int]] = [texts] if isinstance(texts, str) else texts
        if instruction is not None:
            if any(not isinstance(item, str) for item in items):
                raise ValueError("instruction needs texts, and there are token ids")
            items = [instructed(item, instruction) for item in items if isinstance(item, str)]
        if len(items) == 0:
            return np.empty((0, dimensions or self.size), np.float32)
        lists = self.tokens(items, Truncation(self.limit) if truncate else None)
        states = pool(self._model, [PooledText(tokens) for tokens in lists])
        vectors = np.stack([self.vector(state, dimensions, normalize) for state in states])
        return vectors[0] if one else vectors


def _cut(ids: list[int], own: tuple[int, int], limit: int, side: Side) -> list[int]:
    """Return at most ``limit`` ids: those that were added at both ends, and a part of the text."""
    first, last = own
    room = max(limit - first - last, 0)
    text = ids[first : len(ids) - last]
    kept = text[:room] if side == "right" else text[len(text) - room :]
    return [*ids[:first], *kept, *ids[len(ids) - last :]][:limit]
