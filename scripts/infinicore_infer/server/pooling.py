"""Waits for the states of texts on behalf of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from libinfinicore_infer import Qwen3OutOfKVError
from starlette.requests import Request

from infinicore_infer.engine.pooling_engine import States
from infinicore_infer.generate.pooling import PooledText
from infinicore_infer.server.errors import ApiError
from infinicore_infer.server.http import unless_disconnected
from infinicore_infer.server.service import service_of

__all__ = ["States", "pooled"]


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
