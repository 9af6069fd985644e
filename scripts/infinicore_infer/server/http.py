"""Bodies of requests, and the two kinds of answers: one JSON object, or a stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from infinicore_infer.server.errors import ApiError, from_exception
from infinicore_infer.server.json_values import JsonObject, from_json, to_json

# What a request may have: each takes the interpreter's lock for some 20 ms then, measured with
# test/bench/stalls.py, and none of it is more than what the longest contexts hold.
_MAX_VALUES = 1 << 18
_MAX_CONTAINERS = 1 << 16
_MAX_FIELDS = 1000

Body = TypeVar("Body", bound=BaseModel)
Result = TypeVar("Result")


async def read_body(request: Request, limit: int) -> bytearray:
    """Return the body of a request.

    Args:
        request: The request.
        limit: Most bytes of it.

    Raises:
        ApiError: It is too long, or compressed.
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
    return data


def parse_body(data: bytearray, kind: type[Body]) -> tuple[JsonObject, Body]:
    """Parse and check the body of a request; return it as it came, and its fields.

    Args:
        data: The body.
        kind: Its fields.

    Raises:
        ApiError: It is not JSON, or has too many parts.
        pydantic.ValidationError: A field is wrong.
    """
    counts = (
        ("values", data.count(b","), _MAX_VALUES),
        ("lists and objects", data.count(b"[") + data.count(b"{"), _MAX_CONTAINERS),
    )
    for what, count, most in counts:
        if count > most:
            # Reading so many would hold everybody up, and no context holds them.
            raise ApiError(413, f"the request has more than {most} {what}", code="too_large")
    try:
        value = from_json(data)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the request is not valid JSON: {error}", code="bad_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the request must be a JSON object", code="bad_json")
    if len(value) > _MAX_FIELDS:
        raise ApiError(413, f"the request has more than {_MAX_FIELDS} fields", code="too_large")
    return value, kind.model_validate(value)


def json_response(
    value: object, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Return a JSON response."""
    return Response(to_json(value), status, headers, "application/json")


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


@dataclass(frozen=True, slots=True)
class StreamForm:
    """How a protocol writes its events.

    Attributes:
        failure: Makes an event of an error.
        named: Whether events have names, which are their ``type``.
        ping: A comment, or an event that means nothing; empty: the protocol knows none.
        end: What is written after the last event.
        lines: Whether each event is a line of JSON, instead of a server-sent event.
    """

    failure: Callable[[ApiError], JsonObject]
    named: bool = False
    ping: str = ": ping\n\n"
    end: str = ""
    lines: bool = False

    @property
    def media_type(self) -> str:
        """What the response is said to be."""
        return "application/x-ndjson" if self.lines else "text/event-stream"

    def text(self, event: JsonObject) -> str:
        """Return an event as it is sent."""
        if self.lines:
            return f"{to_json(event)}\n"
        name = f"event: {event['type']}\n" if self.named else ""
        return f"{name}data: {to_json(event)}\n\n"


class EventStream(StreamingResponse):
    """Server-sent events, or lines of JSON."""

    def __init__(
        self,
        events: AsyncGenerator[JsonObject | None, None],
        form: StreamForm,
        head: Sequence[JsonObject | None] = (),
    ) -> None:
        """Send events until they end; then, or when the client leaves, close their generator.

        Args:
            events: What is here at once goes out together. ``None`` says that nothing more is; from
                the second on, if nothing came since the last, the ping is sent.
            form: How they are written.
            head: What was taken from the generator already.
        """
        self._events = events
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self._encode(head, events, form), 200, headers, form.media_type)

    @staticmethod
    async def _encode(
        head: Sequence[JsonObject | None],
        events: AsyncIterator[JsonObject | None],
        form: StreamForm,
    ) -> AsyncIterator[str]:
        waiting = "".join(form.text(event) for event in head if event is not None)
        begun = None in head
        try:
            async for event in events:
                if event is not None:
                    waiting += form.text(event)
                    continue
                if waiting or (begun and form.ping):
                    yield waiting or form.ping
                waiting, begun = "", True
        except Exception as error:
            # The status is sent already; clients look for this.
            waiting += form.text(form.failure(from_exception(error)))
        yield waiting + form.end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()
