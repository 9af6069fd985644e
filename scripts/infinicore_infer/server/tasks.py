"""Which endpoints a model serves: chats, embeddings or judgements, by what it was loaded for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from infinicore_infer.checkpoint.task import Task
from infinicore_infer.server.errors import ApiError
from infinicore_infer.server.service import service_of

Endpoint = Callable[[Request], Awaitable[Response]]

_PURPOSES: dict[Task, tuple[str, str]] = {
    "chat": ("chats and texts", "/v1/chat/completions"),
    "embed": ("embeddings", "/v1/embeddings"),
    "rerank": ("judging documents", "/v1/rerank and /v1/score"),
}


def only_for(task: Task, endpoint: Endpoint) -> Endpoint:
    """Return an endpoint that refuses requests where the model was loaded for another task."""

    async def fitting(request: Request) -> Response:
        service = service_of(request)
        if service.async_engine is not None and service.model.task != task:
            own = service.model.task
            raise ApiError(
                400,
                f"{request.url.path} needs a model for {_PURPOSES[task][0]}, and "
                f"{service.config.model_name!r} was loaded for {_PURPOSES[own][0]}: it serves "
                f"{_PURPOSES[own][1]} (the server's --task says what a model is for)",
                code="unsupported_task",
            )
        return await endpoint(request)

    return fitting
