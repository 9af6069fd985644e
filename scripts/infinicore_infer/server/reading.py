"""Reads the fields of a request, and finds those of which nothing comes."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from typing import TypeVar

from starlette.requests import Request

from infinicore_infer.server.fields import Body
from infinicore_infer.server.http import parse_body, read_body
from infinicore_infer.server.known_fields import COUNTING
from infinicore_infer.server.known_parts import unknown_parts
from infinicore_infer.server.unknown_fields import unknown_fields

_LOG = logging.getLogger("infinicore_infer.server")
_BodyType = TypeVar("_BodyType", bound=Body)
# Whoever makes names up must not fill the log or the memory with them.
_MAX_LOGGED_NAMES = 1000
# Bytes of a body that is looked at on another thread.
_LONG = 64 << 10


def _parsed(data: bytearray, kind: type[_BodyType]) -> tuple[_BodyType, list[str]]:
    """Return the fields of a request, and the names of what is ignored of it."""
    raw, body = parse_body(data, kind)
    nested = {name: inner.names() for name, inner in kind.nested.items()}
    ignored = unknown_fields(raw, kind.endpoint, kind.names(), Body.all_names, nested)
    ignored += body.left_out()
    if kind.endpoint not in COUNTING:
        ignored += unknown_parts(raw)
    return body, ignored[:_MAX_LOGGED_NAMES]


async def read_fields(
    request: Request, kind: type[_BodyType], limit: int
) -> tuple[_BodyType, list[str]]:
    """Return the fields of a request, and the names of what no table knows of it.

    Args:
        request: The request; its state gets ``body_bytes``.
        kind: Its fields.
        limit: Most bytes of its body.

    Raises:
        ApiError: It is too long, compressed, or not JSON, or it has a field that would change the
            answer if it were obeyed.
        pydantic.ValidationError: A field is wrong.
    """
    data = await read_body(request, limit)
    request.state.body_bytes = len(data)
    # Threads take turns, so that others go on meanwhile.
    if len(data) < _LONG:
        return _parsed(data, kind)
    return await asyncio.to_thread(_parsed, data, kind)


class IgnoredNames:
    """Names of ignored fields in the log: each once, and not more than so many."""

    def __init__(self) -> None:
        """Begin with none."""
        self._logged: set[str] = set()

    def log(self, names: Sequence[str], endpoint: str) -> None:
        """Log the names that are new.

        Args:
            names: As :func:`read_fields` returns them.
            endpoint: Where they came; a path.
        """
        # Of parts, where they are in the request does not matter to the log.
        for name in dict.fromkeys(re.sub(r"\[\d+\]", "[]", name) for name in names):
            if name not in self._logged and len(self._logged) < _MAX_LOGGED_NAMES:
                self._logged.add(name)
                _LOG.warning("requests to %s have what is ignored: %.100r", endpoint, name)
