"""What all endpoints share: the loaded model, readiness, reading bodies, following answers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from infinicore_infer.causal_lm import Qwen3ForCausalLM
from infinicore_infer.engine.async_engine import AsyncEngine, AsyncStream
from infinicore_infer.engine.engine import Engine
from infinicore_infer.engine.jobs import Submission, Update
from infinicore_infer.server.errors import ApiError, from_exception, to_json, unavailable
from infinicore_infer.server.metrics import Metrics

Body = TypeVar("Body", bound=BaseModel)
Result = TypeVar("Result")


@dataclass(slots=True)
class ServiceConfig:
    """Settings of the server.

    Attributes:
        model_name: What /v1/models lists and requests name.
        api_key: What clients must send; ``None``: nothing.
        max_body_bytes: Longest request.
        request_timeout: Seconds after which a request is given up; ``None``: never.
        ping_seconds: Silence after which a stream sends a comment, so that nobody hangs up.
        hosts: Names by which clients may call the server, besides localhost and addresses, in lower
            case; ``None``: any.
    """

    model_name: str
    api_key: str | None = field(default=None, repr=False)
    max_body_bytes: int = 16 << 20
    request_timeout: float | None = None
    ping_seconds: float = 15.0
    hosts: frozenset[str] | None = None


@dataclass(slots=True)
class Service:
    """The state behind the endpoints.

    Attributes:
        config: Settings.
        metrics: Numbers.
        async_engine: Set once the model is loaded.
        draining: Whether the server is shutting down.
        created: When it started, in seconds since the epoch.
    """

    config: ServiceConfig
    metrics: Metrics = field(default_factory=Metrics)
    async_engine: AsyncEngine | None = None
    draining: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    def attach(self, engine: Engine) -> None:
        """Begin to serve."""
        self.metrics.watch(lambda: engine.stats)
        self.async_engine = AsyncEngine(engine)

    def ready(self, model: str | None = None) -> AsyncEngine:
        """Return the engine.

        Args:
            model: The model that a request named.

        Raises:
            ApiError: It is loading or draining, or another model is wanted.
        """
        if self.draining:
            raise unavailable("the server is shutting down", "draining")
        if self.async_engine is None:
            raise unavailable("the model is being loaded", "loading")
        if model is not None and model != self.config.model_name:
            message = f"model {model!r} does not exist; this server has {self.config.model_name!r}"
            raise ApiError(404, message, "model", "model_not_found")
        return self.async_engine

    @property
    def model(self) -> Qwen3ForCausalLM:
        """The loaded model."""
        return self.ready().engine.model

    def submit(self, submissions: Sequence[Submission]) -> AsyncStream:
        """Queue prompts, with the server's time limit; see :meth:`AsyncEngine.submit`.

        Raises:
            ApiError: With the status that says what is wrong.
        """
        engine = self.ready()
        room = engine.engine.config.max_batch + engine.engine.config.max_queue
        count = sum(len(submission.params) for submission in submissions)
        if count > room:
            # Not 429: it would be the same at any time.
            name = "n" if count > len(submissions) else "prompt"
            message = f"{name}: {count} answers at once; this server takes {room}"
            raise ApiError(400, message, name)
        timeout = self.config.request_timeout
        try:
            return engine.submit([replace(item, timeout=timeout) for item in submissions])
        except Exception as error:
            raise from_exception(error, engine.engine.retry_after) from error

    async def follow(self, stream: AsyncStream) -> AsyncIterator[tuple[int, Update] | None]:
        """Yield an answer's updates; cancel it at the end.

        ``None`` says that nothing more is here now, and again after every while of silence.
        """
        last: dict[int, float] = {}
        told = False
        begin = time.monotonic()
        try:
            while True:
                # Not wait_for: before Python 3.12 it forgets a cancellation when an update comes at
                # the same moment, and the answer would go on for a client that has left.
                while not stream.pending and not stream.ended:
                    if not told:
                        told = True
                        yield None
                        continue
                    ready = asyncio.ensure_future(stream.wait())
                    try:
                        done, _ = await asyncio.wait({ready}, timeout=self.config.ping_seconds)
                    finally:
                        ready.cancel()
                    if not done:
                        yield None
                try:
                    index, update = await anext(stream)
                except StopAsyncIteration:
                    return
                if update.piece is not None:
                    now = time.monotonic()
                    if index in last:
                        self.metrics.between_tokens.observe(now - last[index])
                    else:
                        self.metrics.first_token.observe(now - begin)
                    last[index] = now
                told = False
                yield index, update
        finally:
            self.ready_engine().cancel(stream)

    async def deliver(
        self, request: Request, stream: AsyncStream, update: Callable[[int, Update], object]
    ) -> None:
        """Hand every update to a function, for an answer that is sent whole.

        Raises:
            ClientDisconnect: The client left; its answer is cancelled.
        """

        async def collect() -> None:
            async for item in self.follow(stream):
                if item is not None:
                    update(*item)

        try:
            await unless_disconnected(request, collect())
        finally:
            self.ready_engine().cancel(stream)

    def ready_engine(self) -> AsyncEngine:
        """Return the engine, which must be there; also while draining."""
        assert self.async_engine is not None
        return self.async_engine


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


async def read_body(request: Request, kind: type[Body], limit: int) -> Body:
    """Read, parse and check a request.

    Raises:
        ApiError: It is too long, compressed, not JSON, or a field is wrong.
    """
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        message = f"Content-Encoding: {coding[:40]!r} is not supported; send the request as it is"
        raise ApiError(
            415, message, code="unsupported_encoding", headers={"Accept-Encoding": "identity"}
        )
    too_long = ApiError(413, f"the request is longer than {limit} bytes", code="too_large")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise too_long
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > limit:
            raise too_long
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the request is not valid JSON: {error}", code="bad_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the request must be a JSON object", code="bad_json")
    try:
        return kind.model_validate(value)
    except (ValueError, RecursionError) as error:
        raise from_exception(
            error if isinstance(error, ValueError) else ValueError(error)
        ) from None


async def unless_disconnected(request: Request, work: Awaitable[Result]) -> Result:
    """Return the result of work, or cancel it when the client leaves.

    Raises:
        ClientDisconnect: It left.
    """

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


class EventStream(StreamingResponse):
    """Server-sent events; whatever happens, ``on_close`` runs at the end."""

    def __init__(
        self,
        events: AsyncIterator[dict[str, Any] | None],
        on_close: Callable[[], None],
        failure: Callable[[ApiError], dict[str, Any]] | None = None,
        ping: str = ": ping\n\n",
    ) -> None:
        """Send events until they end.

        Args:
            events: What is here at once goes out together. ``None`` says that nothing more is; from
                the second on, if nothing came since the last, the ping is sent.
            on_close: Called at the end.
            failure: Makes an event of an error, for protocols whose events have names, which are
                their ``type``. ``None``: chat and text completions, which end with ``[DONE]``.
            ping: A comment, or an event that means nothing.
        """
        self._on_close = on_close
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self._encode(events, failure, ping), 200, headers, "text/event-stream")

    @staticmethod
    async def _encode(
        events: AsyncIterator[dict[str, Any] | None],
        failure: Callable[[ApiError], dict[str, Any]] | None,
        ping: str,
    ) -> AsyncIterator[str]:
        def text(event: dict[str, Any]) -> str:
            name = f"event: {event['type']}\n" if failure else ""
            return f"{name}data: {to_json(event)}\n\n"

        waiting, begun = "", False
        try:
            async for event in events:
                if event is not None:
                    waiting += text(event)
                    continue
                if waiting or begun:
                    yield waiting or ping
                waiting, begun = "", True
        except Exception as error:
            # The status is sent already; clients look for this.
            problem = from_exception(error)
            waiting += text(failure(problem) if failure else problem.body())
        yield waiting + ("data: [DONE]\n\n" if failure is None else "")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_close()


__all__ = [
    "EventStream",
    "Response",
    "Service",
    "ServiceConfig",
    "read_body",
    "unless_disconnected",
]
