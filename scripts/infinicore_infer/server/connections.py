"""The server's connections: how many there may be, how long a head may take, and upgrades.

A connection costs a file descriptor, of which a process has few. Where there is none left, nobody
could ask even for the server's health. So there are fewer connections than descriptors, and for a
new one the connection that has been idle for longest goes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import time
from dataclasses import dataclass

import httptools
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from infinicore_infer.server.app import form_of
from infinicore_infer.server.errors import unavailable
from infinicore_infer.server.gate import PROBES
from infinicore_infer.server.http import json_response

_LOG = logging.getLogger("infinicore_infer.server")

# Descriptors for all else: files, what is accepted in one round, libraries.
_RESERVED = 64
# Connections beyond the limit that are asked what they want, as it may be the server's health.
_SPARE = 8
# With fewer, clients would drive out each other.
_MIN_CONNECTIONS = 8
# Most bytes of a request that are not its body; with chunks, some more for each byte of that.
_MAX_HEAD_BYTES = 64 << 10
_CHUNK_OVERHEAD = 8
# A body that has been coming for so long has to go for a new connection.
_OLD_BODY_SECONDS = 5.0
# The application's own limit, which is answered better, comes first.
_GRACE_SECONDS = 5.0
_LOG_SECONDS = 60.0

_REASONS = {408: "Request Timeout", 431: "Request Header Fields Too Large"}


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of a server's connections.

    Attributes:
        max_connections: Most of them at a time, spare ones apart.
        head_timeout: Seconds that a client may take to send a request's head.
        body_timeout: Seconds that it may take for the body.
        send_timeout: Seconds that it may leave a response unread that waits to be sent.
    """

    max_connections: int
    head_timeout: float
    body_timeout: float
    send_timeout: float = 60.0


def usable_connections(wanted: int) -> int:
    """Return how many connections the process's limit of open files allows, at most ``wanted``.

    The soft limit is raised as far as that takes and the hard limit allows.

    Raises:
        OSError: They are too few to serve anybody.
    """
    try:
        used = len(os.listdir("/proc/self/fd"))
    except OSError:  # no /proc here
        used = 16
    reserved = used + _RESERVED + _SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    if soft < wanted + reserved:
        raised = wanted + reserved if hard == resource.RLIM_INFINITY else hard
        raised = min(raised, wanted + reserved)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
        except (OSError, ValueError):
            pass  # what is there must do
    usable = soft - reserved
    if usable >= wanted:
        return wanted
    if usable < _MIN_CONNECTIONS:
        raise OSError(
            f"the limit of open files (ulimit -n) is {soft}; the server needs at least "
            f"{reserved + _MIN_CONNECTIONS}"
        )
    _LOG.warning(
        "the limit of open files (ulimit -n) is %d: at most %d connections instead of %d",
        *(soft, usable, wanted),
    )
    return usable


class _Overloaded:
    """What a connection beyond the limit meets: probes are answered, other requests refused."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(raw=message.setdefault("headers", [])).append("Connection", "close")
            await send(message)

        if scope["path"] in PROBES:
            await self._app(scope, receive, closing)
            return
        error = unavailable(f"all {self._limit} connections are in use", "overloaded")
        response = json_response(form_of(scope["path"]).body(error), error.status, error.headers)
        await response(scope, receive, closing)


class _Connections:
    """The connections of a server. Belongs to one event loop."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._open: set[_Protocol] = set()
        self._spare: dict[_Protocol, None] = {}  # the first is the oldest
        # By when they became idle, and when their body began to come; the first is the oldest.
        self._idle: dict[_Protocol, float] = {}
        self._reading: dict[_Protocol, float] = {}
        self._closed = 0
        self._told = 0.0

    def add(self, connection: _Protocol) -> bool:
        """Make room for a connection; return whether it may ask for more than the health."""
        if len(self._open) >= self.limits.max_connections and not self._close_one():
            # These are answered at once, so the oldest says nothing or does not listen.
            if len(self._spare) >= _SPARE:
                oldest = next(iter(self._spare))
                self.remove(oldest)
                oldest.abort()
            self._spare[connection] = None
            return False
        self._open.add(connection)
        self._idle[connection] = time.monotonic()
        return True

    def _close_one(self) -> bool:
        """Close the connection that is missed the least; return whether there was one."""
        victim = next(iter(self._idle), None)
        if victim is None:
            victim = next(iter(self._reading), None)
            if victim is None or time.monotonic() - self._reading[victim] < _OLD_BODY_SECONDS:
                return False
        self.remove(victim)
        victim.abort()
        self._closed += 1
        if time.monotonic() - self._told > _LOG_SECONDS or not self._told:
            self._told = time.monotonic()
            _LOG.warning(
                "all %d connections are in use: %d that were idle or slow have been closed so far",
                *(self.limits.max_connections, self._closed),
            )
        return True

    def remove(self, connection: _Protocol) -> None:
        """Forget a connection."""
        self._open.discard(connection)
        self._spare.pop(connection, None)
        self._idle.pop(connection, None)
        self._reading.pop(connection, None)

    def reads(self, connection: _Protocol) -> None:
        """Note that a connection's body begins to come."""
        self._idle.pop(connection, None)
        if connection in self._open:
            self._reading[connection] = time.monotonic()

    def works(self, connection: _Protocol) -> None:
        """Note that all of a connection's request is there."""
        self._reading.pop(connection, None)

    def rests(self, connection: _Protocol) -> None:
        """Note that a connection's response is sent."""
        self._reading.pop(connection, None)
        if connection in self._open:
            self._idle.setdefault(connection, time.monotonic())


