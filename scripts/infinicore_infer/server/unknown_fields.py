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


def _is_known(
    name: str, value: object, endpoint: str, elsewhere: Collection[str], where: str = ""
) -> bool:
    """Return whether a field that an endpoint does not read is in the tables.

    Args:
        name: The field.
        value: What it has.
        endpoint: Where it came.
        elsewhere: The fields that any endpoint reads.
        where: The object that it is in, with a dot.

    Raises:
        ApiError: It would change the answer.
    """
    if name in _REASONS or name in HARMLESS_AT.get(endpoint, ()):
        return True
    refused = REFUSED.get(name)
    if refused is not None and (not refused.where or endpoint in refused.where):
        if endpoint not in COUNTING and not refused.takes(value):
            raise _refuse(where + name, "", refused.advice)
        return True
    if refused is None and name not in elsewhere:
        return False
    if endpoint not in COUNTING and value not in EMPTY and value is not False:
        raise _refuse(where + name, endpoint)
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


def _given(
    body: Mapping[str, object], obeyed: Collection[str], nested: Mapping[str, Collection[str]]
) -> Iterator[tuple[str, str, object]]:
    """Yield fields that nobody reads, and parts of those that are read.

    Each comes with the object that it is in, and a dot; parts that the tables have under the name
    of a field only come as ``a.``, ``b``, others as ``a.b``.
    """
    for name, value in body.items():
        if name not in obeyed:
            yield "", name, value
        elif name in nested and isinstance(value, dict):
            for part, inner in value.items():
                if part not in nested[name]:
                    yield f"{name}.", part, inner
        elif name in PARTS and isinstance(value, dict):
            for part, inner in value.items():
                if part not in PARTS[name]:
                    yield "", f"{name}.{part}", inner


def unknown_fields(
    body: Mapping[str, object],
    endpoint: str,
    obeyed: Collection[str],
    elsewhere: Collection[str],
    nested: Mapping[str, Collection[str]],
) -> list[str]:
    """Return the names of a request's fields that no table has.

    Args:
        body: The request, as it came.
        endpoint: Where it came; a path with ``/v1``.
        obeyed: The fields that the endpoint reads.
        elsewhere: Those that any endpoint reads.
        nested: Of those that it reads, objects whose parts are named as fields are, and the parts
            that it reads.

    Raises:
        ApiError: A field would change the answer if it were obeyed, which it is not.
    """
    return [
        where + name
        for where, name, value in _given(body, obeyed, nested)
        if not _is_known(name, value, endpoint, elsewhere, where)
    ]
