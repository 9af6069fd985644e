"""Keeps web pages from using a server that trusts whoever reaches it.

Any page may have its reader's browser send requests to this machine: a ``POST`` of plain text to
another origin needs nobody's permission, although the page cannot read the answer. And a page whose
name its owner points to 127.0.0.1 afterwards (DNS rebinding) is of the same origin as the server.
Programs send no ``Origin``, so they are not concerned.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from infinicore_infer.server.errors import ApiError

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
