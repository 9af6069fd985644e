"""Splits what a model writes into reasoning, answer and tool calls, while it comes.

Qwen3 writes ``<think>...</think>`` before the answer and calls tools as JSON between
``<tool_call>`` and ``</tool_call>``. Nothing that may be the beginning of a tag is shown before
that is clear, and text that only looks like a tool call is handed out as what it is.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass, field
from typing import Any

_THINK, _THINK_END = "<think>", "</think>"
_CALL, _CALL_END = "<tool_call>", "</tool_call>"


@dataclass(slots=True)
class ToolCall:
    """A call of a function.

    Attributes:
        name: Of the function.
        arguments: A JSON object, as text.
        id: Made up here, for the answer to refer to.
    """

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")


@dataclass(slots=True)
class Part:
    """A piece of output: text of a kind, ``"reasoning"`` or ``"content"``, or a call."""

    kind: str
    text: str = ""
    call: ToolCall | None = None


def parse_calls(body: str) -> list[ToolCall] | None:
    """Return the calls in the text between the tags, or ``None`` if it is something else."""
    body = re.sub(r"^```(?:json)?\s*|\s*```$", "", body.strip())
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    calls = []
    for item in value if isinstance(value, list) else [value]:
        call = _parse_call(item)
        if call is None:
            return None
        calls.append(call)
    return calls or None


def _parse_call(value: Any) -> ToolCall | None:
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("function"), dict):
        value = value["function"]
    name = value.get("name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if not isinstance(name, str) or not name:
        return None
    if isinstance(arguments, str):
        # Some models quote the object once more.
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            return None
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        return None
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False))


def _overlap(text: str, tag: str) -> int:
    """Return how many characters at the end of a text may begin a tag."""
    return next(
        (n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0
    )


class OutputParser:
    """Takes text as it is generated and returns what it means.

    Attributes:
        state: ``"start"``, ``"reasoning"``, ``"content"`` or ``"call"``.
        calls: How many tool calls there were.
    """

    def __init__(
        self, *, thinking: bool = False, tools: bool = False, max_calls: int | None = None
    ) -> None:
        """Start.

        Args:
            thinking: Whether the prompt has opened ``<think>`` already.
            tools: Whether tool calls are recognised.
            max_calls: Calls beyond this many are dropped.
        """
        self.state = "reasoning" if thinking else "start"
        self.calls = 0
        self._tools = tools
        self._max_calls = max_calls
        self._text = ""
        # Whitespace at the beginning of the next part is not part of it.
        self._trim = thinking
        self._scan = 0
        self._quoted = self._escaped = False

    def push(self, text: str) -> list[Part]:
        """Add text and return what is clear now."""
        self._text += text
        parts: list[Part] = []
        while self._step(parts):
            pass
        return parts

    def finish(self) -> list[Part]:
        """Return the rest; the text is over."""
        parts: list[Part] = []
        while self.state == "call":
            end = self._text.find(_CALL_END)
            if end >= 0:
                # A quotation mark too many hid the tag from the scanner.
                self._end_call(parts, end, self._text[:end])
                while self._step(parts):
                    pass
                continue
            if not self._add_calls(parts, self._text):
                self._emit(parts, "content", _CALL + self._text)
            self.state, self._text = "content", ""
        if self.state == "reasoning":
            self._emit(parts, "reasoning", self._text.rstrip())
        else:
            self._emit(parts, "content", self._text.rstrip() if self.calls else self._text)
        self._text = ""
        return parts

    def _emit(self, parts: list[Part], kind: str, text: str) -> None:
        if self._trim:
            text = text.lstrip()
        if text:
            self._trim = False
            parts.append(Part(kind, text))

    def _step(self, parts: list[Part]) -> bool:
        """Deal with some text; return whether another step may get further."""
        if self.state == "start":
            return self._start()
        if self.state == "call":
            return self._call(parts)
        reasoning = self.state == "reasoning"
        if not reasoning and not self._tools:
            self._emit(parts, "content", self._text)
            self._text = ""
            return False
        tag = _THINK_END if reasoning else _CALL
        at = self._text.find(tag)
        if at >= 0:
            self._emit(parts, self.state, self._text[:at].rstrip())
            self._text = self._text[at + len(tag) :]
            self.state = "content" if reasoning else "call"
            self._trim = reasoning or self._trim
            self._scan, self._quoted, self._escaped = 0, False, False
            return True
        # Whitespace before a tag is not part of the text either.
        keep = _overlap(self._text, tag)
        cut = len(self._text[: len(self._text) - keep].rstrip())
        self._emit(parts, self.state, self._text[:cut])
        self._text = self._text[cut:]
        return False

    def _start(self) -> bool:
        text = self._text.lstrip()
        if text.startswith(_THINK):
            self._text = text[len(_THINK) :]
            self.state, self._trim = "reasoning", True
        elif _THINK.startswith(text):
            return False
        else:
            self.state = "content"
        return True

    def _call(self, parts: list[Part]) -> bool:
        """Look for the end of a call, outside of JSON strings."""
        text = self._text
        while self._scan < len(text):
            char = text[self._scan]
            if self._escaped:
                self._escaped = False
            elif self._quoted and char == "\\":
                self._escaped = True
            elif char == '"':
                self._quoted = not self._quoted
            elif char == "<" and not self._quoted:
                if text.startswith(_CALL_END, self._scan):
                    self._end_call(parts, self._scan, text[: self._scan])
                    return True
                if _CALL_END.startswith(text[self._scan :]):
                    return False
            self._scan += 1
        return False

    def _end_call(self, parts: list[Part], end: int, body: str) -> None:
        self._text = self._text[end + len(_CALL_END) :]
        self.state = "content"
        if self._add_calls(parts, body):
            self._trim = True
        else:
            self._emit(parts, "content", _CALL + body + _CALL_END)

    def _add_calls(self, parts: list[Part], body: str) -> bool:
        calls = parse_calls(body)
        for call in calls or ():
            if self._max_calls is None or self.calls < self._max_calls:
                self.calls += 1
                parts.append(Part("call", call=call))
        return calls is not None
