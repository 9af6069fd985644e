"""JSON as the server reads and writes it."""

from __future__ import annotations

import json
import math
from typing import NoReturn, TypeAlias

# Values from outside may be anything: who reads one asks ``isinstance`` first.
JsonObject: TypeAlias = dict[str, object]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _whole(digits: str) -> int:
    return int(digits)


def from_json(data: bytes | bytearray | str) -> object:
    """Read JSON.

    Raises:
        ValueError: It is none; NaN and Infinity are none either.
        RecursionError: It is nested too deeply.
    """
    # The interpreter lets other threads run when a function of Python's is called; else a list of
    # millions of numbers would hold them all up.
    value: object = json.loads(data, parse_constant=_refuse_constant, parse_int=_whole)
    return value


def to_json(value: object) -> str:
    """Return JSON that any client can read: no NaN, no lone surrogates."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "replace").decode("utf-8")


def finite(logprob: float) -> float:
    """Return a log-probability that JSON can hold; impossible tokens get OpenAI's -9999."""
    return logprob if math.isfinite(logprob) else -9999.0


def call_object(arguments: str) -> JsonObject:
    """Return a call's arguments as an object; others in one, which is what Anthropic recommends."""
    value: object
    try:
        value = json.loads(arguments)
        # Nor is everything that Python reads JSON: NaN, numbers without end, half characters.
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"INVALID_JSON": arguments}
