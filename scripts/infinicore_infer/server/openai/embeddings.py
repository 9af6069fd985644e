"""``/v1/embeddings``: texts to vectors, as OpenAI's API has it, with vLLM's options."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, StrictStr
from starlette.requests import Request
from starlette.responses import Response

from infinicore_infer.errors import FieldError
from infinicore_infer.generate.embedder import Truncation
from infinicore_infer.server.fields import Body, Ids, Once, Strings
from infinicore_infer.server.http import json_response
from infinicore_infer.server.known_fields import EMBEDDINGS
from infinicore_infer.server.pooling import States, embedding_tokens, pooled
from infinicore_infer.server.service import Service, service_of
from infinicore_infer.text.instructions import instructed

_MAX_TEXTS = 2048  # as OpenAI's


class EmbeddingsBody(Body):
    """A request to /v1/embeddings."""

    endpoint = EMBEDDINGS

    input: StrictStr | Strings | Ids | Annotated[list[Ids], Once()]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    # vLLM's; -1: as many as fit.
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=2**31)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool | None = None
    normalize: bool | None = None
    instruction: str | None = None

    def texts(self) -> list[str | Sequence[int]]:
        """Return what is embedded, which one text or list of ids may stand for.

        Raises:
            FieldError: There is nothing, too much, or an instruction with token ids.
        """
        given = [self.input] if isinstance(self.input, str) else self.input
        ids = [token for token in given if isinstance(token, int)]
        items: list[str | Sequence[int]] = [ids] if ids else []
        items += [text for text in given if not isinstance(text, int)]
        if not 0 < len(items) <= _MAX_TEXTS:
            raise FieldError("input", f"must be from 1 to {_MAX_TEXTS} texts, got {len(items)}")
        if self.instruction is None:
            return items
        texts = [text for text in items if isinstance(text, str)]
        if len(texts) < len(items):
            raise FieldError("instruction", "needs texts, and the input has token ids")
        return [instructed(text, self.instruction) for text in texts]

    @property
    def truncation(self) -> Truncation | None:
        """How texts that are too long are cut; ``None``: they are refused.

        Raises:
            FieldError: To no tokens at all.
        """
        limit = self.truncate_prompt_tokens
        if limit == 0:
            raise FieldError("truncate_prompt_tokens", "must be at least 1, or -1, got 0")
        if limit is None:
            return None
        return Truncation(2**31 if limit == -1 else limit, self.truncation_side or "right")


def _tokens(service: Service, body: EmbeddingsBody) -> list[list[int]]:
    model, texts = service.model, body.texts()
    model.embedder.check_dimensions(body.dimensions)
    special = body.add_special_tokens is not False
    return embedding_tokens(service, texts, body.truncation, add_special=special)


def _vectors(service: Service, body: EmbeddingsBody, states: States) -> list[object]:
    """Return the embeddings in the wanted form."""
    result: list[object] = []
    for state in states:
        vector = service.model.embedder.vector(state, body.dimensions, body.normalize is not False)
        if body.encoding_format == "base64":
            result.append(base64.b64encode(vector.astype("<f4").tobytes()).decode())
        else:
            result.append(vector.tolist())
    return result


async def embeddings(request: Request) -> Response:
    """Embed texts."""
    service = service_of(request)
    body = await service.read(request, EmbeddingsBody)
    service.ready(body.model)
    lists = await asyncio.to_thread(_tokens, service, body)
    states = await pooled(request, lists)
    vectors = await asyncio.to_thread(_vectors, service, body, states)
    count = sum(map(len, lists))
    return json_response(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": i, "embedding": vector}
                for i, vector in enumerate(vectors)
            ],
            "model": service.called(body.model),
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }
    )
