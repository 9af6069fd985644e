"""Waits for the states of texts on behalf of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from libinfinicore_infer import Qwen3OutOfKVError
from starlette.requests import Request

from infinicore_infer.engine.pooling_engine import States
from infinicore_infer.generate.embedder import Truncation
from infinicore_infer.generate.pooling import PooledText
from infinicore_infer.server.errors import ApiError
from infinicore_infer.server.http import unless_disconnected
from infinicore_infer.server.service import Service, service_of
from infinicore_infer.server.tokenizing import refuse_long, tokenizing

__all__ = ["States", "embedding_tokens", "pooled"]


def embedding_tokens(
    service: Service,
    texts: Sequence[str | Sequence[int]],
    truncation: Truncation | None,
    *,
    field: str = "input",
    add_special: bool = True,
) -> list[list[int]]:
    """Return the token ids that are embedded; takes a while for long texts.

    Args:
        service: The state behind the endpoints.
        texts: Texts, or token ids.
        truncation: How those that are too long are cut; ``None``: they are refused.
        field: What they are in, for errors.
        add_special: Whether texts get the tokens that the tokenizer adds.

    Raises:
        FieldError: A text is empty or too long, or cannot be read.
    """
    model = service.model
    if truncation is None and model.has_tokenizer:
        for i, text in enumerate(texts):
            if isinstance(text, str):
                refuse_long(model.tokenizer, text, model.embedder.limit, f"{field}[{i}]")
    with tokenizing(field):
        return model.embedder.tokens(texts, truncation, add_special=add_special)


async def pooled(request: Request, texts: Sequence[PooledText] | Sequence[Sequence[int]]) -> States:
    """Return the last hidden states of texts, which are given up when the client leaves.

    Args:
        request: The request that they belong to.
        texts: Texts, or their token ids.

    Raises:
        ClientDisconnect: The client left.
        MemoryError: The KV memory cannot hold one of the texts.
        EngineError: There is no room now, the time is over, or the library failed.
    """
    service = service_of(request)
    pooling = service.engine.engine.pooling
    assert pooling is not None  # the routes say so
    items = [text if isinstance(text, PooledText) else PooledText(text) for text in texts]
    name, timeout = request.state.request_id, service.config.request_timeout
    future = pooling.submit(items, name=name, timeout=timeout)
    try:
        return await unless_disconnected(request, asyncio.wrap_future(future))
    except Qwen3OutOfKVError as error:
        raise ApiError(400, str(error), code="context_length_exceeded") from None
    finally:
        future.cancel()
