"""Patterns that are filled in, with the marks of the pattern and of each value."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from string import Formatter
from typing import Any

from infinicore_infer.text import traced

# One conversion of a pattern of ``%``.
_CONVERSION = re.compile(
    r"%(?:\((?P<key>[^()]*)\))?[#0\- +]*(?:\*|\d+)?(?:\.(?:\*|\d+)?)?[hlL]?(?P<kind>[a-zA-Z%])"
)


def percent(pattern: str, values: Any) -> str:
    """Return ``pattern % values``; where that cannot be followed, all of it counts as a client's.

    Raises:
        TypeError: As for ordinary strings, and so are all other errors.
    """
    text = str.__mod__(pattern, values)
    listed = values if isinstance(values, tuple) else (values,)
    parts: list[str] = []
    at = used = 0
    for found in _CONVERSION.finditer(pattern):
        parts.append(pattern[at : found.start()])
        at = found.end()
        if "*" in found[0]:
            return traced.derived(text, [pattern, values])
        if found["kind"] == "%":
            parts.append("%")
        elif found["key"] is not None:
            parts.append(_filled(found[0] % values, values[found["key"]], found["kind"] == "s"))
        else:
            value = listed[used]
            used += 1
            parts.append(_filled(found[0] % (value,), value, found["kind"] == "s"))
    joined = traced.join([*parts, pattern[at:]])
    return joined if joined == text else traced.derived(text, [pattern, values])


def braces(
    call: Callable[..., str],
    formatter: Formatter,
    pattern: str,
    values: Sequence[Any],
    named: Mapping[str, Any],
) -> str:
    """Return ``pattern.format(*values, **named)``, followed as :func:`percent` does.

    Args:
        call: Formats, and raises what is wrong.
        formatter: Looks fields up.
        pattern: An ordinary string.
        values: By number.
        named: By name.
    """
    text = call()
    parts: list[str] = []
    number = 0
    for literal, name, spec, conversion in formatter.parse(pattern):
        parts.append(literal)
        if name is None:
            continue
        if "{" in (spec or ""):
            return traced.derived(text, [values, named])
        if not name or name[0] in ".[":
            name, number = f"{number}{name}", number + 1
        value, _ = formatter.get_field(name, values, named)
        # str.format() of an ordinary string loses marks; the text of a field is the same.
        shown = formatter.format_field(formatter.convert_field(value, conversion), spec or "")
        parts.append(_filled(shown, value, conversion is None))
    joined = traced.join(parts)
    return joined if joined == text else traced.derived(text, [values, named])


def _filled(text: str, value: Any, plain: bool) -> str:
    """Return the text of a value, with its own marks where it is that string as it is."""
    if plain and isinstance(value, str) and value == text:
        return value
    return traced.derived(str.__str__(text), value)
