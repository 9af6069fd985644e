"""Small endpoints: health, version, metrics, the model's card, llama-server's, the chat page."""

from __future__ import annotations

from datetime import datetime, timezone

from starlette.requests import Request
from starlette.responses import Response

from infinicore_infer.server.errors import ApiError, no_such_model, unavailable
from infinicore_infer.server.http import json_response
from infinicore_infer.server.json_values import JsonObject
from infinicore_infer.server.page import chat_page, page_file
from infinicore_infer.server.service import Service, service_of
from infinicore_infer.text.tokenizer import Qwen3Tokenizer


async def health(request: Request) -> Response:
    """Say whether requests are welcome. Never waits for the model."""
    service_of(request).ready()
    return json_response({"status": "ok"})


async def page(request: Request) -> Response:
    """Return the chat page."""
    return chat_page(request.headers.get("if-none-match", ""))


async def file_of_page(request: Request) -> Response:
    """Return a script or style of the chat page."""
    found = page_file(request.path_params["digest"], request.path_params["name"])
    if found is None:
        message = f"{request.url.path[:200]} is no file of this version's page: reload it"
        raise ApiError(404, message, code="not_found")
    return found


async def version(request: Request) -> Response:
    """Return the library's version."""
    return json_response({"version": request.app.state.version})


async def metrics(request: Request) -> Response:
    """Return Prometheus metrics."""
    text = service_of(request).metrics.text()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _loaded(request: Request) -> Service:
    """Return the state behind the endpoints, if the model is there.

    Raises:
        ApiError: It is being loaded.
    """
    service = service_of(request)
    # Also while draining, when answers still go on.
    if service.async_engine is None:
        raise unavailable("the model is being loaded", "loading")
    return service


def _card(service: Service, name: str) -> JsonObject:
    """Return what OpenAI's and Anthropic's clients, and those of other servers, ask for."""
    context = service.engine.engine.context_length
    created = datetime.fromtimestamp(service.created, timezone.utc)
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "infinicore_infer",
        "task": service.model.task,
        "root": service.config.model_name,
        "type": "model",
        "display_name": name,
        "created_at": created.isoformat().replace("+00:00", "Z"),
        # vLLM's, OpenRouter's and Anthropic's name of it.
        "max_model_len": context,
        "context_length": context,
        "max_input_tokens": context,
    }


async def models(request: Request) -> Response:
    """List the model under each of its names."""
    service = _loaded(request)
    names = service.config.names
    cards = [_card(service, name) for name in names]
    page = {"has_more": False, "first_id": names[0], "last_id": names[-1]}
    return json_response({"object": "list", "data": cards, **page})


async def model(request: Request) -> Response:
    """Return the model by one of its names."""
    service, name = _loaded(request), request.path_params["name"]
    if not service.config.is_served(name):
        raise no_such_model(name, service.config.names)
    return json_response(_card(service, name))


async def props(request: Request) -> Response:
    """Return what llama-server tells of itself, which editors' plugins ask for."""
    service = _loaded(request)
    engine, model = service.engine.engine, service.model
    config = model.meta.generation_config
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    tokenizer = model.tokenizer if model.has_tokenizer else None
    begin = config.get("bos_token_id")
    result: JsonObject = {
        "default_generation_settings": {
            "n_ctx": engine.context_length,
            "params": {name: config[name] for name in names if config.get(name) is not None},
        },
        "total_slots": engine.config.max_batch,
        "model_alias": service.config.model_name,
        "model_path": model.path.name,
        "chat_template": ""
        if tokenizer is None
        else tokenizer.templates.sources.get("default", ""),
        "bos_token": _token(tokenizer, begin),
        "eos_token": _token(tokenizer, next(iter(model.meta.end_tokens), None)),
        "modalities": {"vision": False, "audio": False},
        "build_info": f"infinicore_infer {request.app.state.version}",
    }
    return json_response(result)


def _token(tokenizer: Qwen3Tokenizer | None, token: object) -> str:
    if tokenizer is None or not isinstance(token, int):
        return ""
    return tokenizer.decode([token], False)


async def slots(request: Request) -> Response:
    """Return how many of the answers that are computed together are taken; never their texts."""
    service = _loaded(request)
    engine = service.engine.engine
    running = engine.stats.running
    context = engine.context_length
    return json_response(
        [
            {"id": i, "n_ctx": context, "is_processing": i < running}
            for i in range(engine.config.max_batch)
        ]
    )
