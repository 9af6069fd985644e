"""The FastAPI application: routes, keys, request ids, logs."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infinicore_infer.server.anthropic.messages import count_tokens, messages
from infinicore_infer.server.errors import (
    ApiError,
    from_exception,
    json_response,
    named,
    unavailable,
)
from infinicore_infer.server.gate import refuse_host, refuse_origin
from infinicore_infer.server.grammar import Grammars
from infinicore_infer.server.openai.chat import chat_completions, told_tools
from infinicore_infer.server.openai.completions import completions
from infinicore_infer.server.openai.fields import DetokenizeBody, TokenizeBody
from infinicore_infer.server.openai.responses import responses
from infinicore_infer.server.page import chat_page
from infinicore_infer.server.service import Service, read_body

_LOG = logging.getLogger("infinicore_infer.server")

# Probes have no keys; the page asks for it.
_PROBES = ("/health", "/v1/health")
_OPEN_PATHS = (*_PROBES, "/")


def _speaks_anthropic(path: str) -> bool:
    """Return whether a path's errors have Anthropic's form."""
    return re.match(r"(/v1)?/messages(/|$)", path) is not None


Handler = Callable[[Request], Awaitable[Response]]


class Gate:
    """Gives every request an id, checks where it is from and its key, logs and counts it."""

    def __init__(
        self, app: ASGIApp, service: Service, paths: Sequence[str], origins: Sequence[str]
    ) -> None:
        """Stand in front of an application."""
        self._app = app
        self._service = service
        self._paths = frozenset(paths)
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if re.fullmatch(r"[\w.:-]{1,64}", given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        status, complete = 499, False
        begin = time.monotonic()

        async def answer(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.body":
                complete = not message.get("more_body", False)
            if message["type"] == "http.response.start":
                status = message["status"]
                header = (b"x-request-id", request_id.encode("latin-1"))
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        path = scope["path"]
        try:
            error = self._refusal(scope["method"], path, headers)
            if error is None:
                await self._app(scope, receive, answer)
            else:
                await error.response(_speaks_anthropic(path))(scope, receive, answer)
        finally:
            if not complete:
                # Whatever was sent at its begin: nobody was there to read the end.
                status = 499
            seconds = time.monotonic() - begin
            label = path if path in self._paths else "other"
            self._service.metrics.requests.labels(label, str(status)).inc()
            self._service.metrics.seconds.labels(label).observe(seconds)
            level = logging.DEBUG if path in (*_PROBES, "/metrics") else logging.INFO
            _LOG.log(
                level,
                "id=%s method=%s path=%r status=%d seconds=%.3f",
                request_id,
                scope["method"],
                path,
                status,
                seconds,
                extra={
                    "fields": {
                        "id": request_id,
                        "method": scope["method"],
                        "path": path,
                        "status": status,
                        "seconds": round(seconds, 6),
                    }
                },
            )

    def _refusal(self, method: str, path: str, headers: dict[bytes, bytes]) -> ApiError | None:
        foreign = refuse_host(headers, self._service.config.hosts)
        foreign = foreign or refuse_origin(method, headers, self._origins)
        if foreign is not None or self._allowed(path, headers):
            return foreign
        return ApiError(
            401,
            "the API key is missing or wrong: send 'Authorization: Bearer KEY'",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _allowed(self, path: str, headers: dict[bytes, bytes]) -> bool:
        key = self._service.config.api_key
        if key is None or path in _OPEN_PATHS:
            return True
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        # Always compared, so that the time tells nothing.
        same = hmac.compare_digest(token.strip(), key.encode())
        # Anthropic's clients send this one.
        other = hmac.compare_digest(headers.get(b"x-api-key", b""), key.encode())
        return (same and scheme.lower() == b"bearer") or other


def _guarded(handler: Handler) -> Handler:
    """Return a handler whose exceptions become responses."""

    async def run(request: Request) -> Response:
        try:
            return await handler(request)
        except HTTPException:
            raise
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as error:
            failure = from_exception(error)
            if failure.status == 500:
                _LOG.exception("request %s failed", request.state.request_id)
            return failure.response(_speaks_anthropic(request.url.path))

    return run


class _Endpoints:
    """The small endpoints."""

    def __init__(self, service: Service, version: str) -> None:
        self._service = service
        self._version = version

    async def health(self, request: Request) -> Response:
        """Say whether requests are welcome. Never waits for the model."""
        self._service.ready()
        return json_response({"status": "ok"})

    async def page(self, request: Request) -> Response:
        """Return the chat page."""
        return chat_page()

    async def version(self, request: Request) -> Response:
        """Return the library's version."""
        return json_response({"version": self._version})

    async def metrics(self, request: Request) -> Response:
        """Return Prometheus metrics."""
        text = self._service.metrics.text()
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    def _card(self) -> dict[str, Any]:
        engine = self._service.async_engine
        if engine is None:
            raise unavailable("the model is being loaded", "loading")
        return {
            "id": self._service.config.model_name,
            "object": "model",
            "created": self._service.created,
            "owned_by": "infinicore_infer",
            "max_model_len": engine.engine.context_length,
        }

    async def models(self, request: Request) -> Response:
        """List the one model."""
        return json_response({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        """Return the model by its name."""
        name = request.path_params["name"]
        if name != self._service.config.model_name:
            raise ApiError(404, f"model {name!r} does not exist", "model", "model_not_found")
        return json_response(self._card())

    async def tokenize(self, request: Request) -> Response:
        """Return the token ids of a text or a conversation."""
        config = self._service.config
        body = await read_body(request, TokenizeBody, config.max_body_bytes)
        engine = self._service.ready(body.model).engine
        tokenizer = engine.model.tokenizer
        text = body.prompt if body.prompt is not None else body.content
        if (text is None) == (body.messages is None):
            raise ApiError(400, "prompt: give either prompt or messages", "prompt")
        with named("prompt" if body.messages is None else "messages"):
            if body.messages is not None:
                tokens = await asyncio.to_thread(
                    tokenizer.encode_chat,
                    body.messages,
                    told_tools(body.tools),
                    body.add_generation_prompt,
                    allow_special=False,
                    variables=body.chat_template_kwargs,
                )
            else:
                tokens = await asyncio.to_thread(tokenizer.encode, text or "")
        result: dict[str, Any] = {
            "tokens": tokens,
            "count": len(tokens),
            "max_model_len": engine.context_length,
        }
        if body.return_token_strs:
            result["token_strs"] = [tokenizer.decode([token], False) for token in tokens]
        return json_response(result)

    async def detokenize(self, request: Request) -> Response:
        """Return the text of token ids."""
        config = self._service.config
        body = await read_body(request, DetokenizeBody, config.max_body_bytes)
        model = self._service.ready(body.model).engine.model
        for i, token in enumerate(body.tokens):
            if not 0 <= token < model.meta.dvoc:
                raise ApiError(400, f"tokens[{i}]: there is no token {token}", f"tokens[{i}]")
        text = await asyncio.to_thread(model.tokenizer.decode, body.tokens, False)
        return json_response({"prompt": text, "content": text})


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    message, code = f"{request.url.path} does not exist", "not_found"
    if status == 405:
        message, code = f"{request.url.path} does not take {request.method}", "method_not_allowed"
    headers = getattr(error, "headers", None)
    failure = ApiError(status, message, code=code, headers=headers)
    return failure.response(_speaks_anthropic(request.url.path))


def make_app(
    service: Service,
    *,
    version: str,
    grammars: Grammars,
    start: Callable[[], None],
    stop: Callable[[], None],
    cors_origins: Sequence[str] = (),
) -> FastAPI:
    """Return the application.

    Args:
        service: The state behind it.
        version: Of the library.
        grammars: Compiles schemas.
        start: Called when the server begins to listen; must not block.
        stop: Called when it ends; may block.
        cors_origins: Web origins whose pages may call it.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        start()
        yield
        await asyncio.to_thread(stop)

    async def chat(request: Request) -> Response:
        return await chat_completions(service, grammars, request)

    async def items(request: Request) -> Response:
        return await responses(service, grammars, request)

    async def blocks(request: Request) -> Response:
        return await messages(service, grammars, request)

    async def count(request: Request) -> Response:
        return await count_tokens(service, request)

    async def text(request: Request) -> Response:
        return await completions(service, request)

    small = _Endpoints(service, version)
    table: list[tuple[str, str, Handler]] = [
        ("GET", "/health", small.health),
        ("GET", "/version", small.version),
        ("GET", "/metrics", small.metrics),
        ("GET", "/models", small.models),
        ("GET", "/models/{name:path}", small.model),
        ("POST", "/chat/completions", chat),
        ("POST", "/completions", text),
        ("POST", "/responses", items),
        ("POST", "/messages", blocks),
        ("POST", "/messages/count_tokens", count),
        ("POST", "/tokenize", small.tokenize),
        ("POST", "/detokenize", small.detokenize),
    ]
    routes = [
        Route(prefix + path, _guarded(handler), methods=[method])
        for method, path, handler in table
        for prefix in ("", "/v1")
    ]
    routes.append(Route("/", _guarded(small.page), methods=["GET"]))
    app = FastAPI(
        title="infinicore_infer",
        version=version,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        exception_handlers={HTTPException: _http_error},
    )
    app.router.routes.extend(routes)
    paths = [route.path for route in routes]
    app.add_middleware(Gate, service=service, paths=paths, origins=cors_origins)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    return app
