"""The application: routes, and what its exceptions become."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from infinicore_infer.server import info, tokenize
from infinicore_infer.server.anthropic.errors import MESSAGE_ERRORS
from infinicore_infer.server.anthropic.messages import MessagesBody, count_tokens, messages
from infinicore_infer.server.errors import EXPECTED, ApiError, ErrorForm, from_exception
from infinicore_infer.server.fields import Body
from infinicore_infer.server.gate import Gate
from infinicore_infer.server.http import json_response
from infinicore_infer.server.ollama import chat as ollama_chat
from infinicore_infer.server.ollama import embeddings as ollama_embeddings
from infinicore_infer.server.ollama import models as ollama_models
from infinicore_infer.server.ollama.errors import OLLAMA_ERRORS
from infinicore_infer.server.ollama.fields import GenerateBody, OllamaChatBody
from infinicore_infer.server.openai import stored_responses
from infinicore_infer.server.openai.chat import chat_completions
from infinicore_infer.server.openai.completions import completions
from infinicore_infer.server.openai.embeddings import EmbeddingsBody, embeddings
from infinicore_infer.server.openai.errors import CHAT_ERRORS, RESPONSE_ERRORS
from infinicore_infer.server.openai.fields import ChatBody, CompletionBody
from infinicore_infer.server.openai.response_state import ResponseState
from infinicore_infer.server.openai.responses import ResponsesBody, responses
from infinicore_infer.server.page import FILES
from infinicore_infer.server.rerank import RerankBody, ScoreBody, rerank, score
from infinicore_infer.server.service import Service, service_of
from infinicore_infer.server.tasks import only_for

Endpoint = Callable[[Request], Awaitable[Response]]

_ENDPOINTS: tuple[tuple[str, str, Endpoint], ...] = (
    ("GET", "/health", info.health),
    ("GET", "/version", info.version),
    ("GET", "/metrics", info.metrics),
    ("GET", "/models", info.models),
    ("GET", "/models/{name:path}", info.model),
    ("POST", "/chat/completions", only_for("chat", chat_completions)),
    ("POST", "/completions", only_for("chat", completions)),
    ("POST", "/responses", only_for("chat", responses)),
    ("POST", "/responses/input_tokens", stored_responses.input_tokens),
    ("GET", "/responses/{id}", stored_responses.retrieve),
    ("DELETE", "/responses/{id}", stored_responses.delete),
    ("POST", "/responses/{id}/cancel", stored_responses.cancel),
    ("GET", "/responses/{id}/input_items", stored_responses.input_items),
    ("POST", "/messages", only_for("chat", messages)),
    ("POST", "/messages/count_tokens", count_tokens),
    ("GET", "/props", info.props),
    ("GET", "/slots", info.slots),
    ("POST", "/apply-template", tokenize.apply_template),
    ("POST", "/embeddings", only_for("embed", embeddings)),
    ("POST", "/rerank", only_for("rerank", rerank)),
    ("POST", "/score", only_for("rerank", score)),
    ("POST", "/tokenize", tokenize.tokenize),
    ("POST", "/detokenize", tokenize.detokenize),
)

# Ollama's, which are there under these paths alone.
_OLLAMA: tuple[tuple[str, str, Endpoint], ...] = (
    ("POST", "/api/chat", only_for("chat", ollama_chat.chat)),
    ("POST", "/api/generate", only_for("chat", ollama_chat.generate)),
    ("GET", "/api/tags", ollama_models.tags),
    ("GET", "/api/ps", ollama_models.running),
    ("GET", "/api/version", ollama_models.version),
    ("POST", "/api/show", ollama_models.show),
    ("POST", "/api/pull", ollama_models.pull),
    ("POST", "/api/embed", only_for("embed", ollama_embeddings.embed)),
    ("POST", "/api/embeddings", only_for("embed", ollama_embeddings.embeddings)),
    ("POST", "/api/create", ollama_models.fixed),
    ("POST", "/api/copy", ollama_models.fixed),
    ("POST", "/api/push", ollama_models.fixed),
    ("DELETE", "/api/delete", ollama_models.fixed),
)

# What the protocols' endpoints read.
BODIES: tuple[type[Body], ...] = (
    *(ChatBody, CompletionBody, ResponsesBody, MessagesBody, OllamaChatBody, GenerateBody),
)

# What the endpoints of models that write nothing read.
POOLING_BODIES: tuple[type[Body], ...] = (EmbeddingsBody, RerankBody, ScoreBody)


def form_of(path: str) -> ErrorForm:
    """Return the form of errors of a path, which need not exist."""
    if path.startswith("/api/"):
        return OLLAMA_ERRORS
    place = path.removeprefix("/v1") + "/"
    if place.startswith("/messages/"):
        return MESSAGE_ERRORS
    return RESPONSE_ERRORS if place.startswith("/responses/") else CHAT_ERRORS


def _error_response(request: Request, error: ApiError) -> Response:
    body = form_of(request.url.path).body(error)
    return json_response(body, error.status, error.headers)


async def _refused(request: Request, error: Exception) -> Response:
    names = form_of(request.url.path).names
    retry_after = service_of(request).retry_after
    return _error_response(request, from_exception(error, names, retry_after))


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message, code = f"{request.url.path} does not exist", "not_found"
    if error.status_code == 405:
        message, code = f"{request.url.path} does not take {request.method}", "method_not_allowed"
    return _error_response(
        request, ApiError(error.status_code, message, code=code, headers=error.headers)
    )


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


def make_app(
    service: Service,
    *,
    version: str,
    start: Callable[[], None],
    stop: Callable[[], None],
    cors_origins: Sequence[str] = (),
) -> Starlette:
    """Return the application.

    Args:
        service: The state behind it.
        version: Of the library.
        start: Called when the server begins to listen; must not block.
        stop: Called when it ends; may block.
        cors_origins: Web origins whose pages may call it.

    Raises:
        OSError: The folder of stored responses cannot be used.
    """
    remembered = ResponseState(service.config)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await asyncio.to_thread(remembered.store.load)
        start()
        yield
        await asyncio.to_thread(stop)
        await remembered.close()

    routes = [
        Route(prefix + path, endpoint, methods=[method])
        for method, path, endpoint in _ENDPOINTS
        for prefix in ("", "/v1")
    ]
    routes += [Route(path, endpoint, methods=[method]) for method, path, endpoint in _OLLAMA]
    # Cohere's newer protocol.
    routes.append(Route("/v2/rerank", only_for("rerank", rerank), methods=["POST"]))
    routes.append(Route("/", info.page, methods=["GET"]))
    routes.append(Route(FILES + "{digest}/{name:path}", info.file_of_page, methods=["GET"]))
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(cors_origins),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=["X-Request-Id", "X-Ignored-Fields", "Retry-After"],
    )
    paths = [route.path for route in routes]
    gate = Middleware(Gate, service=service, paths=paths, origins=cors_origins, form_of=form_of)
    app = Starlette(
        routes=routes,
        # Where no other origin is welcome, preflights get 405 as any unknown method does.
        middleware=[cors, gate] if cors_origins else [gate],
        exception_handlers={
            **dict.fromkeys(EXPECTED, _refused),
            HTTPException: _no_route,
            ClientDisconnect: _left,
        },
        lifespan=lifespan,
    )
    app.state.service = service
    app.state.responses = remembered
    app.state.version = version
    return app
