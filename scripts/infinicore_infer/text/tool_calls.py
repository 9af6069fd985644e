"""Reads calls of tools while they are written: names and arguments come out as soon as possible.

A call is a JSON object with ``name`` and ``arguments``. Arguments are handed out as the model wrote
them, never repaired: whoever takes them has to check them, as with OpenAI's own. What has no name
is no call.

The reader is a parser by recursive descent, made of generators: where the text that is there ends,
they yield, and go on with the next piece. So the result cannot depend on how the text is cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

from infinicore_infer.text.parts import Arguments, Call, Content, Part

CALL, CALL_END = "<tool_call>", "</tool_call>"

Result = TypeVar("Result")
# Yields where more text is needed.
Reading: TypeAlias = Generator[None, None, Result]

_ARGUMENTS = ("arguments", "parameters")
# What may stand around the objects: marks of code blocks, and brackets too many.
_FENCE = "```json"
_JUNK = "`{}[],; \t\r\n"
# Characters of a JSON string that mean themselves and cannot begin a tag.
_PLAIN = re.compile(r'[^"\\<\x00-\x1f]+')
# The rest of a JSON string, its end, and what follows it.
_STRING_REST = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*"\s*(\S)', re.DOTALL)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|([^u]))", re.DOTALL)
_FIRST_OF_PAIR = re.compile(r"\\u[dD][89abAB]")
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_HEX = frozenset("0123456789abcdefABCDEF")


def _decode(text: str) -> str:
    """Return what the inside of a JSON string means; halves of pairs become U+FFFD."""

    def meaning(escape: re.Match[str]) -> str:
        return chr(int(escape[1], 16)) if escape[1] else _ESCAPES.get(escape[2], escape[2])

    decoded = _ESCAPE.sub(meaning, text)
    return decoded.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class CallReader:
    """Reads what follows ``<tool_call>``, up to ``</tool_call>``.

    Attributes:
        rest: The text after the end; ``None`` before it.
        count: How many calls have begun.
    """

    def __init__(self) -> None:
        self.rest: str | None = None
        self.count = 0
        self._text = ""
        self._at = 0
        self._final = False
        self._tag = ""  # the one that ended the call
        self._quoted = False  # whether the latest string has not ended
        self._parts: list[Part] = []
        self._written: list[str] = []  # arguments that are not among the parts yet
        self._named = False
        self._given = False  # whether there were arguments
        self._reading = self._calls()
        next(self._reading)

    def push(self, text: str) -> list[Part]:
        """Add text and return what is clear now."""
        if self.count:
            # What has been read will not become text any more.
            self._text, self._at = self._text[self._at :], 0
        self._text += text
        next(self._reading, None)
        if self._named:
            self._hand_out()
        parts, self._parts = self._parts, []
        return parts

    def finish(self) -> list[Part]:
        """Return the rest; the text is over."""
        self._final = True
        return self.push("")

    def _hand_out(self) -> None:
        written = "".join(self._written)
        self._written.clear()
        if written:
            self._parts.append(Arguments(written))

    # ------------------------------------------------------------------ characters

    def _peek(self) -> Reading[str]:
        """Return the next character without taking it; ``""`` at the end of the call."""
        while self.rest is None:
            if self._at < len(self._text):
                char = self._text[self._at]
                tag = self._tag_here() if char == "<" else ""
                if tag == "":
                    return char
                if tag is not None:
                    self._end(tag)
                    break
            elif self._final:
                self._end("")
                break
            yield
        return ""

    def _next(self) -> Reading[str]:
        char = yield from self._peek()
        self._at += len(char)
        return char

    def _end(self, tag: str) -> None:
        self._tag = tag
        # A second call may begin although the first one has no end.
        self.rest = self._text[self._at + (len(tag) if tag == CALL_END else 0) :]

    def _tag_here(self) -> str | None:
        """Return the tag that begins here, ``""`` for none, ``None`` if that is not clear yet."""
        for tag in (CALL_END,) if self._quoted else (CALL_END, CALL):
            if self._text.startswith(tag, self._at):
                break
            if not self._final and tag.startswith(self._text[self._at :]):
                return None
        else:
            return ""
        if not self._quoted:
            return tag
        # Text about tags, or a quotation mark is missing? In the first case the string ends later
        # on and JSON goes on after it.
        after = _STRING_REST.match(self._text, self._at + len(tag))
        if after is None:
            return tag if self._final else None
        return "" if after[1] in ",:}]" else tag

    # ------------------------------------------------------------------ JSON

    def _string(self, take: Callable[[str], None]) -> Reading[None]:
        """Read a string from behind its first quotation mark to its end.

        Args:
            take: Gets what is between the marks, as it is written; an escape sequence in one piece.
        """
        self._quoted = True
        while char := (yield from self._peek()):
            plain = _PLAIN.match(self._text, self._at)
            unit = plain[0] if plain else char
            self._at += len(unit)
            if char == '"':
                self._quoted = False
                return
            if char == "\\":
                unit += yield from self._next()
                while unit[:2] == "\\u" and len(unit) < 6:
                    digit = yield from self._peek()
                    if digit not in _HEX:
                        break
                    unit += digit
                    self._at += 1
            take(unit)

    def _nested(self, take: Callable[[str], None]) -> Reading[None]:
        """Read an array or object from behind its first bracket to its end."""
        depth = 1
        while depth and (char := (yield from self._next())):
            take(char)
            depth += (char in "{[") - (char in "}]")
            if char == '"':
                # Models forget to escape line ends, which no JSON parser takes as they are.
                yield from self._string(
                    lambda unit: take(json.dumps(unit)[1:-1] if unit < " " else unit)
                )
                if not self._quoted:
                    take('"')

    def _calls(self) -> Reading[None]:
        """Read everything: one object, a list or lines of them, in a block of code or not."""
        outside = ""
        while char := (yield from self._next()):
            if char == "{":
                self._say(outside)
                outside = ""
                yield from self._call()
            elif char not in "[]}":
                outside += char
                if not self.count and not _FENCE.startswith(outside.strip()):
                    # This is no call, whatever follows.
                    while (yield from self._next()):
                        pass
        self._say(outside)
        if not self.count:
            end = self._tag if self._tag == CALL_END else ""
            self._parts = [Content(CALL + self._text[: self._at] + end)]

    def _say(self, outside: str) -> None:
        if self.count and outside.strip(_JUNK):
            self._hand_out()
            self._parts.append(Content(outside.strip()))

    def _call(self) -> Reading[None]:
        """Read an object that should be a call."""
        self._hand_out()
        self._named = self._given = False
        complete = yield from self._fields(outer=True)
        if not self._named:
            self._written.clear()
        elif complete and not self._given:
            self._written.append("{}")

    def _fields(self, outer: bool) -> Reading[bool]:
        """Read the object that has a call's name and arguments.

        Args:
            outer: Whether they may be in an object of their own, named ``function``.

        Returns:
            Whether arguments that have not come will not come.
        """
        key: str | None = None
        at_value, scalar = False, ""
        while True:
            char = yield from self._next()
            if scalar and (not char or char in ',:{}[]"' or char.isspace()):
                if scalar != "null":
                    self._give(scalar)
                scalar = ""
            if not char:
                # Who has begun to write arguments does not mean none.
                return bool(self._tag) and not self._quoted and key not in _ARGUMENTS
            wanted = at_value and key in _ARGUMENTS and not self._given
            if char == '"' and wanted:
                yield from self._quoted_arguments()
            elif char == '"':
                units: list[str] = []
                yield from self._string(units.append)
                text = _decode("".join(units))
                if not at_value:
                    key = text
                elif key == "name" and text and not self._quoted and not self._named:
                    self._begin(text)
            elif char in "{[":
                if wanted:
                    self._give(char)
                    yield from self._nested(self._give)
                elif char == "{" and key == "function" and outer:
                    if not (yield from self._fields(outer=False)):
                        return False
                    key, at_value = None, False
                else:
                    yield from self._nested(lambda unit: None)
            elif char in "}]":
                return True
            elif char in ",:":
                at_value = char == ":"
                key = key if at_value else None
            elif wanted and not char.isspace():
                scalar += char

    def _quoted_arguments(self) -> Reading[None]:
        """Read arguments that were quoted once more; an empty string says nothing."""
        held = ""

        def take(unit: str) -> None:
            nonlocal held
            held += unit
            if not _FIRST_OF_PAIR.match(unit):
                self._give(_decode(held))
                held = ""

        yield from self._string(take)
        if held and not self._quoted:
            self._give(_decode(held))

    def _begin(self, name: str) -> None:
        self._named = True
        self.count += 1
        self._parts.append(Call(name))

    def _give(self, text: str) -> None:
        self._given = True
        self._written.append(text)
