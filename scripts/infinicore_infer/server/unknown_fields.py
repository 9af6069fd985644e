"""What becomes of fields that an endpoint does not read: known, refused by name, or told of."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from infinicore_infer.server.errors import ApiError
from infinicore_infer.server.known_fields import (
    COUNTING,
    EMPTY,
    HARMLESS,
    HARMLESS_AT,
    PARTS,
    REFUSED,
)

_REASONS = {name: reason for reason, names in HARMLESS.items() for name in names}


def _refuse(name: str, endpoint: str, advice: str = "") -> ApiError:
    message = f"{name} is not supported" + (f" by {endpoint}" if endpoint else "")
    message += f": {advice}" if advice else ""
    return ApiError(400, message, name, "unsupported_parameter")


def _is_known(name: str, value: object, endpoint: str, elsewhere: Collection[str]) -> bool:
    """Return whether a field that an endpoint does not read is in the tables.

    Raises:
        ApiError: It would change the answer.
    """
    if name in _REASONS or name in HARMLESS_AT.get(endpoint, ()):
        return True
    refused = REFUSED.get(name)
    if refused is not None and (not refused.where or endpoint in refused.where):
        if endpoint not in COUNTING and not refused.takes(value):
            raise _refuse(name, "", refused.advice)
        return True
    if refused is None and name not in elsewhere:
        return False
    if endpoint not in COUNTING and value not in EMPTY and value is not False:
        raise _refuse(name, endpoint)
    return True


def is_known(name: str, value: object, where: str) -> bool:
    """Return whether a key inside a message, part or tool is in the tables, as a field would be.

    Args:
        name: The key.
        value: What it has.
        where: The object that it is in, for errors.

    Raises:
        ApiError: It would change the answer.
    """
    refused = REFUSED.get(name)
    if refused is not None and not refused.takes(value):
        raise _refuse(f"{where}.{name}", "", refused.advice)
    return name in _REASONS or refused is not None


def _given(body: Mapping[str, object], obeyed: Collection[str]) -> Iterator[tuple[str, object]]:
    """Yield fields that nobody reads, and parts of those that are read; parts as ``a.b``."""
    for name, value in body.items():
        if name not in obeyed:
            yield name, value
        elif name in PARTS and isinstance(value, dict):
            for part, inner in value.items():
                if part not in PARTS[name]:
                    yield f"{name}.{part}", inner


def unknown_fields(
    body: Mapping[str, object], endpoint: str, obeyed: Collection[str], elsewhere: Collection[str]
) -> list[str]:
    """Return the names of a request's fields that no table has.

    Args:
        body: The request, as it came.
        endpoint: Where it came; a path with ``/v1``.
        obeyed: The fields that the endpoint reads.
        elsewhere: Those that any endpoint reads.

    Raises:
        ApiError: A field would change the answer if it were obeyed, which it is not.
    """
    pairs = _given(body, obeyed)
    return [name for name, value in pairs if not _is_known(name, value, endpoint, elsewhere)]
