"""``/rerank`` and ``/score``: documents judged for a query, as Jina, Cohere, TEI and vLLM ask."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, StrictStr
from starlette.requests import Request
from starlette.responses import Response

from infinicore_infer.errors import FieldError
from infinicore_infer.generate.pooling import PooledText
from infinicore_infer.generate.reranker import Question, RerankResult, question_of, ranked
from infinicore_infer.server.fields import Body, Once, Strings
from infinicore_infer.server.http import json_response
from infinicore_infer.server.json_values import JsonObject
from infinicore_infer.server.known_fields import RERANK, SCORE
from infinicore_infer.server.pooling import pooled
from infinicore_infer.server.service import Service, service_of
from infinicore_infer.server.tokenizing import tokenizing

_MAX_DOCUMENTS = 2048
_Count = Annotated[int, Field(ge=1, le=2**31)]
_Documents = Annotated[list[StrictStr | JsonObject], Once()]


class RerankBody(Body):
    """A request to /v1/rerank, /v2/rerank or /rerank."""

    endpoint = RERANK

    query: StrictStr
    # Jina's and Cohere's, and TEI's, whose answers have another form.
    documents: _Documents | None = None
    texts: Strings | None = None
    top_n: _Count | None = None
    return_documents: bool | None = None
    rank_fields: Strings | None = None
    max_tokens_per_doc: _Count | None = None
    max_tokens_per_query: _Count | None = None
    instruction: StrictStr | None = None
    return_text: bool | None = None
    raw_scores: bool | None = None
    truncate: bool | None = None
    truncation_direction: Literal["Right", "right"] | None = None

    @property
    def bare(self) -> bool:
        """Whether the answer is to be TEI's."""
        return self.texts is not None

    def items(self) -> list[str]:
        """Return the documents' texts.

        Raises:
            FieldError: There are none, too many, or one is no text.
        """
        name = "texts" if self.bare else "documents"
        if self.texts is not None and self.documents is not None:
            raise FieldError("texts", "cannot be given together with documents")
        given: Sequence[str | JsonObject] | None = (
            self.documents if self.texts is None else self.texts
        )
        if given is None:
            raise FieldError("documents", "Field required")
        if not 0 < len(given) <= _MAX_DOCUMENTS:
            raise FieldError(name, f"must be from 1 to {_MAX_DOCUMENTS}, got {len(given)}")
        if self.rank_fields not in (None, [], ["text"]):
            raise FieldError("rank_fields", 'only ["text"] is supported')
        return [_text(each, f"{name}[{i}]") for i, each in enumerate(given)]

    def question(self) -> Question:
        """Return what the documents are judged for.

        Jina and Cohere cut what is too long, TEI does so where it is asked to.
        """
        truncate = bool(self.truncate) if self.bare else self.truncate is not False
        return question_of(
            self.query,
            self.instruction,
            truncate=truncate,
            query_tokens=self.max_tokens_per_query,
            document_tokens=self.max_tokens_per_doc,
        )


class ScoreBody(Body):
    """A request to /v1/score: vLLM's, whose fields have three pairs of names."""

    endpoint = SCORE

    text_1: StrictStr | Strings | None = None
    text_2: StrictStr | Strings | None = None
    queries: StrictStr | Strings | None = None
    documents: StrictStr | _Documents | None = None
    data_1: StrictStr | Strings | None = None
    data_2: StrictStr | Strings | None = None
    instruction: StrictStr | None = None

    def pairs(self) -> list[tuple[str, str, str]]:
        """Return queries, documents and their names; one query may stand for all documents.

        Raises:
            FieldError: Sides are missing, empty, or of different lengths.
        """
        sides = [
            (names, left, right)
            for names, left, right in (
                (("text_1", "text_2"), self.text_1, self.text_2),
                (("queries", "documents"), self.queries, self.documents),
                (("data_1", "data_2"), self.data_1, self.data_2),
            )
            if left is not None or right is not None
        ]
        if len(sides) != 1:
            problem = "give text_1 and text_2, or queries and documents"
            raise FieldError("text_1", problem if not sides else f"{problem}, not both")
        (first, second), left, right = sides[0]
        if left is None or right is None:
            raise FieldError(first if left is None else second, "Field required")
        queries = [left] if isinstance(left, str) else left
        given = [right] if isinstance(right, str) else right
        documents = [_text(each, f"{second}[{i}]") for i, each in enumerate(given)]
        if not 0 < len(documents) <= _MAX_DOCUMENTS:
            raise FieldError(second, f"must be from 1 to {_MAX_DOCUMENTS}, got {len(documents)}")
        if "" in queries:
            raise FieldError(first, "has an empty query", joint=" ")
        if len(queries) == 1:
            queries = queries * len(documents)
        if len(queries) != len(documents):
            raise FieldError(first, f"has {len(queries)} texts, and {second} {len(documents)}")
        names = [f"{second}[{i}]" if isinstance(right, list) else second for i in range(len(given))]
        return list(zip(queries, documents, names, strict=True))


