"""Errors as OpenAI's API reports them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.responses import Response

from infinicore_infer.engine.config import DeadlineError, EngineClosedError, QueueFullError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """A failure with a status code.

    Attributes:
        status: The HTTP status.
        message: One sentence.
        param: The field that is to blame.
        code: A short name for programs.
        headers: Further response headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Store the parts."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """Return OpenAI's error object."""
        error = {
            "message": self.message,
            "type": _TYPES.get(self.status, "invalid_request_error"),
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    def anthropic_body(self) -> dict[str, Any]:
        """Return Anthropic's error object, which is also an event."""
        kind = _ANTHROPIC_TYPES.get(self.status, "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}}

    def response(self, anthropic: bool = False) -> Response:
        """Return it as a response in OpenAI's form or in Anthropic's."""
        body = self.anthropic_body() if anthropic else self.body()
        return json_response(body, self.status, self.headers)


def to_json(value: Any) -> str:
    """Return JSON that any client can read: no NaN, no lone surrogates."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "replace").decode("utf-8")


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a JSON response."""
    return Response(to_json(value), status, headers, "application/json")


def finite(logprob: float) -> float:
    """Return a log-probability that JSON can hold; impossible tokens get OpenAI's -9999."""
    return logprob if math.isfinite(logprob) else -9999.0


def unavailable(message: str, code: str, retry_after: int = 5) -> ApiError:
    """Return an error for a server that is not ready."""
    return ApiError(503, message, code=code, headers={"Retry-After": str(retry_after)})


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


def from_validation(error: ValidationError) -> ApiError:
    """Return the first complaint about a request's fields."""
    problems = error.errors(include_url=False, include_context=False)
    param = _path(problems[0]["loc"]) or None
    # Of a field that may be of several types, the one that was meant is that which fits furthest.
    first: dict[Any, ErrorDetails] = {}
    for item in problems:
        if item["loc"][:1] == problems[0]["loc"][:1]:
            first.setdefault(item["loc"][1:2], item)
    problem = max(first.values(), key=_reached)
    path, message = _path(problem["loc"]), problem["msg"].removeprefix("Value error, ")
    value = problem["input"]
    if problem["type"] not in ("missing", "value_error") and not isinstance(value, dict | list):
        message += f", got {json.dumps(value)[:60]}"
    return ApiError(400, f"{path}: {message}" if path else message, param)


@contextmanager
def named(field: str) -> Iterator[None]:
    """Let errors about a request's text name a field, unless they do so themselves."""
    try:
        yield
    except ValueError as error:
        problem = from_exception(error)
        if problem.param is None:
            problem.param, problem.message = field, f"{field}: {problem.message}"
        raise problem from error


def from_exception(error: Exception, retry_after: int = 1) -> ApiError:
    """Return what an exception of this program means to a client."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValidationError):
        return from_validation(error)
    if isinstance(error, QueueFullError):
        headers = {"Retry-After": str(retry_after)}
        return ApiError(429, str(error), code="queue_full", headers=headers)
    if isinstance(error, EngineClosedError):
        return unavailable(str(error), "draining")
    if isinstance(error, DeadlineError):
        return ApiError(504, str(error), code="timeout")
    if isinstance(error, ValueError):
        # Our checks begin with the name of what they check.
        name = re.match(r"(messages\[\d+\]|[a-z][a-z_]*\b)", str(error))
        known = name and (name[1] in _FIELDS or name[1].startswith("messages["))
        return ApiError(400, str(error), name[1] if name and known else None)
    if isinstance(error, RecursionError):
        # Nothing here recurses but over what a request contains.
        return ApiError(400, "the request is nested too deeply", code="too_deep")
    # The rest of a long message is for the log.
    line = (str(error).splitlines() or [""])[0]
    return ApiError(500, f"{type(error).__name__}: {line}", code="internal_error")


_FIELDS = {
    *("messages", "prompt", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "logprobs"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "tools"),
}
