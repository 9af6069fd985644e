"""Responses that are made in the background: nobody need wait for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from functools import partial

from infinicore_infer.engine.async_engine import AsyncStream
from infinicore_infer.server.errors import EXPECTED, from_exception
from infinicore_infer.server.json_values import JsonObject, from_json, to_json
from infinicore_infer.server.openai.response_items import ResponseWriter
from infinicore_infer.server.openai.response_store import text_bytes
from infinicore_infer.server.service import Service

_LOG = logging.getLogger("infinicore_infer.server")
# What the engine has told of an answer takes a moment to be written.
_SETTLE_SECONDS = 2.0


def event_of(text: str) -> JsonObject:
    """Return an event that was kept as JSON."""
    value = from_json(text)
    assert isinstance(value, dict)
    return value


class BackgroundRun:
    """A response on its way, whoever asks for it meanwhile. Belongs to one event loop.

    Attributes:
        events: Those of its stream so far, as JSON; empty if it is not to be streamed. An event's
            place is its ``sequence_number``.
        inputs: The items that the client sent, as JSON.
        streamed: Whether it may be streamed.
    """

    def __init__(
        self,
        service: Service,
        stream: AsyncStream,
        writer: ResponseWriter,
        *,
        inputs: str,
        streamed: bool,
        grown: Callable[[int], object],
        ended: Callable[[BackgroundRun], object],
    ) -> None:
        """Begin.

        Args:
            service: The state behind the endpoints.
            stream: Brings the answer.
            writer: Puts it into the protocol's form.
            inputs: The items that the client sent, as JSON.
            streamed: Whether it may be streamed.
            grown: Called with the bytes that are kept more, and less at the end.
            ended: Called once, at the end.
        """
        self.events: list[str] = []
        self.inputs = inputs
        self.streamed = streamed
        self._service = service
        self._writer = writer
        self._grown = grown
        self._kept = 0
        self._ended = ended
        self._over = False
        self._news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._keep(text_bytes(inputs))
        self._task = asyncio.create_task(self._run(stream))
        # Also where it is cancelled before it begins.
        self._task.add_done_callback(partial(self._finish, stream))

    def response(self) -> JsonObject:
        """Return the response as it is now."""
        return self._writer.whole()

    async def cancel(self) -> None:
        """End it; what is there of it stays."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.shield(self._task)

    async def settle(self) -> None:
        """Let it end where its answer has ended already; otherwise cancel it."""
        await asyncio.wait({self._task}, timeout=_SETTLE_SECONDS)
        await self.cancel()

    async def follow(self, after: int) -> AsyncGenerator[JsonObject | None, None]:
        """Yield the events behind one; ``None`` as :meth:`Service.follow` does.

        Args:
            after: The event's number; -1: all.
        """
        at = after + 1
        while True:
            for text in self.events[at:]:
                yield event_of(text)
                at += 1
            if self._over:
                return
            yield None
            if at >= len(self.events) and not self._over:
                await asyncio.wait({self._news}, timeout=self._service.config.ping_seconds)

    async def _run(self, stream: AsyncStream) -> None:
        try:
            async with aclosing(self._service.events(stream, self._writer)) as events:
                async for event in events:
                    if event is not None:
                        self._add(event)
        except Exception as error:
            if not isinstance(error, EXPECTED):
                _LOG.exception("a response in the background failed")
            self._add(self._writer.form.failure(from_exception(error)))

    def _finish(self, stream: AsyncStream, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self._service.engine.cancel(stream)
            for event in self._writer.cancel():
                self._add(event)
        self._over = True
        self._grown(-self._kept)
        self._ended(self)
        self._tell()

    def _add(self, event: JsonObject) -> None:
        if self.streamed:
            self.events.append(to_json(event))
            self._keep(text_bytes(self.events[-1]))
            self._tell()

    def _keep(self, count: int) -> None:
        self._kept += count
        self._grown(count)

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.get_running_loop().create_future()
        news.set_result(None)
