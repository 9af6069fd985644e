"""Settings of answers by the names that users write."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from infinicore_infer.causal_lm import SamplingParams
from infinicore_infer.errors import FieldError

# The user's name of what is called otherwise inside.
_INSIDE = {"max_tokens": "max_steps"}
_USERS = {inside: name for name, inside in _INSIDE.items()}


def _whole(text: str) -> Any:
    return int(text)


def _number(text: str) -> Any:
    return float(text)


def _texts(text: str) -> Any:
    """Return the stop strings of a JSON string or list; any other text is one by itself."""
    return json.loads(text) if text[:1] in ('"', "[") else text


_READERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "max_tokens": (_whole, "a whole number"),
    "temperature": (_number, "a number"),
    "top_k": (_whole, "a whole number"),
    "top_p": (_number, "a number"),
    "min_p": (_number, "a number"),
    "repetition_penalty": (_number, "a number"),
    "presence_penalty": (_number, "a number"),
    "frequency_penalty": (_number, "a number"),
    "seed": (_whole, "a whole number"),
    "stop": (_texts, "a text, or a JSON list of texts"),
    "lookup": (_whole, "a whole number"),
}
NAMES = tuple(_READERS)


def check_name(name: str) -> None:
    """Check that there is such a setting.

    Raises:
        ValueError: There is none.
    """
    if name not in _READERS:
        raise ValueError(f"no setting {name!r}; there are {', '.join(NAMES)}")


def parse(name: str, text: str) -> Any:
    """Return the value of a setting that a user typed.

    Raises:
        ValueError: There is no such setting, or the text is no value for it.
    """
    check_name(name)
    read, kind = _READERS[name]
    try:
        value = read(text)
    except ValueError:
        raise ValueError(f"{name} must be {kind}, got {text!r}") from None
    inside({name: value})
    return value


def inside(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by the names that generations take, checked.

    Raises:
        ValueError: A value is not acceptable; the message has the user's name for it.
    """
    for name in settings:
        check_name(name)
    values = {_INSIDE.get(name, name): value for name, value in settings.items()}
    try:
        SamplingParams.from_config({}, **values)
    except FieldError as error:
        raise ValueError(error.message(_USERS.get(error.field, error.field))) from None
    except TypeError:
        # Only stop strings are looked at one by one.
        raise ValueError(f"stop must be texts, got {settings.get('stop')!r}") from None
    return values


def shown(name: str, settings: Mapping[str, Any], used: SamplingParams) -> str:
    """Return a setting's value for people, and where it is from."""
    value = getattr(used, _INSIDE.get(name, name))
    if name == "stop":
        value = json.dumps(list(value), ensure_ascii=False)
    elif value is None:
        value = "to the end of the context" if name == "max_tokens" else "random"
    return f"{value}{'' if name in settings else ' (default)'}"
