"""What every request passes: it gets an id, may be turned away, is logged and counted.

Web pages must not use a server that trusts whoever reaches it. Any page may have its reader's
browser send requests to this machine: a ``POST`` of plain text to another origin needs nobody's
permission, although the page cannot read the answer. And a page whose name its owner points to
127.0.0.1 afterwards (DNS rebinding) is of the same origin as the server. Programs send no
``Origin``, so they are not concerned.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infinicore_infer.server.errors import ApiError, ErrorForm, from_exception
from infinicore_infer.server.http import json_response
from infinicore_infer.server.page import FILES
from infinicore_infer.server.service import Service

_LOG = logging.getLogger("infinicore_infer.server")

# Probes have no keys; the page, whose files are open too, asks for it.
PROBES = ("/health", "/v1/health")
_OPEN_PATHS = (*PROBES, "/")

# Browsers let pages of other origins make these without asking, as they change nothing.
_SAFE = ("GET", "HEAD", "OPTIONS")


def _text(headers: Mapping[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1").strip()


def refuse_origin(
    method: str, headers: Mapping[bytes, bytes], origins: Collection[str]
) -> ApiError | None:
    """Return why a request is not taken: a page of another origin makes it; else ``None``.

    Args:
        method: Of the request.
        headers: Of the request; names in lower case.
        origins: Those that are welcome; ``"*"``: all.
    """
    if method in _SAFE or "*" in origins:
        return None
    origin, site = _text(headers, b"origin"), _text(headers, b"sec-fetch-site")
    # Where browsers say it themselves, a proxy that changed the host does not matter.
    same = site in (None, "same-origin", "none")
    if origin is not None and site is None:
        host = (_text(headers, b"host") or "").lower()
        same = origin.lower() in (f"http://{host}", f"https://{host}")
    if same or origin in origins:
        return None
    message = (
        f"pages of the origin {(origin or 'null')[:200]!r} may not use this server; "
        "start it with --cors-origin and this origin to let them"
    )
    return ApiError(403, message, code="origin_not_allowed")


def refuse_host(headers: Mapping[bytes, bytes], hosts: Collection[str] | None) -> ApiError | None:
    """Return why a request is not taken: it calls this server by a foreign name; else ``None``.

    Numeric addresses and localhost are nobody's to point elsewhere.

    Args:
        headers: Of the request; names in lower case.
        hosts: Further names, in lower case; ``None``: any.
    """
    host = _text(headers, b"host")
    if hosts is None or not host:
        return None
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        name = ""
    if name == "localhost" or name.endswith(".localhost") or name in hosts or _is_address(name):
        return None
    message = (
        f"this server is not called {host[:200]!r}; without an API key, one that listens at this "
        "machine only answers to localhost and addresses; start it with --allowed-host and the name"
    )
    return ApiError(403, message, code="host_not_allowed")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _header_list(names: Sequence[str]) -> bytes:
    """Return names for a header; a client may have made up any characters, and any number."""
    shown = [re.sub(r"[^\x21-\x2b\x2d-\x7e]", "?", name[:64]) for name in names[:32]]
    return ", ".join([*shown, *(["..."] if len(names) > 32 else [])]).encode("ascii")


class Gate:
    """Middleware: gives every request an id, checks where it is from and its key, logs, counts."""

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        paths: Collection[str],
        origins: Collection[str],
        form_of: Callable[[str], ErrorForm],
    ) -> None:
        """Stand in front of an application.

        Args:
            app: The application.
            service: The state behind its endpoints.
            paths: Those that are counted by their names.
            origins: Web origins whose pages may use the server.
            form_of: Returns the form of a path's errors.
        """
        self._app = app
        self._service = service
        self._paths = frozenset(paths)
        self._origins = frozenset(origins)
        self._form_of = form_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if re.fullmatch(r"[\w.:-]{1,64}", given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        status: int | None = None
        complete = False
        begin = time.monotonic()

        async def answer(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.body":
                complete = not message.get("more_body", False)
            if message["type"] == "http.response.start":
                status = message["status"]
                header = (b"x-request-id", request_id.encode("latin-1"))
                sent = [*message.get("headers", ()), header]
                if ignored := scope["state"].get("ignored_fields"):
                    sent.append((b"x-ignored-fields", _header_list(ignored)))
                message = {**message, "headers": sent}
            await send(message)

        method, path = scope["method"], scope["path"]
        error = self._refusal(method, path, headers)
        try:
            if error is None:
                try:
                    await self._app(scope, receive, answer)
                except Exception as problem:
                    if status is not None:
                        # Half of the response is gone already: the connection must break.
                        raise
                    _LOG.exception("request %s failed", request_id)
                    error = from_exception(problem)
            if error is not None:
                body = self._form_of(path).body(error)
                await json_response(body, error.status, error.headers)(scope, receive, answer)
        finally:
            # Whatever was sent at its begin: where it has no end, nobody was there to read it.
            status = status if complete and status is not None else 499
            self._record(request_id, method, path, status, time.monotonic() - begin)

    def _record(self, request_id: str, method: str, path: str, status: int, seconds: float) -> None:
        label = path if path in self._paths else "other"
        self._service.metrics.requests.labels(label, str(status)).inc()
        self._service.metrics.seconds.labels(label).observe(seconds)
        fields = {
            "id": request_id,
            "method": method,
            "path": path,
            "status": status,
            "seconds": round(seconds, 6),
        }
        _LOG.log(
            logging.DEBUG if path in (*PROBES, "/metrics") else logging.INFO,
            "id=%s method=%s path=%r status=%d seconds=%.3f",
            *(request_id, method, path, status, seconds),
            extra={"fields": fields},
        )

    def _refusal(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> ApiError | None:
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

    def _allowed(self, path: str, headers: Mapping[bytes, bytes]) -> bool:
        key = self._service.config.api_key
        if key is None or path in _OPEN_PATHS or path.startswith(FILES):
            return True
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        # Always compared, so that the time tells nothing.
        same = hmac.compare_digest(token.strip(), key.encode())
        # Anthropic's clients send this one.
        other = hmac.compare_digest(headers.get(b"x-api-key", b""), key.encode())
        return (same and scheme.lower() == b"bearer") or other
