"""/api/embed and the older /api/embeddings: texts to vectors."""

from __future__ import annotations

import asyncio
import time
from typing import ClassVar

from pydantic import StrictStr
from starlette.requests import Request
from starlette.responses import Response

from infinicore_infer.errors import FieldError
from infinicore_infer.generate.embedder import Truncation
from infinicore_infer.server.fields import Body, Strings
from infinicore_infer.server.http import json_response
from infinicore_infer.server.known_fields import OLLAMA_EMBED, OLLAMA_EMBEDDINGS
from infinicore_infer.server.ollama.fields import Options
from infinicore_infer.server.ollama.models import served_name
from infinicore_infer.server.pooling import embedding_tokens, pooled
from infinicore_infer.server.service import Service, service_of

_MAX_TEXTS = 2048  # as of /v1/embeddings


class EmbedFields(Body):
    """What both requests have in common."""

    nested: ClassVar[dict[str, type[Body]]] = {"options": Options}

    # None of them changes a vector.
    options: Options | None = None


class EmbedBody(EmbedFields):
    """A request to /api/embed."""

    endpoint = OLLAMA_EMBED

    input: StrictStr | Strings
    # Whether the ends of texts that are too long are cut off; as at Ollama, where not said.
    truncate: bool | None = None
    dimensions: int | None = None

    def texts(self) -> list[str]:
        """Return what is embedded.

        Raises:
            FieldError: There is too much.
        """
        texts = [self.input] if isinstance(self.input, str) else list(self.input)
        if len(texts) > _MAX_TEXTS:
            raise FieldError("input", f"must be at most {_MAX_TEXTS} texts, got {len(texts)}")
        return texts


class EmbeddingsBody(EmbedFields):
    """A request to /api/embeddings."""

    endpoint = OLLAMA_EMBEDDINGS

    prompt: str


def _tokens(service: Service, body: EmbedBody) -> list[list[int]]:
    service.model.embedder.check_dimensions(body.dimensions)
    cut = None if body.truncate is False else Truncation(service.model.embedder.limit, "right")
    return embedding_tokens(service, body.texts(), cut)


async def embed(request: Request) -> Response:
    """Embed texts; vectors have length 1."""
    begin = time.monotonic()
    service = service_of(request)
    body = await service.read(request, EmbedBody)
    name = served_name(service, body.model)
    lists: list[list[int]] = []
    vectors: list[object] = []
    if body.input not in ("", []):
        lists = await asyncio.to_thread(_tokens, service, body)
        embedder, states = service.model.embedder, await pooled(request, lists)
        vectors = [embedder.vector(state, body.dimensions).tolist() for state in states]
    return json_response(
        {
            "model": name,
            "embeddings": vectors,
            "total_duration": round((time.monotonic() - begin) * 1e9),
            "load_duration": 0,
            "prompt_eval_count": sum(map(len, lists)),
        }
    )


async def embeddings(request: Request) -> Response:
    """Embed one text."""
    service = service_of(request)
    body = await service.read(request, EmbeddingsBody)
    served_name(service, body.model)
    if not body.prompt:
        return json_response({"embedding": []})

    def encode() -> list[list[int]]:
        cut = Truncation(service.model.embedder.limit, "right")
        return embedding_tokens(service, [body.prompt], cut, field="prompt")

    (state,) = await pooled(request, await asyncio.to_thread(encode))
    return json_response({"embedding": service.model.embedder.vector(state).tolist()})
