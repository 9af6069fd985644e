"""What a request that fails gets: a status, a sentence, and the field that is to blame."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from infinicore_infer.engine.config import DeadlineError, EngineClosedError, QueueFullError
from infinicore_infer.errors import FieldError
from infinicore_infer.server.json_values import JsonObject

_LONGEST = 2000


class ApiError(Exception):
    """A failure with a status code.

    Attributes:
        status: The HTTP status.
        message: One sentence.
        param: The field that is to blame, by the client's name.
        code: A short name for programs.
        headers: Further response headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        # Whoever sends a long value need not get it back.
        self.message = message if len(message) <= _LONGEST else message[:_LONGEST] + "..."
        self.param = None if param is None else param[:_LONGEST]
        self.code = code
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True)
class ErrorForm:
    """How a protocol tells of errors.

    Attributes:
        body: Makes the response's body.
        names: What clients of the protocol call a field that has another name here.
    """

    body: Callable[[ApiError], JsonObject]
    names: Mapping[str, str]


def unavailable(message: str, code: str, retry_after: int = 5) -> ApiError:
    """Return an error for a server that is not ready."""
    return ApiError(503, message, code=code, headers={"Retry-After": str(retry_after)})


def no_such_model(name: str, served: Sequence[str]) -> ApiError:
    """Return an error for a request that names another model than those served."""
    has = ", ".join(map(repr, served))
    message = f"model {name[:256]!r} does not exist; this server has {has}"
    return ApiError(404, message, "model", "model_not_found")


def _path(location: Sequence[int | str]) -> str:
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z_]\w*", part):
            # Other names are pydantic's for the branches of a union.
            path += f".{part}" if path else part
    return re.sub(r"\.(str|int|float|bool|list|dict)$", "", path)


def _reached(problem: ErrorDetails) -> tuple[int, list[int]]:
    """Return how far into a field a complaint is."""
    location = problem["loc"]
    return len(location), [part for part in location if isinstance(part, int)]


def _from_validation(error: ValidationError) -> ApiError:
    """Return the first complaint about a request's fields."""
    problems = error.errors(include_url=False, include_context=False)
    param = _path(problems[0]["loc"]) or None
    # Of a field that may be of several types, the one that was meant is that which fits furthest.
    first: dict[tuple[int | str, ...], ErrorDetails] = {}
    for item in problems:
        if item["loc"][:1] == problems[0]["loc"][:1]:
            first.setdefault(item["loc"][1:2], item)
    problem = max(first.values(), key=_reached)
    path, message = _path(problem["loc"]), problem["msg"].removeprefix("Value error, ")
    value: object = problem["input"]
    if problem["type"] not in ("missing", "value_error") and not isinstance(value, dict | list):
        message += f", got {json.dumps(value)[:60]}"
    return ApiError(400, f"{path}: {message}" if path else message, param)


def _from_field(error: FieldError, names: Mapping[str, str]) -> ApiError:
    # The client's list may have other indices than ours, which is made from it.
    name = names.get(error.field.partition("[")[0], error.field)
    return ApiError(400, error.message(name), name, error.code)


def from_exception(
    error: Exception, names: Mapping[str, str] | None = None, retry_after: int = 1
) -> ApiError:
    """Return what an exception of this program means to a client.

    Args:
        error: The exception.
        names: As in :class:`ErrorForm`.
        retry_after: Seconds after which a place in a full queue is likely to be free.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, FieldError):
        return _from_field(error, names or {})
    if isinstance(error, ValidationError):
        return _from_validation(error)
    if isinstance(error, QueueFullError):
        headers = {"Retry-After": str(retry_after)}
        return ApiError(429, str(error), code="queue_full", headers=headers)
    if isinstance(error, EngineClosedError):
        return unavailable(str(error), "draining")
    if isinstance(error, DeadlineError):
        return ApiError(504, str(error), code="timeout")
    if isinstance(error, ValueError):
        return ApiError(400, str(error))
    if isinstance(error, RecursionError):
        # Nothing here recurses but over what a request contains.
        return ApiError(400, "the request is nested too deeply", code="too_deep")
    # The rest of a long message is for the log.
    line = (str(error).splitlines() or [""])[0]
    return ApiError(500, f"{type(error).__name__}: {line}", code="internal_error")


# Those of the above that are the client's business alone; others go to the log as well.
EXPECTED: tuple[type[Exception], ...] = (
    *(ApiError, QueueFullError, EngineClosedError, DeadlineError, ValueError, RecursionError),
)
