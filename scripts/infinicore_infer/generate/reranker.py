"""Judges how well documents answer a query, the way Qwen3-Reranker was trained to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infinicore_infer.checkpoint.naming import Qwen3WeightsNaming
from infinicore_infer.checkpoint.task import SCORE_HEADS
from infinicore_infer.checkpoint.tensor import Weight
from infinicore_infer.errors import FieldError
from infinicore_infer.generate.pooling import PooledText, pool
from infinicore_infer.native.model import NativeModel
from infinicore_infer.text.instructions import (
    JUDGE_PREFIX,
    JUDGE_SUFFIX,
    NO,
    WEB_SEARCH,
    YES,
    judged,
)
from infinicore_infer.text.tokenizer import Qwen3Tokenizer


@dataclass(frozen=True, slots=True)
class RerankResult:
    """What a model thinks of one document.

    Attributes:
        index: Its place in the caller's list.
        score: How likely it is that the document answers the query, from 0 to 1.
        logit: The same before the sigmoid: "yes" minus "no".
        document: Its text.
    """

    index: int
    score: float
    logit: float
    document: str


@dataclass(frozen=True, slots=True)
class Question:
    """What documents are judged for.

    Attributes:
        query: The query.
        instruction: The task.
        truncate: Whether a document that is too long is cut; otherwise it is refused.
        query_tokens: Most tokens of the query; ``None``: as many as fit.
        document_tokens: Most tokens of a document; ``None``: as many as fit.
    """

    query: str
    instruction: str = WEB_SEARCH
    truncate: bool = False
    query_tokens: int | None = None
    document_tokens: int | None = None


class NoRerankerError(ValueError):
    """The checkpoint cannot judge documents."""


def score_head(
    weights: Mapping[str, Weight], naming: Qwen3WeightsNaming, tokenizer: Qwen3Tokenizer
) -> NDArray[np.float64]:
    """Return what a hidden state is multiplied with to get "yes" minus "no", [d].

    Args:
        weights: The checkpoint.
        naming: Its names.
        tokenizer: Its tokenizer, which knows the two words.

    Raises:
        NoRerankerError: There is nothing of that kind.
    """
    own = next((weights[name] for name in SCORE_HEADS if name in weights), None)
    if own is not None:
        rows = own.decoded().astype(np.float64).reshape(-1, own.shape[-1])
        if len(rows) == 1:
            return np.array(rows[0])
        if len(rows) == 2 and own.name == SCORE_HEADS[1]:  # llama.cpp stacks yes and no
            return np.array(rows[0] - rows[1])
        raise NoRerankerError(
            f"{own.file}: {own.name} has {len(rows)} rows; models with one score are supported"
        )
    ids = [tokenizer.token_id(word) for word in (YES, NO)]
    head = weights.get(naming.output_embd(), weights[naming.input_embd()])
    pair = []
    for word, token in zip((YES, NO), ids, strict=True):
        if token is None or token >= head.shape[0]:
            raise NoRerankerError(f"{head.file}: the vocabulary has no token {word!r}")
        pair.append(head.decoded(token, token + 1)[0].astype(np.float64))
    return np.array(pair[0] - pair[1])


def relevance(logit: float) -> float:
    """Return the probability of "yes" beside "no"."""
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    odds = math.exp(max(logit, -700.0))
    return odds / (1 + odds)


class Reranker:
    """Judges documents with a model.

    Attributes:
        limit: Most tokens of a query and a document with what stands around them.
    """

    def __init__(
        self, model: NativeModel, tokenizer: Qwen3Tokenizer, head: NDArray[np.float64], limit: int
    ) -> None:
        """Judge with a model; see :func:`score_head`."""
        self.limit = limit
        self._model = model
        self._tokenizer = tokenizer
        self._head = head
        self._before = tokenizer.encode(JUDGE_PREFIX)
        self._after = tokenizer.encode(JUDGE_SUFFIX)

    def texts(
        self, question: Question, documents: Sequence[str], names: Sequence[str] | None = None
    ) -> list[PooledText]:
        """Return what is computed for documents; what they begin with is computed once.

        Control tokens in query and documents are read as plain text, so that a document cannot
        answer in the model's place.

        Args:
            question: What they are judged for.
            documents: The documents.
            names: What the caller calls each of them, for errors; ``None``: ``documents[i]``.

        Raises:
            FieldError: Something is empty, or a document is too long.
            TokenizerError: A text is no valid Unicode.
        """
        if not question.query:
            raise FieldError("query", "is empty")
        if len(documents) == 0:
            raise FieldError("documents", "is empty: there is nothing to judge")
        query = self._shortened(question.query, question.query_tokens)
        room = self.limit - len(self._before) - len(self._after)
        lists = []
        for i, document in enumerate(documents):
            text = judged(
                query, self._shortened(document, question.document_tokens), question.instruction
            )
            pair = self._tokenizer.encode(text, allow_special=False)
            if len(pair) > room and not question.truncate:
                raise FieldError(
                    f"documents[{i}]" if names is None else names[i],
                    f"has {len(pair)} tokens with the query, and at most {room} fit the context",
                    joint=" ",
                    code="context_length_exceeded",
                )
            lists.append([*self._before, *pair[: max(room, 0)], *self._after][: self.limit])
        if len(lists) == 1:
            return [PooledText(lists[0])]
        prefix = PooledText(common_beginning(lists))
        return [PooledText(tokens, prefix) for tokens in lists]

    def _shortened(self, text: str, limit: int | None) -> str:
        return text if limit is None else self._tokenizer.shortened(text, limit)

    def result(self, index: int, state: NDArray[np.float32], document: str) -> RerankResult:
        """Return what a last hidden state says."""
        logit = float((state.astype(np.float64) * self._head).sum())
        return RerankResult(index, relevance(logit), logit, document)

    def rerank(
        self, question: Question, documents: Sequence[str], top_n: int | None = None
    ) -> list[RerankResult]:
        """Judge documents; see :meth:`.Qwen3ForCausalLM.rerank`."""
        states = pool(self._model, self.texts(question, documents))
        return ranked(
            [
                self.result(i, state, document)
                for i, (state, document) in enumerate(zip(states, documents, strict=True))
            ],
            top_n,
        )


def ranked(results: Sequence[RerankResult], top_n: int | None = None) -> list[RerankResult]:
    """Return results, the best first; equal ones in the caller's order."""
    return sorted(results, key=lambda each: (-each.logit, each.index))[:top_n]


def common_beginning(lists: Sequence[list[int]]) -> list[int]:
    """Return the longest beginning of all lists that leaves each of them something."""
    first, last = min(lists), max(lists)
    length = next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
        min(len(first), len(last)),
    )
    return first[: min(length, min(map(len, lists)) - 1)]


def question_of(query: str, instruction: str | None, **settings: Any) -> Question:
    """Return a question; without an instruction, that of a web search."""
    question = Question(query, **settings)
    return question if instruction is None else replace(question, instruction=instruction)