def _text(document: str | JsonObject, name: str) -> str:
    if isinstance(document, str):
        return document
    text = document.get("text")
    if not isinstance(text, str) or len(document) > 1:
        raise FieldError(name, 'must be a text, or an object {"text": ...} of nothing else')
    return text


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question, its documents, and what the client calls each of them."""

    question: Question
    documents: Sequence[str]
    names: Sequence[str]


def _texts(service: Service, asked: Sequence[_Asked]) -> list[PooledText]:
    judge = service.model.reranker
    result = []
    for each in asked:
        with tokenizing(each.names[0]):
            result += judge.texts(each.question, each.documents, each.names)
    return result


async def _judge(request: Request, asked: Sequence[_Asked]) -> tuple[list[list[RerankResult]], int]:
    """Return what the model thinks of each question's documents, and how many tokens these are."""
    service = service_of(request)
    texts = await asyncio.to_thread(_texts, service, asked)
    count = sum(len(text.tokens) for text in texts)
    states = iter(await pooled(request, texts))
    judge = service.model.reranker
    results = [
        [judge.result(i, next(states), document) for i, document in enumerate(each.documents)]
        for each in asked
    ]
    return results, count


async def rerank(request: Request) -> Response:
    """Order documents by how well they answer a query."""
    service = service_of(request)
    body = await service.read(request, RerankBody)
    service.ready(body.model)
    documents = body.items()
    name = "texts" if body.bare else "documents"
    names = [f"{name}[{i}]" for i in range(len(documents))]
    (judged,), count = await _judge(request, [_Asked(body.question(), documents, names)])
    results = ranked(judged, body.top_n)
    if body.bare:
        return json_response([_bare(each, body) for each in results])
    second = request.url.path.startswith("/v2/")
    shown = body.return_documents
    shows = not second if shown is None else shown
    entries: list[JsonObject] = []
    for each in results:
        entry: JsonObject = {"index": each.index, "relevance_score": each.score}
        if shows:
            entry["document"] = {"text": each.document}
        entries.append(entry)
    return json_response(
        {
            "id": f"rerank-{secrets.token_hex(12)}",
            "object": "list",
            "model": service.called(body.model),
            "results": entries,
            "usage": {"prompt_tokens": count, "total_tokens": count},
            "meta": {
                "api_version": {"version": "2" if second else "1"},
                "billed_units": {"search_units": 1},
            },
        }
    )


def _bare(result: RerankResult, body: RerankBody) -> JsonObject:
    """Return a result in TEI's form."""
    score = result.logit if body.raw_scores else result.score
    entry: JsonObject = {"index": result.index, "score": score}
    if body.return_text:
        entry["text"] = result.document
    return entry


async def score(request: Request) -> Response:
    """Judge pairs of texts."""
    service = service_of(request)
    body = await service.read(request, ScoreBody)
    service.ready(body.model)
    pairs = body.pairs()
    by_query: dict[str, list[int]] = {}
    for i, (query, _, _) in enumerate(pairs):
        by_query.setdefault(query, []).append(i)
    asked = [
        _Asked(
            question_of(query, body.instruction),
            [pairs[i][1] for i in at],
            [pairs[i][2] for i in at],
        )
        for query, at in by_query.items()
    ]
    judged, count = await _judge(request, asked)
    scores: dict[int, float] = {}
    for at, results in zip(by_query.values(), judged, strict=True):
        scores.update(zip(at, (each.score for each in results), strict=True))
    return json_response(
        {
            "id": f"score-{secrets.token_hex(12)}",
            "object": "list",
            "created": int(time.time()),
            "model": service.called(body.model),
            "data": [
                {"index": i, "object": "score", "score": scores[i]} for i in range(len(pairs))
            ],
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }
    )
