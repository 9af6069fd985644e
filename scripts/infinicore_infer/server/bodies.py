"""Limits of the bodies of requests: the time one takes to come, and the memory of all together.

A body is counted while it comes and while the application looks at it. When all of them would take
too much, the largest that is still coming is refused, so that a few clients that send half of
something long do not keep out everybody who sends something short.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infinicore_infer.server.errors import ApiError, unavailable


class _Body:
    """A body on its way, and a future that says that it is not wanted any more."""

    __slots__ = ("deadline", "refused", "size")

    def __init__(self, deadline: float) -> None:
        self.size = 0
        self.deadline = deadline
        self.refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class BodyLimits:
    """ASGI middleware that bounds the bodies that reach an application.

    Where a limit is exceeded, the application's ``receive`` raises an :class:`ApiError`, which it
    answers in the form that fits the endpoint. Belongs to one event loop.
    """

    def __init__(self, app: ASGIApp, timeout: float, memory_bytes: int) -> None:
        """Stand in front of an application.

        Args:
            app: The application.
            timeout: Seconds from when the application asks for a body until all of it is there.
            memory_bytes: Most bytes of all bodies together.
        """
        self._app = app
        self._timeout = timeout
        self._limit = memory_bytes
        self._total = 0
        # Those that are still coming.
        self._coming: set[_Body] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body: _Body | None = None
        read = False

        async def limited() -> Message:
            nonlocal body, read
            if read:
                # It asks for what comes after the body, so it is done with that.
                self._release(body)
                return await receive()
            if body is None:
                body = _Body(asyncio.get_running_loop().time() + self._timeout)
                self._coming.add(body)
            message = await self._next(body, receive)
            if message["type"] != "http.request" or not message.get("more_body", False):
                read = True
                self._coming.discard(body)
            return message

        async def answer(message: Message) -> None:
            self._release(body)
            await send(message)

        try:
            await self._app(scope, limited, answer)
        finally:
            self._release(body)

    async def _next(self, body: _Body, receive: Receive) -> Message:
        """Return the next part of a body.

        Raises:
            ApiError: It did not come in time, or there is no memory for it.
        """
        coming: asyncio.Future[Message] = asyncio.ensure_future(receive())
        left = body.deadline - asyncio.get_running_loop().time()
        try:
            futures: set[asyncio.Future[Message] | asyncio.Future[None]] = {coming, body.refused}
            await asyncio.wait(futures, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # A message that is there already stays.
            coming.cancel()
        if coming.done() and not body.refused.done():
            message = coming.result()
            self._count(body, len(message.get("body", b"")))
        if body.refused.done():
            raise unavailable(
                "the requests that are being read take all the memory set aside for them, "
                f"{self._limit} bytes; try again later, or send less",
                "overloaded",
            )
        if not coming.done():
            raise ApiError(
                408,
                f"the request did not arrive within {self._timeout:g} seconds",
                code="request_timeout",
                headers={"Connection": "close"},
            )
        return message

    def _count(self, body: _Body, size: int) -> None:
        body.size += size
        self._total += size
        while self._total > self._limit and self._coming:
            largest = max(self._coming, key=lambda each: each.size)
            self._release(largest)
            largest.refused.set_result(None)

    def _release(self, body: _Body | None) -> None:
        """Count a body no longer; more than once does nothing."""
        if body is not None:
            self._coming.discard(body)
            self._total -= body.size
            body.size = 0
