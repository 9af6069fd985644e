"""Strings that know which of their characters a client wrote, whatever a template does to them.

A chat template sees ordinary strings: they compare, match and print like any other, so the prompt
is the one that the model was trained on. What they carry beside their text tells afterwards which
control tokens in the prompt are the template's own and which are forged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, SupportsIndex

from markupsafe import Markup

_NO, _YES = b"\0", b"\1"
# Marks of text from which only control tokens are kept out, not the tags that templates write, and
# of text from which both are: an earlier answer calls tools and thinks, a question does not.
ANSWER, QUESTION = b"\2", b"\1"


class TracedStr(str):
    """A string with a mark per character.

    Attributes:
        marks: One byte per character; 1: a client wrote it.
    """

    __slots__ = ("marks",)
    marks: bytes

    def __new__(cls, text: str, marks: bytes | None = None) -> TracedStr:
        """Make a string that a client wrote, or one with given marks."""
        self = super().__new__(cls, text)
        self.marks = _YES * len(text) if marks is None else marks
        return self

    def __str__(self) -> str:
        """Return self: a template's output goes through ``str``."""
        return self

    def __getitem__(self, key: SupportsIndex | slice) -> TracedStr:
        """Return a part."""
        text = super().__getitem__(key)
        if isinstance(key, slice):
            return TracedStr(text, self.marks[key])
        index = key.__index__()
        return TracedStr(text, self.marks[index : index + 1 or None])

    def __iter__(self) -> Iterator[TracedStr]:
        """Iterate over the characters."""
        return (self[i] for i in range(len(self)))

    def __add__(self, other: str) -> TracedStr:
        """Return this and another."""
        return join([self, other])

    def __radd__(self, other: str) -> TracedStr:
        """Return another and this."""
        return join([other, self])

    def __mul__(self, count: SupportsIndex) -> TracedStr:
        """Repeat."""
        return TracedStr(super().__mul__(count), self.marks * count)

    __rmul__ = __mul__

    def __format__(self, spec: str) -> str:
        """Return the text formatted, marks kept where nothing changes."""
        return self if not spec else derived(super().__format__(spec), self)

    def format(self, *values: Any, **named: Any) -> str:
        """Format; all of the result counts as a client's."""
        return derived(super().format(*values, **named), [self, *values, *named.values()])

    def join(self, parts: Iterable[str]) -> TracedStr:
        """Put this between parts."""
        return join(parts, self)

    def _cut(self, text: str, start: int) -> TracedStr:
        return TracedStr(text, self.marks[start : start + len(text)])

    def lstrip(self, chars: str | None = None) -> TracedStr:
        """Return it without characters at the beginning."""
        text = super().lstrip(chars)
        return self._cut(text, len(self) - len(text))

    def rstrip(self, chars: str | None = None) -> TracedStr:
        """Return it without characters at the end."""
        return self._cut(super().rstrip(chars), 0)

    def strip(self, chars: str | None = None) -> TracedStr:
        """Return it without characters at both ends."""
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix: str) -> TracedStr:
        """Return it without a beginning."""
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str) -> TracedStr:
        """Return it without an end."""
        return self[: len(self) - len(suffix)] if suffix and self.endswith(suffix) else self

    def _located(self, parts: Sequence[str], backwards: bool = False) -> list[str]:
        """Return parts of this text, which follow each other in it, with their marks."""
        found: list[str] = []
        at = len(self) if backwards else 0
        for part in reversed(parts) if backwards else parts:
            start = self.rindex(part, 0, at) if backwards else self.index(part, at)
            at = start if backwards else start + len(part)
            found.append(self._cut(part, start))
        return found[::-1] if backwards else found

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """Cut at separators."""
        parts = super().split(sep, maxsplit)
        if sep is None:
            return self._located(parts)
        found, at = [], 0
        for part in parts:
            found.append(self._cut(part, at))
            at += len(part) + len(sep)
        return list(found)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """Cut at separators, from the end."""
        parts = super().rsplit(sep, maxsplit)
        if sep is None:
            return self._located(parts, backwards=True)
        found, at = [], 0
        for part in parts:
            found.append(self._cut(part, at))
            at += len(part) + len(sep)
        return list(found)

    def splitlines(self, keepends: bool = False) -> list[str]:
        """Cut into lines."""
        found, at = [], 0
        for line, whole in zip(
            super().splitlines(keepends), super().splitlines(keepends=True), strict=True
        ):
            found.append(self._cut(line, at))
            at += len(whole)
        return list(found)

    def partition(self, sep: str) -> tuple[str, str, str]:
        """Cut at the first separator."""
        a, b, c = super().partition(sep)
        first = self._cut(a, 0)
        return first, self._cut(b, len(a)), self._cut(c, len(a) + len(b))

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        """Cut at the last separator."""
        a, b, c = super().rpartition(sep)
        first = self._cut(a, 0)
        return first, self._cut(b, len(a)), self._cut(c, len(a) + len(b))

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:
        """Return it with one text in place of another."""
        limit = count.__index__()
        if not old or limit == 0:
            return derived(super().replace(old, new, limit), [self, new])
        return join(self.split(old, limit), new)

    def _mapped(self, text: str) -> str:
        # A change of case may change lengths (a German sharp s): then all of it is the client's.
        return TracedStr(text, self.marks) if len(text) == len(self) else derived(text, self)

    def lower(self) -> str:
        """Return it in lower case."""
        return self._mapped(super().lower())

    def upper(self) -> str:
        """Return it in upper case."""
        return self._mapped(super().upper())

    def title(self) -> str:
        """Return it with capital first letters."""
        return self._mapped(super().title())

    def capitalize(self) -> str:
        """Return it with a capital first letter."""
        return self._mapped(super().capitalize())

    def swapcase(self) -> str:
        """Return it with cases exchanged."""
        return self._mapped(super().swapcase())

    def casefold(self) -> str:
        """Return it ready for comparisons without case."""
        return self._mapped(super().casefold())

    def translate(self, table: Any) -> str:
        """Return it with characters exchanged."""
        return self._mapped(super().translate(table))

    def center(self, width: SupportsIndex, fill: str = " ") -> str:
        """Pad it; padding counts as a client's."""
        return derived(super().center(width, fill), self)

    def ljust(self, width: SupportsIndex, fill: str = " ") -> str:
        """Pad it; padding counts as a client's."""
        return derived(super().ljust(width, fill), self)

    def rjust(self, width: SupportsIndex, fill: str = " ") -> str:
        """Pad it; padding counts as a client's."""
        return derived(super().rjust(width, fill), self)

    def zfill(self, width: SupportsIndex) -> str:
        """Pad it; padding counts as a client's."""
        return derived(super().zfill(width), self)

    def expandtabs(self, tabsize: SupportsIndex = 8) -> str:
        """Return it with spaces for tabs."""
        return derived(super().expandtabs(tabsize), self)


