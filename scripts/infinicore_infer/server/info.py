"""Small endpoints: health, version, metrics, the model's card, the chat page."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from infinicore_infer.server.errors import ApiError, unavailable
from infinicore_infer.server.http import json_response
from infinicore_infer.server.json_values import JsonObject
from infinicore_infer.server.page import chat_page
from infinicore_infer.server.service import Service, service_of


async def health(request: Request) -> Response:
    """Say whether requests are welcome. Never waits for the model."""
    service_of(request).ready()
    return json_response({"status": "ok"})


async def page(request: Request) -> Response:
    """Return the chat page."""
    return chat_page()


async def version(request: Request) -> Response:
    """Return the library's version."""
    return json_response({"version": request.app.state.version})


async def metrics(request: Request) -> Response:
    """Return Prometheus metrics."""
    text = service_of(request).metrics.text()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _card(service: Service) -> JsonObject:
    # Also while draining, when answers still go on.
    if service.async_engine is None:
        raise unavailable("the model is being loaded", "loading")
    return {
        "id": service.config.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "infinicore_infer",
        "max_model_len": service.async_engine.engine.context_length,
    }


async def models(request: Request) -> Response:
    """List the one model."""
    return json_response({"object": "list", "data": [_card(service_of(request))]})


async def model(request: Request) -> Response:
    """Return the model by its name."""
    service, name = service_of(request), request.path_params["name"]
    if name != service.config.model_name:
        raise ApiError(404, f"model {name!r} does not exist", "model", "model_not_found")
    return json_response(_card(service))