class _Protocol(HttpToolsProtocol):
    """Uvicorn's protocol with limits of time and size, and which goes on where it could upgrade."""

    # Set by the subclass of a server.
    shared: _Connections

    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _begun = False  # something of a request has come
    _in_body = False
    _upgrade = False  # the head asks for another protocol
    _complete = False  # a request ended within the data at hand
    _overhead = _body = 0  # bytes of this request
    _method = _version = b""

    # ------------------------------------------------------------------ the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if not self.shared.add(self):
            limit = self.shared.limits.max_connections
            self.app = _Overloaded(self.app, limit)
        self._arm(self.shared.limits.head_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self.shared.remove(self)
        self._disarm()
        self.resume_writing()
        super().connection_lost(exc)

    def abort(self) -> None:
        """Close the connection without waiting for a client that does not read."""
        self._disarm()
        self._unset_keepalive_if_required()
        self.transport.abort()

    # ------------------------------------------------------------------ time

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, delay: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(delay, self._late, delay)

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _late(self, delay: float) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        # What follows a request that is being answered waits for that.
        busy = self._answering and not self._in_body
        if self.flow.read_paused or self.pipeline or busy:
            self._arm(delay)
        elif self._begun and not self._answering and not self._in_body:
            self._refuse(408, f"the request did not arrive within {delay:g} seconds")
        else:
            self.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            delay = self.shared.limits.send_timeout
            self._unread = self.loop.call_later(delay, self.transport.abort)

    def resume_writing(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    # ------------------------------------------------------------------ data

    def data_received(self, data: bytes) -> None:
        if self._timer is None:
            self._arm(self.shared.limits.head_timeout)
        self._unset_keepalive_if_required()
        body, self._complete = self._body, False
        rest: bytes | None = data
        while rest is not None:
            rest = self._feed(rest)
        if self._complete:
            self._overhead = self._body = 0
            return
        self._overhead += len(data) - (self._body - body)
        if self._overhead > _MAX_HEAD_BYTES + _CHUNK_OVERHEAD * self._body:
            self._refuse(431, f"the head of the request is longer than {_MAX_HEAD_BYTES} bytes")

    def _feed(self, data: bytes) -> bytes | None:
        """Parse data; return what is to be parsed instead of its rest, if that is an upgrade."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if not self._upgrade:  # CONNECT, which is answered as other unknown methods are
                return None
            # The parser takes what follows for the other protocol and cannot be told otherwise.
            self._upgrade = False
            self.parser = httptools.HttpRequestParser(self)
            if hasattr(
                self.parser, "set_dangerous_leniencies"
            ):  # as uvicorn's own; httptools 0.6.3
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            return self._plain_head() + data[upgrade.args[0] :]
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            if not self.transport.is_closing():
                self.send_400_response("Invalid HTTP request received.")
        return None

    def _plain_head(self) -> bytes:
        """Return the head of the request at hand without its wish to upgrade."""
        lines = [self._method + b" " + self.url + b" HTTP/" + self._version]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                kept = [t for t in tokens if t.lower() not in (b"upgrade", b"http2-settings")]
                if kept:
                    lines.append(b"connection: " + b", ".join(kept))
            elif name not in (b"upgrade", b"http2-settings"):
                lines.append(name + b": " + value)
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _refuse(self, status: int, message: str) -> None:
        if self.transport.is_closing():
            return
        if not self._answering:
            error = {"message": message, "type": "invalid_request_error", "param": None}
            text = json.dumps({"error": {**error, "code": None}})
            self.transport.write(
                f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(text)}\r\nConnection: close\r\n\r\n{text}".encode()
            )
        self.transport.close()

    # ------------------------------------------------------------------ what the parser finds

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begun = True

    def on_headers_complete(self) -> None:
        self._method = self.parser.get_method()
        self._version = self.parser.get_http_version().encode()
        # RFC 9110, 7.8: a server that does not speak the protocol ignores the wish.
        self._upgrade = self.parser.should_upgrade() and self._method != b"CONNECT"
        if self._upgrade:
            return
        self._in_body = True
        if not self._answering:
            self.shared.reads(self)
        self._arm(self.shared.limits.body_timeout + _GRACE_SECONDS)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._upgrade:
            return
        self._in_body = self._begun = False
        self._complete = True
        self._disarm()
        super().on_message_complete()
        if self._answering:
            self.shared.works(self)
        else:
            # It was answered before all of it was here.
            self.shared.rests(self)
            self._arm(self.timeout_keep_alive)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body:
            self.shared.reads(self)
        elif not self._answering:
            self.shared.rests(self)


def protocol_class(limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """Return the protocol of a server's connections, for Uvicorn's setting ``http``."""
    return type("LimitedProtocol", (_Protocol,), {"shared": _Connections(limits)})