class TracedMarkup(Markup):
    """What ``safe`` makes of a client's string: joined to others, it has them escaped.

    Attributes:
        marks: As of :class:`TracedStr`. What is made of it counts as a client's as a whole.
    """

    __slots__ = ("marks",)
    marks: bytes

    def __new__(cls, text: str, *_: Any) -> TracedMarkup:
        """Make it of a string."""
        self = super().__new__(cls, text)
        self.marks = marks_of(text) if isinstance(text, TracedStr) else QUESTION * len(self)
        return self

    def __str__(self) -> str:
        """Return the text, which is ordinary again, with its marks."""
        return TracedStr(str.__str__(self), self.marks)


def marks_of(text: str) -> bytes:
    """Return the marks of any string; those of an ordinary one are the template's."""
    return text.marks if isinstance(text, TracedStr | TracedMarkup) else _NO * len(text)


def join(parts: Iterable[str], between: str = "") -> TracedStr:
    """Return strings joined, with the marks of each."""
    items = list(parts)
    return TracedStr(str.join(between, items), marks_of(between).join(map(marks_of, items)))


def holds_traced(value: Any) -> bool:
    """Return whether a client's string is anywhere in a value."""
    return any(isinstance(part, TracedStr | TracedMarkup) for part in strings(value))


def derived(text: str, sources: Any) -> str:
    """Return text that was made of other values in a way that is not followed.

    If a client wrote any of them, all of it counts as the client's.
    """
    marks = b"".join(marks_of(part) for part in strings(sources))
    mark = QUESTION if QUESTION in marks else ANSWER if ANSWER in marks else None
    return text if mark is None else TracedStr(text, mark * len(text))


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON; all of it counts as a client's if any of it does.

    Jinja's own filter escapes HTML characters, which models were not trained on.
    """
    text = json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
    return derived(text, value)


def trace(value: Any, mark: bytes = QUESTION) -> Any:
    """Return a JSON value whose strings are traced, keys too."""
    if isinstance(value, str):
        return TracedStr(value, mark * len(value))
    if isinstance(value, Mapping):
        return {trace(key, mark): trace(item, mark) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [trace(item, mark) for item in value]
    return value


def strings(value: Any) -> Iterator[str]:
    """Yield all strings of a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from strings(pair)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings(item)
