"""Reads calls of tools while they are written: names and arguments come out as soon as possible.

A call is a JSON object with ``name`` and ``arguments``. Arguments are handed out as the model wrote
them, never repaired: whoever takes them has to check them, as with OpenAI's own. What has no name
is no call.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass, field

CALL, CALL_END = "<tool_call>", "</tool_call>"

_ARGUMENTS = ("arguments", "parameters")
# What may stand around the objects: marks of code blocks, and brackets too many.
_FENCE = "```json"
_JUNK = "`{}[],; \t\r\n"
# The rest of a JSON string, its end, and what follows it.
_STRING_REST = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*"\s*(\S)', re.DOTALL)
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_HEX = frozenset("0123456789abcdefABCDEF")


@dataclass(slots=True)
class ToolCall:
    """A call of a function.

    Attributes:
        name: Of the function.
        id: Made up here, for the answer to refer to.
    """

    name: str
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")


@dataclass(slots=True)
class Part:
    """A piece of output.

    Attributes:
        kind: ``"reasoning"``, ``"content"``, ``"call"`` (one begins) or ``"arguments"`` (more of
            the latest call's).
        text: What was written; empty for ``"call"``.
        call: The call that begins.
    """

    kind: str
    text: str = ""
    call: ToolCall | None = None


class _Strings:
    """Reads JSON strings by character; an escape sequence is a unit, which may come in pieces.

    Attributes:
        open: Whether a string is being read.
    """

    def __init__(self) -> None:
        """Start outside of a string."""
        self.open = False
        self._escape = ""
        self._high = 0

    def begin(self) -> None:
        """Begin a string."""
        self.open, self._escape, self._high = True, "", 0

    def feed(self, char: str, decode: bool) -> str:
        """Take a character of a string and return what is clear now.

        Args:
            char: The character.
            decode: Whether to return what the string means; otherwise how it is written.
        """
        if not self._escape:
            if char == "\\":
                self._escape = char
                return ""
            if char == '"':
                self.open = False
                return self._lone() + ("" if decode else char)
            if decode:
                return self._lone() + char
            # Models forget to escape line ends; no JSON parser takes them as they are.
            return json.dumps(char)[1:-1] if char < " " else char
        if self._escape.startswith("\\u") and char not in _HEX:
            broken, self._escape = self._escape, ""
            return broken + self.feed(char, decode)
        self._escape += char
        if self._escape[1] == "u" and len(self._escape) < 6:
            return ""
        unit, self._escape = self._escape, ""
        return self._decoded(unit) if decode else unit

    def rest(self) -> str:
        """Return the beginning of an escape sequence that was not finished."""
        return self._escape

    def _lone(self) -> str:
        """Return a replacement for the first half of a pair whose second half did not come."""
        lone, self._high = self._high, 0
        return "\ufffd" if lone else ""

    def _decoded(self, unit: str) -> str:
        if unit[1] != "u":
            return self._lone() + _ESCAPES.get(unit[1], unit[1])
        code = int(unit[2:], 16)
        if 0xDC00 <= code < 0xE000 and self._high:
            code = 0x10000 + (self._high - 0xD800) * 0x400 + code - 0xDC00
            self._high = 0
            return chr(code)
        lone = self._lone()
        if 0xD800 <= code < 0xDC00:
            self._high = code
            return lone
        return lone + ("\ufffd" if 0xDC00 <= code < 0xE000 else chr(code))


class _Calls:
    """Finds calls in JSON, by character.

    Attributes:
        parts: What was found and is not taken yet.
        count: How many calls have begun.
        failed: Whether this is no JSON of a call.
        strings: The string that is being read, if any.
    """

    def __init__(self) -> None:
        """Start before the first object."""
        self.parts: list[Part] = []
        self.count = 0
        self.failed = False
        self.strings = _Strings()
        self._outside = ""  # text beside the objects
        self._depth = 0
        self._outer = 0  # depth of a call's keys; 0: outside of a call
        self._base = 0  # the same, or that of the keys in its "function"
        self._begin_call()

    def _begin_call(self) -> None:
        self._key: str | None = None
        self._in_value = False
        self._role = ""  # of the string that is being read
        self._collected = ""  # of a key, a name, or a value that is no string, array or object
        self._copying = False  # whether an array or object of arguments is being read
        self._named = False
        self._given = False  # whether there were arguments
        self._waiting = ""  # arguments that came before the name

    def feed(self, char: str) -> None:
        """Take a character."""
        if self.failed:
            return
        if self.strings.open:
            self._string(char)
        elif self._copying:
            self._copy(char)
        elif not self._base:
            self._between(char)
        elif char in "{[":
            self._open(char)
        elif char in "}]":
            self._shut()
        elif char == '"':
            self.strings.begin()
            self._role = self._role_of_string()
        elif char in ",:" and self._depth == self._base:
            self._end_value()
            self._in_value = char == ":"
            self._key = self._key if self._in_value else None
        elif char.isspace():
            self._end_value()
        elif self._at_arguments():
            self._collected += char

    def end(self, tagged: bool) -> None:
        """Take the end of the text.

        Args:
            tagged: Whether it is the call's own end; otherwise the text was cut off.
        """
        if self.strings.open and self._role == "copy":
            self._arguments(self.strings.rest())
        if tagged and not self.strings.open:
            self._end_value()
            # Who has begun to write arguments does not mean none.
            if self._key not in _ARGUMENTS:
                self._end_call()
        self._flush_outside()

    def _between(self, char: str) -> None:
        """Take a character outside of a call."""
        if char == "{":
            self._flush_outside()
            self._depth += 1
            self._outer = self._base = self._depth
            self._begin_call()
        elif char == "[":
            self._depth += 1
        elif char in "}]":
            self._depth = max(self._depth - 1, 0)
        else:
            self._outside += char
            self.failed = not (self.count or _FENCE.startswith(self._outside.strip()))

    def _flush_outside(self) -> None:
        if self.count and self._outside.strip(_JUNK):
            self.parts.append(Part("content", self._outside.strip()))
        self._outside = ""

    def _at_arguments(self) -> bool:
        at_value = self._in_value and self._depth == self._base
        return at_value and self._key in _ARGUMENTS and not self._given

    def _role_of_string(self) -> str:
        if self._depth != self._base:
            return ""
        if not self._in_value:
            return "key"
        if self._key == "name" and not self._named:
            return "name"
        return "text" if self._at_arguments() else ""

    def _string(self, char: str) -> None:
        text = self.strings.feed(char, self._role != "copy")
        if self._role in ("copy", "text"):
            self._arguments(text)
            # Some models quote the object once more; an empty string says nothing.
            self._given = self._given or (self._role == "text" and bool(text))
        elif self._role:
            self._collected += text
            if not self.strings.open:
                text, self._collected = self._collected, ""
                if self._role == "key":
                    self._key = text
                elif text:
                    self._name(text)

    def _name(self, name: str) -> None:
        self._named = True
        self.count += 1
        self.parts.append(Part("call", call=ToolCall(name)))
        waiting, self._waiting = self._waiting, ""
        self._arguments(waiting)

    def _arguments(self, text: str) -> None:
        if not self._named:
            self._waiting += text
        elif text and self.parts and self.parts[-1].kind == "arguments":
            self.parts[-1].text += text
        elif text:
            self.parts.append(Part("arguments", text))

    def _copy(self, char: str) -> None:
        if char == '"':
            self.strings.begin()
            self._role = "copy"
        self._depth += (char in "{[") - (char in "}]")
        self._arguments(char)
        if self._depth == self._base:
            self._copying = False

    def _open(self, char: str) -> None:
        if self._at_arguments():
            self._copying = self._given = True
            self._arguments(char)
        elif char == "{" and self._key == "function" and self._depth == self._outer:
            self._base = self._depth + 1
            self._key, self._in_value = None, False
        self._depth += 1

    def _shut(self) -> None:
        self._end_value()
        self._depth -= 1
        if self._depth >= self._base:
            return
        if self._base > self._outer:
            self._base = self._outer
            self._key, self._in_value = None, False
        else:
            self._end_call()

    def _end_value(self) -> None:
        value, self._collected = self._collected, ""
        if value and value != "null":
            self._given = True
            self._arguments(value)

    def _end_call(self) -> None:
        if self._named and not self._given:
            self._arguments("{}")
        self._outer = self._base = 0
        self._named = False


class CallReader:
    """Reads what follows ``<tool_call>``, up to ``</tool_call>``.

    The result does not depend on how the text is cut into pieces.

    Attributes:
        rest: The text after the end; ``None`` before it.
        count: How many calls have begun.
    """

    def __init__(self) -> None:
        """Start after the tag."""
        self.rest: str | None = None
        self._text = ""
        self._at = 0
        self._calls = _Calls()

    @property
    def count(self) -> int:
        """How many calls have begun."""
        return self._calls.count

    def push(self, text: str) -> list[Part]:
        """Add text and return what is clear now."""
        return self._read(text, False)

    def finish(self) -> list[Part]:
        """Return the rest; the text is over."""
        return self._read("", True)

    def _read(self, text: str, final: bool) -> list[Part]:
        self._text += text
        while self._at < len(self._text):
            char = self._text[self._at]
            tag = self._tag(final) if char == "<" else ""
            if tag is None:
                break
            if tag:
                self._end(tag)
                break
            self._calls.feed(char)
            self._at += 1
        if final and self.rest is None:
            self._end("")
        if self.count:
            # It will not become text any more.
            self._text, self._at = self._text[self._at :], 0
        parts, self._calls.parts = self._calls.parts, []
        return parts

    def _tag(self, final: bool) -> str | None:
        """Return the tag that begins here, ``""`` for none, ``None`` if that is not clear yet."""
        quoted = self._calls.strings.open and not self._calls.failed
        for tag in (CALL_END,) if quoted else (CALL_END, CALL):
            if self._text.startswith(tag, self._at):
                break
            if not final and tag.startswith(self._text[self._at :]):
                return None
        else:
            return ""
        if not quoted:
            return tag
        # Text about tags, or a quotation mark is missing? In the first case the string ends later
        # on and JSON goes on after it.
        after = _STRING_REST.match(self._text, self._at + len(tag))
        if after is None:
            return tag if final else None
        return "" if after[1] in ",:}]" else tag

    def _end(self, tag: str) -> None:
        body = self._text[: self._at]
        self.rest = self._text[self._at :]
        if tag == CALL_END:
            self.rest = self.rest[len(tag) :]
        self._calls.end(bool(tag))
        if not self._calls.count:
            self._calls.parts = [Part("content", CALL + body + (tag if tag == CALL_END else ""))]
